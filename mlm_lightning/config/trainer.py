"""The `trainer` part of a config, named as Lightning names it; and what a config may not set, with what to use instead."""

import bisect
import math
import os
import re
import shutil
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Interval

from mlm_lightning.data.batches import Plan
from mlm_lightning.data.warmup import BatchSchedule, BatchSizes
from mlm_lightning.errors import NO_VALUE, ConfigError, refuse
from mlm_lightning.values import check_fields, not_one_of

OWNED_KEYS = {
    "barebones": "switch off what costs time, e.g. callbacks.samples=null logger=csv",
    "callbacks": "choose them with callbacks=NAME, or change one, e.g. callbacks.checkpoint.every_minutes=5",
    "default_root_dir": "use output_dir and name",
    "enable_autolog_hparams": "config.yaml in the run's folder holds every setting",
    "enable_checkpointing": "callbacks.checkpoint=null switches checkpoints off",
    "fast_dev_run": "use trainer=smoke",
    "limit_predict_batches": "mlm predict takes single texts",
    "logger": "choose them with logger=NAME or 'logger=[tensorboard,csv]'",
    "min_epochs": "use trainer.max_epochs; nothing but callbacks=early_stopping ends a run before it",
    "min_steps": "use trainer.max_steps; nothing but callbacks=early_stopping ends a run before it",
    "model_registry": "use mlm export on a finished run",
    "overfit_batches": "use data.train_size, e.g. data.train_size=64",
    "plugins": "use trainer.precision and trainer.strategy",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order and masks anyway",
    "use_distributed_sampler": "each device reads rows of its own anyway",
}
"""Lightning's Trainer arguments that are not for a config to set, and what does the same here."""

_PRECISIONS = (
    *("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
    *("transformer-engine", "transformer-engine-float16", "32", "16", "bf16", "64", 32, 16, 64),
)

_TIMES = "give days:hours:minutes:seconds, e.g. 00:12:00:00, or 12h, 90m, 1d12h, or {hours: 12}"
_MAX_TIME = r"""(?P<days>\d+) : (?P<hours>\d\d) : (?P<minutes>\d\d) : (?P<seconds>\d\d)
    | (?:(?P<days_>\d+)d)? (?:(?P<hours_>\d+)h)? (?:(?P<minutes_>\d+)m)? (?:(?P<seconds_>\d+)s)?"""

_PER_DECADE = 8
"""Validations at logarithmic steps."""

_Count = Annotated[int, Ge(1)]
_Share = Annotated[float, Interval(gt=0, le=1), "give a whole number, or a share"]
_Limit = Annotated[int, Ge(0)] | Annotated[float, Interval(ge=0, le=1), "give a number of batches, or a share"] | None


@dataclass(kw_only=True, frozen=True)
class TrainerSettings:
    """Intervals count optimizer steps. `batch_schedule` may be the mapping of its arguments. `time_budget` stands for as many
    steps as are taken in so many minutes, at most `max_steps`: there is no plan before they are settled (training/auto.py)."""

    OWNER: ClassVar = "the trainer"

    accelerator: str = "auto"
    devices: int | list[int] | str = 1
    num_nodes: _Count = 1
    strategy: str = "auto"
    precision: int | str = "auto"
    compile: bool | Literal["auto"] = False
    max_steps: _Count | None = None
    max_epochs: _Count | None = None
    max_time: str | dict[str, int] | None = None
    time_budget: Annotated[float, Gt(0), "it is a number of minutes"] | None = None
    accumulate_grad_batches: _Count = 1
    batch_schedule: BatchSchedule | None = None
    gradient_clip_val: Annotated[float, Gt(0)] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = "norm"
    val_check_interval: _Count | _Share | Literal["auto"] | None = 1.0
    check_val_every_n_epoch: _Count | None = 1
    val_steps: Annotated[list[_Count], "give optimizer steps, e.g. [10, 100, 1000]"] | Literal["log"] | None = None
    log_every_n_steps: _Count = 50
    limit_train_batches: _Count | _Share | None = 1.0
    limit_val_batches: _Limit = 1.0
    limit_test_batches: _Limit = 1.0
    num_sanity_val_steps: Annotated[int, Ge(-1), "-1: all of them"] | None = 0
    deterministic: bool | Literal["warn"] | None = False
    benchmark: bool | None = False
    detect_anomaly: bool = False
    inference_mode: bool = True
    sync_batchnorm: bool = False
    profiler: str | None = None
    enable_progress_bar: bool | None = True
    enable_model_summary: bool | None = False
    auto_requeue: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "trainer")
        if isinstance(self.batch_schedule, dict):  # as a config writes it
            object.__setattr__(self, "batch_schedule", BatchSchedule(**self.batch_schedule))
        refuse(self._impossible())

    def _impossible(self) -> list[ConfigError]:
        found = []
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        missing = {"gpu": not (cuda or mps), "cuda": not cuda, "mps": not mps}
        if missing.get(self.accelerator):
            problem, remedy = "torch finds no such device here", "use trainer.accelerator=auto or cpu"
            found.append(ConfigError("trainer.accelerator", self.accelerator, problem, remedy))
        if self.precision not in _PRECISIONS:
            found.append(not_one_of("trainer.precision", self.precision, _PRECISIONS))
        elif str(self.precision) in ("16", "16-mixed") and self.is_cpu:
            problem, remedy = "CPUs have no such precision", "use trainer.precision=bf16-mixed, 32-true or auto"
            found.append(ConfigError("trainer.precision", self.precision, problem, remedy))
        if self.compile is True and (missing_compiler := self.lacks_compiler()):
            problem, remedy = (
                f"there is no {missing_compiler} here, which it needs",
                "install one, or set trainer.compile=false",
            )
            found.append(ConfigError("trainer.compile", self.compile, problem, remedy))
        if self.max_time is not None and not self.max_duration:
            found.append(ConfigError("trainer.max_time", self.max_time, "is no time that a run could take", _TIMES))
        if self.max_steps is None and self.max_epochs is None and self.time_budget is None:
            remedy = "give one of them, or trainer.time_budget, so that the run ends"
            found.append(ConfigError("trainer.max_steps and trainer.max_epochs", NO_VALUE, "are both null", remedy))
        if self.num_processes() < 1:
            remedy = "give a number above 0, a list of device ids, or auto"
            found.append(ConfigError("trainer.devices", self.devices, "is no number of devices", remedy))
        return found

    @property
    def is_cpu(self) -> bool:
        gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        return self.accelerator == "cpu" or (self.accelerator == "auto" and not gpu)

    def lacks_compiler(self) -> str | None:
        """What `compile` would need and does not find: a C++ compiler for a CPU, Triton for a GPU."""
        if not self.is_cpu:
            return None if find_spec("triton") else "Triton"
        names = [os.environ.get("CXX"), "clang++" if sys.platform == "darwin" else "cl" if sys.platform == "win32" else "g++"]
        return None if any(name and shutil.which(name) for name in names) else "C++ compiler"

    @property
    def max_duration(self) -> timedelta | None:
        """`max_time`, of which Lightning itself takes two forms; None also where it is none."""
        if isinstance(self.max_time, dict):
            try:
                return timedelta(**self.max_time)
            except (TypeError, OverflowError):
                return None
        found = re.fullmatch(_MAX_TIME, str(self.max_time), re.VERBOSE)
        values = {name.rstrip("_"): int(value) for name, value in (found.groupdict() if found else {}).items() if value}
        return timedelta(**values) if values else None

    def num_processes(self) -> int:
        """The number of processes on this machine, one a device."""
        if isinstance(self.devices, list):
            return len(self.devices)
        if str(self.devices) in ("auto", "-1"):
            use_cuda = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
            return torch.cuda.device_count() if use_cuda else 1
        try:
            return int(self.devices)
        except ValueError:
            return 0

    def world_size(self) -> int:
        """The number of processes on all machines."""
        return self.num_processes() * self.num_nodes

    def resolved_precision(self) -> int | str:
        """`auto` is bf16 where the hardware multiplies it natively, else float32."""
        if self.precision != "auto":
            return self.precision
        if self.accelerator != "cpu" and torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        elif self.accelerator in ("mps", "tpu") or (self.accelerator != "cpu" and torch.backends.mps.is_available()):
            native = self.accelerator == "tpu"
        else:
            native = cpu_multiplies_bf16()
        return "bf16-mixed" if native else "32-true"

    def endless_errors(self) -> list[ConfigError]:
        """What asks for epochs, of which training rows without an end have none."""
        why = "the training rows have no end, and so no epochs"
        limited = self.limit_train_batches not in (None, 1.0) or isinstance(self.limit_train_batches, int)
        steps = "give the number of optimizer steps, e.g. trainer.max_steps=10000"
        interval = "give a number of optimizer steps, or null to validate at the end alone"
        asking = [
            ("max_steps", self.max_steps is None and self.time_budget is None, steps),
            ("max_epochs", self.max_epochs is not None, "set trainer.max_epochs=null, and trainer.max_steps"),
            ("val_check_interval", isinstance(self.val_check_interval, float), interval),
            ("limit_train_batches", limited, "set trainer.limit_train_batches=1.0, and trainer.max_steps"),
        ]
        return [ConfigError(f"trainer.{name}", getattr(self, name), why, remedy) for name, asks, remedy in asking if asks]

    def plan(self, num_rows: int | None, batch_size: int) -> Plan:
        """How long the run is, in optimizer steps, on `num_rows` training rows (None: they have no end)."""
        assert self.time_budget is None
        plan = partial(Plan, accumulate_grad_batches=self.accumulate_grad_batches, log_every_n_steps=self.log_every_n_steps)
        if num_rows is None:
            assert not self.endless_errors()
            assert self.max_steps is not None
            interval, sizes = self._interval(self.max_steps, math.inf), self._batch_sizes(batch_size, self.max_steps)
            return plan(self.max_steps, math.inf, interval, batch_sizes=sizes, validate_at=self._validate_at(self.max_steps))
        micro_batch = batch_size * self.world_size()
        limit = self.limit_train_batches
        if limit is None:
            rows_per_epoch = num_rows
        elif isinstance(limit, int):
            rows_per_epoch = min(num_rows, limit * micro_batch)
        else:
            rows_per_epoch = max(1, int(num_rows * limit))
        steps_per_epoch = rows_per_epoch / (micro_batch * self.accumulate_grad_batches)
        by_epochs = math.inf if self.max_epochs is None else self._steps_of(self.max_epochs * rows_per_epoch, batch_size)
        total_steps = int(min(by_epochs, math.inf if self.max_steps is None else self.max_steps))
        interval = self._interval(total_steps, steps_per_epoch)
        is_share = self.val_check_interval is None or isinstance(self.val_check_interval, float)
        sizes = self._batch_sizes(batch_size, total_steps)
        at = self._validate_at(total_steps)
        return plan(
            total_steps, steps_per_epoch, interval, rows_per_epoch, batch_sizes=sizes, by_epochs=is_share, validate_at=at
        )

    def _validate_at(self, total_steps: int) -> tuple[int, ...] | None:
        """`log`: eight to each power of ten, 1 2 3 4 6 7 10 13 18 … up to the last step."""
        if self.val_steps != "log":
            return None if self.val_steps is None else tuple(sorted(set(self.val_steps)))
        decades = math.log10(max(1, total_steps))
        steps = {round(10 ** (i / _PER_DECADE)) for i in range(math.ceil(_PER_DECADE * decades) + 1)}
        return tuple(sorted(step for step in steps if step <= total_steps))

    def _interval(self, total_steps: int, steps_per_epoch: float) -> float:
        """Optimizer steps from one validation to the next."""
        if self.val_check_interval == "auto":
            return -(-total_steps // 15)
        if isinstance(self.val_check_interval, int):
            return self.val_check_interval
        share = 1.0 if self.val_check_interval is None else self.val_check_interval
        return max(1.0, share * (self.check_val_every_n_epoch or 1) * steps_per_epoch)

    def _batch_sizes(self, batch_size: int, total_steps: int) -> BatchSizes | None:
        return None if self.batch_schedule is None else self.batch_schedule.sizes(batch_size, total_steps)

    def _steps_of(self, rows: int, batch_size: int) -> int:
        """The optimizer steps that read `rows` rows; the last one may read more."""
        # whole numbers: rounded shares of an epoch may add up to a step too many
        rows = -(-rows // (self.world_size() * self.accumulate_grad_batches))  # of one micro-batch on one device
        if (schedule := self.batch_schedule) is None:
            return -(-rows // batch_size)
        # a longer run reads more rows, also where its warm-up is a share of it and grows with it
        return bisect.bisect_left(range(rows + 1), rows, key=lambda steps: schedule.sizes(batch_size, steps).before(steps))


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

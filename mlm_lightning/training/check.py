"""What Lightning would refuse when a run has begun is asked of Lightning before there is a folder.

trainer.*  ─► a Trainer is built as for the run, and dropped: which key, left at its default, makes it work?
callbacks  ─► Lightning's own are built
schedules  ─► their steps against those of the run; where rows and batches start, against their full size
"""

import contextlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.source import Source
from mlm_lightning.errors import NO_VALUE, ConfigError, one_line, refuse
from mlm_lightning.training.optim import Schedule
from mlm_lightning.values import not_one_of

_PROFILERS = ("simple", "advanced", "pytorch")
_ASKED = ("accelerator", "strategy", "devices", "num_nodes", "precision", "sync_batchnorm")
"""Keys whose values Lightning knows better than we do."""


def check_training(settings: Settings) -> None:
    """Raises ConfigError, or InvalidConfigError with all that is wrong; writes nothing."""
    source, trainer = settings.data.instance, settings.trainer
    total, starts = trainer.max_steps, _start_errors(settings)
    if type(source).prepare is Source.prepare and trainer.time_budget is None and not starts:
        with contextlib.suppress(Exception):  # rows that have no length are named once they are tried
            total = trainer.plan(source.num_rows(), settings.loader.batch_size).total_steps
    refuse([*trainer_errors(trainer), *_callback_errors(settings), *starts, *schedule_errors(settings, total)])


def trainer_errors(settings: TrainerSettings) -> list[ConfigError]:
    """What Lightning finds wrong with a Trainer."""
    if settings.profiler not in (None, *_PROFILERS):
        return [not_one_of("trainer.profiler", settings.profiler, _PROFILERS)]
    defaults: dict[str, Any] = {field.name: field.default for field in fields(settings)}
    unusual = [name for name in _ASKED if getattr(settings, name) != defaults[name]]
    if unusual in ([], ["accelerator"]) and settings.accelerator in ("auto", "cpu"):
        return []  # Lightning need not be imported
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    accelerators = ["auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators())]
    if settings.accelerator not in accelerators:
        return [not_one_of("trainer.accelerator", settings.accelerator, accelerators)]
    # what starts processes by itself can't be used in those that are started for it
    all_strategies = {name: StrategyRegistry[name]["init_params"] for name in StrategyRegistry.available_strategies()}
    strategies = ["auto", *(name for name, how in all_strategies.items() if how.get("start_method", "popen") == "popen")]
    if settings.strategy not in strategies:
        if settings.strategy in all_strategies:
            problem = "starts processes by itself, and mlm train starts one a device itself"
            return [ConfigError("trainer.strategy", settings.strategy, problem, "use trainer.strategy=ddp or auto")]
        return [not_one_of("trainer.strategy", settings.strategy, strategies)]
    if (error := _refusal(settings)) is None:
        return []
    name = next((name for name in unusual if _refusal(replace(settings, **{name: defaults[name]})) is None), unusual[0])
    there = [each for each in AcceleratorRegistry if AcceleratorRegistry[each]["accelerator"].is_available()]
    remedy = f"there are here: auto, {', '.join(there)}" if name == "accelerator" else ""
    return [ConfigError(f"trainer.{name}", getattr(settings, name), one_line(error), remedy)]


def _refusal(settings: TrainerSettings) -> Exception | None:
    """Why Lightning can't build a Trainer of these settings."""
    from mlm_lightning.training.fit import build_trainer, quiet

    quiet()
    try:
        # these would change torch's own settings
        build_trainer(replace(settings, deterministic=False, benchmark=None), [], [])
    except Exception as error:  # missing packages, exceptions of Lightning's own, and assertions
        return error
    return None


def _callback_errors(settings: Settings) -> Iterator[ConfigError]:
    sharded = settings.trainer.strategy.startswith(("fsdp", "deepspeed"))
    for name, node in settings.callbacks.items():
        if sharded and node.target == "mlm_lightning.training.callbacks.ema.EMA":
            problem = f"callbacks.{name} averages whole weights, and this strategy shards them"
            yield ConfigError("trainer.strategy", settings.trainer.strategy, problem, f"use ddp, or callbacks.{name}=null")
        if node.target.startswith("lightning."):
            try:
                node.build()
            except Exception as error:
                yield ConfigError(f"callbacks.{name}", NO_VALUE, one_line(error))


def _start_errors(settings: Settings) -> list[ConfigError]:
    """Rows and batches that would start larger than they get."""
    lengths, sizes = settings.loader.length_schedule, settings.trainer.batch_schedule
    found = lengths.errors(settings.data.instance.seq_len) if lengths else []
    return found + (sizes.errors(settings.loader.batch_size) if sizes else [])


def schedule_errors(settings: Settings, total_steps: int | None) -> list[ConfigError]:
    """Parts of the schedules that are longer than the run; None: its length isn't known yet."""
    if total_steps is None:
        return []
    schedule: Any = settings.schedule.instance
    steps: dict[str, float] = {}
    if isinstance(schedule, Schedule):
        steps |= {f"schedule.{name}": getattr(schedule, name, 0) for name in ("warmup_steps", "decay_steps")}
    warmups = {
        "data.length_schedule": settings.loader.length_schedule,
        "trainer.batch_schedule": settings.trainer.batch_schedule,
    }
    steps |= {f"{key}.steps": warmup.steps for key, warmup in warmups.items() if warmup is not None}
    problem, remedy = f"the run ends after {total_steps:,} steps", "give fewer steps, or a share of them such as 0.05"
    return [ConfigError(key, value, problem, remedy) for key, value in steps.items() if value > total_steps >= 1]

"""A composed config is checked before anything is made of it, and then its objects are built.

    config ─► problems(config)  a line for each unknown key, wrong type, missing value, impossible combination
           └► build_source, build_masking, build_model, …          nothing on disk before the first is empty

The check reads the signature of each `_target_`: a config knows exactly the keys that its constructor knows, whichever way they
came in (`key=`, `+key=`, YAML), and a user's own class is checked like ours.
"""

import difflib
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from torch import nn
from torch.optim import Optimizer

from mlm_lightning.batch import Vocab
from mlm_lightning.data.source import Source, Sources, Split
from mlm_lightning.data.tokenizer import TRAIN
from mlm_lightning.data.workers import Workers
from mlm_lightning.errors import UserError
from mlm_lightning.masking import MASKINGS, Masking, Single
from mlm_lightning.models.protocol import MayBeAnotherTask
from mlm_lightning.randomness import Stream, seed_torch

Config = dict[str, Any]

# What a config may instantiate that was read from a run's folder, which may have come from anywhere.
TRUSTED_MODULES = frozenset(
    {
        "mlm_lightning.data.languages.tree",
        "mlm_lightning.data.languages.uniform",
        "mlm_lightning.data.text",
        "mlm_lightning.masking",
        "mlm_lightning.models.transformer",
        "mlm_lightning.models.pretrained",
    }
)

_TOP_LEVEL: dict[str, Any] = {
    "seed": int,
    "name": str,
    "output_dir": str,
    "resume": str,
    "eval": dict,
    "data": dict,
    "prepare": dict | None,
    "masking": dict,
    "model": dict,
    "optim": dict,
    "schedule": dict,
    "trainer": dict,
    "callbacks": dict | None,
    "logger": dict | None,
    "sweep": dict | None,
}
_LOADER_KEYS: dict[str, Any] = {"batch_size": int, "num_workers": int}
_EVAL_KEYS: dict[str, Any] = {"seed": int, "mask_rates": list[float] | None, "masking": str | None, "data": dict | None}
_SWEEP_KEYS: dict[str, Any] = {
    "jobs": int | str,
    "retries": int,
    "objective": str,
    "direction": Literal["minimize", "maximize"],
    "trials": int | None,
    "prune": bool,
    "seed": int,
    "trial": int | None,
}
# what the framework itself passes to a constructor, so a YAML may not
_FROM_SOURCE = ("vocab_size", "seq_len", "pad_token_id", "separate_documents")
_FROM_RUN = ("folder", "save_dir", "purge_step")
_OPTIONAL_GROUPS = ("callbacks", "logger", "sweep", "prepare")
# Lightning's Trainer arguments that are not for a config to set, and what does the same here.
_OWNED_TRAINER_KEYS = {
    "barebones": "switch off what costs time, e.g. callbacks.samples=null logger=csv",
    "callbacks": "choose them with callbacks=NAME, or change one, e.g. callbacks.checkpoint.every_minutes=5",
    "default_root_dir": "use output_dir and name",
    "enable_autolog_hparams": "config.yaml in the run's folder holds every setting",
    "enable_checkpointing": "callbacks.checkpoint=null switches checkpoints off",
    "fast_dev_run": "use trainer=smoke",
    "limit_predict_batches": "mlm predict takes single texts",
    "logger": "choose them with logger=NAME or logger=[tensorboard,csv]",
    "min_epochs": "use trainer.max_epochs; nothing but callbacks=early_stopping ends a run before it",
    "min_steps": "use trainer.max_steps; nothing but callbacks=early_stopping ends a run before it",
    "model_registry": "use mlm export on a finished run",
    "overfit_batches": "use data.train_size, e.g. data.train_size=64",
    "plugins": "use trainer.precision and trainer.strategy",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order and masks anyway",
    "use_distributed_sampler": "each device reads rows of its own anyway",
}


@dataclass(kw_only=True)
class TrainerSettings:
    """The `trainer` part of a config, named as Lightning names it; intervals count optimizer steps."""

    accelerator: str = "auto"
    devices: int | list[int] | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: int | str = "auto"
    max_steps: int | None = None
    max_epochs: int | None = None
    max_time: str | dict[str, int] | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = "norm"
    val_check_interval: int | float | None = 1.0
    check_val_every_n_epoch: int | None = 1
    log_every_n_steps: int = 50
    limit_train_batches: int | float | None = 1.0
    limit_val_batches: int | float | None = 1.0
    limit_test_batches: int | float | None = 1.0
    num_sanity_val_steps: int | None = 0
    deterministic: bool | Literal["warn"] | None = False
    benchmark: bool | None = False
    detect_anomaly: bool = False
    inference_mode: bool = True
    sync_batchnorm: bool = False
    profiler: str | None = None
    enable_progress_bar: bool | None = True
    enable_model_summary: bool | None = False
    auto_requeue: bool = False

    PRECISIONS = (
        *("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"),
        *("transformer-engine", "transformer-engine-float16", "32", "16", "bf16", "64", 32, 16, 64),
    )
    ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")

    def __post_init__(self) -> None:
        if self.accelerator not in self.ACCELERATORS:
            raise ValueError(_not_one_of("trainer.accelerator", self.accelerator, self.ACCELERATORS))
        gpu_missing = {"gpu": not (torch.cuda.is_available() or torch.backends.mps.is_available())}
        gpu_missing |= {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
        if gpu_missing.get(self.accelerator):
            raise ValueError(
                f"trainer.accelerator={self.accelerator}: torch finds no such device here; use trainer.accelerator=auto or cpu"
            )
        if self.precision not in self.PRECISIONS:
            raise ValueError(_not_one_of("trainer.precision", self.precision, self.PRECISIONS))
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("trainer.max_steps and trainer.max_epochs are both null: give one of them, so that the run ends")
        for name in ("max_steps", "max_epochs", "num_nodes", "accumulate_grad_batches", "log_every_n_steps"):
            self._require(name, lambda value: value >= 1, "a whole number above 0")
        for name in ("val_check_interval", "check_val_every_n_epoch", "limit_train_batches", "gradient_clip_val"):
            self._require(name, lambda value: value > 0, "a number above 0")
        for name in ("limit_val_batches", "limit_test_batches"):
            self._require(name, lambda value: value >= 0, "a number of batches or a share")
        for name in ("val_check_interval", "limit_train_batches", "limit_val_batches", "limit_test_batches"):
            self._require(
                name, lambda value: isinstance(value, int) or value <= 1, "a whole number, or a share between 0.0 and 1.0"
            )
        if self.num_processes() < 1:
            raise ValueError(f"trainer.devices={self.devices}: give a number above 0, a list of device ids, or auto")

    def _require(self, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"trainer.{name}={value}: give {wanted}")

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
            native = _cpu_has_bf16()
        return "bf16-mixed" if native else "32-true"

    def endless_problems(self) -> list[str]:
        """What asks for epochs, of which training rows without an end have none: a line each."""
        why = "the training rows have no end, and so no epochs"
        found = []
        if self.max_steps is None:
            found.append(f"trainer.max_steps=null: {why}; give the number of optimizer steps, e.g. trainer.max_steps=10000")
        if self.max_epochs is not None:
            found.append(f"trainer.max_epochs={self.max_epochs}: {why}; set trainer.max_epochs=null, and trainer.max_steps")
        if isinstance(self.val_check_interval, float):
            found.append(
                f"trainer.val_check_interval={self.val_check_interval}: {why}; give a number of optimizer steps, or null to "
                "validate at the end alone"
            )
        if self.limit_train_batches not in (None, 1.0) or isinstance(self.limit_train_batches, int):
            found.append(
                f"trainer.limit_train_batches={self.limit_train_batches}: {why}; set trainer.limit_train_batches=1.0, and "
                "trainer.max_steps"
            )
        return found

    def plan(self, num_rows: int | None, batch_size: int) -> "Plan":
        """How long the run is, in optimizer steps, on `num_rows` training rows (None: they have no end)."""
        if num_rows is None:
            assert not self.endless_problems()
            assert self.max_steps is not None
            return Plan(self.max_steps, math.inf, float(self.val_check_interval or math.inf), None)
        micro_batch = batch_size * self.world_size()
        limit = self.limit_train_batches
        if limit is None:
            rows_per_epoch = num_rows
        elif isinstance(limit, int):
            rows_per_epoch = min(num_rows, limit * micro_batch)
        else:
            rows_per_epoch = max(1, int(num_rows * limit))
        rows_per_step = micro_batch * self.accumulate_grad_batches
        steps_per_epoch = rows_per_epoch / rows_per_step
        # whole numbers: rounded shares of an epoch may add up to a step too many
        by_epochs = math.inf if self.max_epochs is None else -(-self.max_epochs * rows_per_epoch // rows_per_step)
        total_steps = int(min(by_epochs, math.inf if self.max_steps is None else self.max_steps))
        interval = 1.0 if self.val_check_interval is None else self.val_check_interval
        if not isinstance(interval, int):
            interval = interval * (self.check_val_every_n_epoch or 1) * steps_per_epoch
        return Plan(total_steps, steps_per_epoch, max(1.0, float(interval)), rows_per_epoch)


@dataclass(frozen=True)
class Plan:
    """A run's length. An epoch ends where its rows end, also in the middle of an optimizer step; endless rows have none."""

    total_steps: int
    steps_per_epoch: float
    validate_every: float
    rows_per_epoch: int | None


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


# checking


def check(config: Config, trusted: bool = True) -> None:
    """Raises UserError with a line for each problem."""
    if found := problems(config, trusted):
        raise UserError("\n".join(found))


def problems(config: Config, trusted: bool = True) -> list[str]:
    """Everything that is wrong with a config, a line each; builds nothing that costs memory, writes nothing.

    A config that is not `trusted` is one to evaluate: its optimizer and schedule are never built, so never looked at.
    """
    found = _check_keys("", config, _TOP_LEVEL, "the config", optional=_OPTIONAL_GROUPS)
    nodes = {key: value for key, value in config.items() if isinstance(value, dict)}
    data = nodes.get("data", {})
    if "eval" in nodes:
        found += _check_keys("eval", nodes["eval"], _EVAL_KEYS, "eval", optional=("data",))
    if "sweep" in nodes:
        found += _check_keys("sweep", nodes["sweep"], _SWEEP_KEYS, "sweep", optional=("trial",))
        found += _check_values(nodes["sweep"], _SWEEP_KEYS, _check_sweep)
    if "data" in nodes:
        found += _check_keys("data", {k: v for k, v in data.items() if k in _LOADER_KEYS}, _LOADER_KEYS, "data")
    found += _check_values(config, _TOP_LEVEL, _check_names) + _check_values(data, _LOADER_KEYS, _check_sizes)
    found += _check_values(nodes.get("eval", {}), _EVAL_KEYS, _check_eval)
    trainer = nodes.get("trainer", {})
    wrong_trainer = _check_signature("trainer", trainer, TrainerSettings) or _attempt(
        "trainer", lambda: TrainerSettings(**trainer)
    )
    found += wrong_trainer
    objects: list[tuple[str, Config, Any]] = [
        ("data", {k: v for k, v in data.items() if k not in _LOADER_KEYS}, Source),
        ("masking", nodes.get("masking", {}), Masking),
        ("model", nodes.get("model", {}), nn.Module),
    ]
    if trusted:
        objects += [("optim", nodes.get("optim", {}), Optimizer), ("schedule", nodes.get("schedule", {}), None)]
        objects += [("prepare", nodes["prepare"], Workers)] if "prepare" in nodes else []
    objects += [(f"callbacks.{name}", node, "Callback") for name, node in (config.get("callbacks") or {}).items() if node]
    objects += [(f"logger.{name}", node, "Logger") for name, node in (config.get("logger") or {}).items() if node]
    checked = {key: _check_object(key, node, base, trusted) for key, node, base in objects}
    found += [problem for each in checked.values() for problem in each]
    for key, build in _cheap_builds(nodes).items():
        if key in checked and not checked[key]:
            checked[key] = _attempt(key, build)
            found += checked[key]
    if "eval" in nodes and not checked["data"] and not any(problem.startswith("eval.data") for problem in found):
        found += _check_further(nodes, trusted)
    if not checked["data"] and not wrong_trainer and build_source(nodes).endless:
        found += _check_endless(nodes)
    if not checked["data"] and not checked["model"]:
        further = {}
        if "eval" in nodes and not any(problem.startswith("eval.data") for problem in found):
            further = _further_nodes(nodes)
        found += _attempt("model", lambda: _build_meta_model(nodes, further))
    if (
        {"eval", "data"} <= set(nodes)
        and not checked["masking"]
        and not any(problem.startswith(("eval", "masking")) for problem in found)
    ):
        found += _attempt("eval", lambda: build_eval_maskings(config))
    return list(dict.fromkeys(found))


def _check_endless(nodes: Config) -> list[str]:
    """What asks for epochs, where there are none."""
    found = TrainerSettings(**nodes.get("trainer", {})).endless_problems()
    for name, node in nodes.get("callbacks", {}).items():
        if node and (epochs := node.get("every_n_epochs")) is not None:
            key = f"callbacks.{name}.every_n_epochs"
            found.append(f"{key}={epochs}: the training rows have no end, and so no epochs; set {key}=null")
    return found


def _cheap_builds(nodes: Config) -> dict[str, Callable[[], object]]:
    """Constructors check their own values."""
    return {
        "data": lambda: build_source(nodes),
        "masking": lambda: build_masking(nodes),
        "schedule": lambda: build_schedule(nodes),
        "prepare": lambda: _build(nodes["prepare"]),
        "optim": lambda: build_optimizer(nodes)([{"params": [nn.Parameter(torch.zeros(1))]}]),
    }


def _build_meta_model(nodes: Config, further: dict[tuple[str, ...], Config]) -> None:
    """Builds the model without memory, for a vocabulary that nothing is known about yet."""
    sources = Sources(build_source(nodes), {endings: _build(node) for endings, node in further.items()})
    with torch.device("meta"):
        model = _build_model(nodes["model"], True, sources.packs_documents, vocab_size=8, seq_len=sources.own.seq_len)
    if isinstance(model, MayBeAnotherTask):
        model.check_masked_lm()


def _attempt(key: str, build: Callable[[], object]) -> list[str]:
    """Builds, and returns the reason if that fails."""
    try:
        build()
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        named = message.startswith(tuple(f"{group}." for group in _TOP_LEVEL))
        return [message if named else f"{key}: {message}"]
    return []


def _check_keys(prefix: str, node: Config, allowed: dict[str, Any], owner: str, optional: Sequence[str] = ()) -> list[str]:
    found = []
    for name, value in node.items():
        key = f"{prefix}.{name}" if prefix else name
        if name not in allowed:
            found.append(f"{key}: unknown key of {owner}{suggestion(name, list(allowed))}")
        else:
            found += _check_value(key, value, allowed[name])
    missing = [name for name in allowed if name not in node and name not in optional]
    return found + [f"{prefix}.{name}: no value given".lstrip(".") for name in missing]


def _check_value(key: str, value: Any, hint: Any) -> list[str]:
    if value == "???":
        return [f"{key}: no value given; add {key}=VALUE to the command"]
    if isinstance(value, dict) and (node := next(filter(is_dataclass, (hint, *get_args(hint))), None)):
        return _check_signature(key, value, node)
    if not matches(value, hint):
        return [f"{key}={value!r}: should be {_describe(hint)}"]
    return []


def _check_values(node: Config, allowed: dict[str, Any], check: Callable[[Config], list[str]]) -> list[str]:
    """What `check` says about the values that have the right type."""
    return check({name: value for name, value in node.items() if name in allowed and matches(value, allowed[name])})


def _check_names(config: Config) -> list[str]:
    names = ("name", "output_dir", "resume")
    return [f"{name}='': give it a value, or leave it out" for name in names if not config.get(name, "default").strip()]


def _check_sweep(sweep: Config) -> list[str]:
    found = []
    if isinstance(jobs := sweep.get("jobs", 1), str) and jobs != "auto":
        found.append(f"sweep.jobs={jobs}: give a number of runs at a time, or auto for one a core")
    at_least = {"jobs": 1, "retries": 0, "trials": 1}
    for name, least in at_least.items():
        value = sweep.get(name)
        if isinstance(value, int) and value < least:
            found.append(f"sweep.{name}={value}: give a number from {least}")
    return found


def _check_sizes(data: Config) -> list[str]:
    found = []
    if "batch_size" in data and data["batch_size"] < 1:
        found.append(f"data.batch_size={data['batch_size']}: give a number of rows above 0")
    if "num_workers" in data and data["num_workers"] < 0:
        found.append(f"data.num_workers={data['num_workers']}: give 0 (no worker processes) or more")
    return found


def _check_eval(evaluation: Config) -> list[str]:
    found = []
    for rate in evaluation.get("mask_rates") or []:
        if not 0 < rate <= 1:
            found.append(f"eval.mask_rates: {rate} is no masking rate; give rates above 0 and at most 1, e.g. [0.15, 0.3]")
    kind = evaluation.get("masking")
    if kind is not None and kind not in MASKINGS:
        found.append(_not_one_of("eval.masking", kind, tuple(MASKINGS)))
    for name, keys in (evaluation.get("data") or {}).items():
        found += _check_eval_name(name) or _check_value(f"eval.data.{name}", keys, dict)
    return found


def _check_eval_name(name: object) -> list[str]:
    """A name ends those of metrics: k0 gives val/loss_k0."""
    if not isinstance(name, str):  # a YAML key without quotes
        return [f"eval.data.{name}: is {_describe(type(name))}, not a name; give one such as k{name}"]
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return [f"eval.data.{name}: is no name; it ends those of metrics (val/loss_k0): use letters, digits, '_', '.' and '-'"]
    if re.match(r"(se|rate)(_|$)", name):
        taken = "val/excess_loss_se" if name.startswith("se") else "val/loss_rate_0.30"
        return [f"eval.data.{name}: other metrics end like that ({taken}); choose another name"]
    return []


def _check_further(config: Config, trusted: bool) -> list[str]:
    """The further sources to evaluate on: their keys and values, and whether the run's model can read them."""
    own, found = build_source(config, trusted), []
    for endings, node in _further_nodes(config).items():
        key = eval_data_key(endings)
        found += (
            [f"{key}.{name}: is not set in eval.data; data.{name} is meant for it too" for name in _LOADER_KEYS if name in node]
            or _check_object(key, node, Source, trusted)
            or _attempt(key, partial(_build_further, endings, node, own, trusted))
        )
    return found


def _check_object(key: str, node: Config, base: Any, trusted: bool) -> list[str]:
    if "_target_" not in node:
        return [f"{key}: has no _target_; it names the class, e.g. {key}._target_=package.module.Class"]
    try:
        target = resolve_target(node["_target_"], trusted)
    except UserError as error:
        return [f"{key}.{error}"]
    if not _is_subclass(target, base):
        wanted = base if isinstance(base, str) else base.__name__
        return [f"{key}._target_={node['_target_']}: is no subclass of {wanted}"]
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    return _check_signature(key, arguments, target)


def _is_subclass(target: Any, base: Any) -> bool:
    if base is None or not inspect.isclass(target):
        return True
    if isinstance(base, str):  # Lightning's: not imported here for its name
        return any(each.__name__ == base for each in target.__mro__)
    return issubclass(target, base)


def _check_signature(prefix: str, arguments: Config, target: Any) -> list[str]:
    """Unknown, missing and mistyped arguments of a callable."""
    parameters = inspect.signature(target).parameters
    function = target.__init__ if inspect.isclass(target) and "__init__" in vars(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    group = prefix.split(".")[0]
    provided = {"model": _FROM_SOURCE, "optim": ("params",), "callbacks": _FROM_RUN, "logger": _FROM_RUN}.get(group, ())
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    owner = target.__name__ if target is not TrainerSettings else "the trainer"
    found = []
    for name, value in arguments.items():
        key = f"{prefix}.{name}"
        if name in provided and group in ("model", "optim"):
            found.append(f"{key}: is not set in a config; it comes from the {'data' if group == 'model' else 'model'}")
        elif target is TrainerSettings and name in _OWNED_TRAINER_KEYS:
            found.append(f"{key}: mlm_lightning sets this itself; {_OWNED_TRAINER_KEYS[name]}")
        elif name not in named and not takes_any:
            siblings = sorted(named - set(provided)) + (list(_LOADER_KEYS) if group == "data" else [])
            found.append(f"{key}: unknown key of {owner}{suggestion(name, siblings)}")
        else:
            found += _check_value(key, value, hints.get(name, Any))
    for name in sorted(named - set(arguments) - set(provided)):
        if parameters[name].default is inspect.Parameter.empty:
            found.append(f"{prefix}.{name}: no value given; {owner} needs it")
    return found


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value of a config has the type that a signature asks for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(matches(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is typing.Annotated:
        return matches(value, arguments[0])
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str or hint is Path:
        return isinstance(value, str)
    if hint is torch.Tensor:  # torch's optimizers take `float | Tensor`; a config holds none
        return False
    if is_dataclass(hint):
        return isinstance(value, dict)
    container = origin or hint
    if isinstance(container, type) and issubclass(container, dict | typing.Mapping):
        return isinstance(value, dict)
    if isinstance(container, type) and issubclass(container, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if (length := _tuple_length(hint)) is not None:
            return len(value) == length and all(map(matches, value, arguments))
        element = arguments[0] if arguments else Any
        return all(matches(each, element) for each in value)
    return True


def _tuple_length(hint: Any) -> int | None:
    """2 for `tuple[float, float]`; None where a hint fixes no length."""
    arguments = get_args(hint)
    return len(arguments) if get_origin(hint) is tuple and Ellipsis not in arguments else None


def _describe(hint: Any) -> str:
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        None: "null",
    }
    names |= {dict: "a group of keys", Path: "a path"}
    if hint in names:
        return names[hint]
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(each) for each in get_args(hint) if each is not torch.Tensor))
    if is_dataclass(hint):
        return f"{names[dict]} ({', '.join(field.name for field in fields(hint))})"
    if get_origin(hint) is Literal:
        return " or ".join(str(each) for each in get_args(hint))
    container = get_origin(hint) or hint
    if isinstance(container, type) and issubclass(container, dict | typing.Mapping):
        return names[dict]
    if isinstance(container, type) and issubclass(container, Sequence):
        length = _tuple_length(hint)
        return "a list" if length is None else f"a list of {length} values"
    return getattr(hint, "__name__", str(hint))


def _not_one_of(key: str, value: object, options: Sequence[object]) -> str:
    names = list(dict.fromkeys(str(option) for option in options))
    return f"{key}={value}: unknown{suggestion(str(value), names)} There are: {', '.join(names)}"


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """`; did you mean 'candidate'?`, or a full stop."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


# building


def resolve_target(path: Any, trusted: bool = True) -> Any:
    """The class that a `_target_` names. An untrusted one is imported only from our own list of modules."""
    module, _, name = str(path).rpartition(".")
    if not trusted and module not in TRUSTED_MODULES:
        raise UserError(f"_target_={path}: is none of this package's own classes; --trust runs it all the same")
    try:
        target = getattr(import_module(module), name)
    except Exception as error:  # importing a user's module may raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"_target_={path}: cannot be imported: {reason}") from error
    if not callable(target):
        raise UserError(f"_target_={path}: is no class")
    if not trusted and (getattr(target, "__module__", "") not in TRUSTED_MODULES or not inspect.isclass(target)):
        raise UserError(f"_target_={path}: is none of this package's own classes; --trust runs it all the same")
    return target


def _build(node: Config, trusted: bool = True, **provided: Any) -> Any:
    """Builds what a node names, with those of `provided` that its signature asks for."""
    target = resolve_target(node["_target_"], trusted)
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    wanted = inspect.signature(target).parameters
    arguments |= {name: value for name, value in provided.items() if name in wanted and name not in arguments}
    return target(**arguments)


def build_source(config: Config, trusted: bool = True) -> Source:
    return _build(_own_node(config), trusted)


def _own_node(config: Config) -> Config:
    return {name: value for name, value in config["data"].items() if name not in _LOADER_KEYS}


def prepare_sources(config: Config, trusted: bool = True, evaluated: Split | None = None) -> Sources:
    """The sources of a checked config, built and prepared.

    Raises ValueError or FileNotFoundError for data that will not do: its documents, vocabularies that differ, or no split
    `evaluated`.
    """
    # a run's folder, which may have come from anywhere, does not say where to work
    workers = _build(config["prepare"]) if trusted and config.get("prepare") else None
    own = build_source(config, trusted)
    _prepare(own, workers)
    if evaluated is not None:
        own.rows(evaluated)
    sources = Sources(own)
    for endings, node in _further_nodes(config).items():
        if node.get("tokenizer") == TRAIN and hasattr(own, "tokenizer_keys"):
            node |= own.tokenizer_keys()  # training another on these documents would give them other tokens
        source = sources.further[endings] = _build_further(endings, node, own, trusted)
        with _named(endings):
            _prepare(source, workers)
            if evaluated is not None:
                source.rows(evaluated)
        _check_vocab(endings, source, own)
    return sources


def _prepare(source: Source, workers: Workers | None) -> None:
    takes_workers = "workers" in inspect.signature(source.prepare).parameters
    source.prepare(**({"workers": workers} if takes_workers else {}))


def _build_further(endings: tuple[str, ...], node: Config, own: Source, trusted: bool) -> Source:
    """A further source to evaluate on; a ValueError where a model of `own` can't read it, as far as that is known by now."""
    with _named(endings):
        source = _build(node, trusted)
    if source.seq_len != own.seq_len:
        raise ValueError(
            f"{eval_data_key(endings)}: its rows have {source.seq_len} tokens, and those of data {own.seq_len}; "
            "one model reads both, so evaluate on rows as long as the run's"
        )
    if all(type(each).prepare is Source.prepare for each in (own, source)):  # else the vocabulary may be unknown so far
        _check_vocab(endings, source, own)
    return source


def _check_vocab(endings: tuple[str, ...], source: Source, own: Source) -> None:
    if not source.vocab.has_tokens_of(own.vocab):
        raise ValueError(
            f"{eval_data_key(endings)}: its vocabulary ({source.vocab.size} tokens) is not that of data "
            f"({own.vocab.size} tokens); one model reads both, so evaluate on data of the same vocabulary"
        )


@contextmanager
def _named(endings: tuple[str, ...]) -> Iterator[None]:
    """What a further source refuses names it, instead of the run's own data."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        key, message = eval_data_key(endings), str(error)
        named = f"{key}.{message.removeprefix('data.')}" if message.startswith("data.") else f"{key}: {message}"
        raise ValueError(named) from error


def eval_data_key(endings: tuple[str, ...]) -> str:
    """`eval.data.k0` for `("_k0",)`."""
    return f"eval.data.{endings[0].removeprefix('_')}"


def _further_nodes(config: Config) -> dict[tuple[str, ...], Config]:
    """The keys of each further source, by the endings of its metrics' names."""
    return {endings: node for endings, node in _source_nodes(config).items() if "" not in endings}


def _source_nodes(config: Config) -> dict[tuple[str, ...], Config]:
    """The keys of each source to evaluate on, by the endings of its metrics' names: first the run's own (`""`). Names for equal
    keys are endings of one, which is evaluated once. A node with a `_target_` is whole, any other says what differs."""
    own = _own_node(config)
    nodes = {"": own}
    for name, keys in (config["eval"].get("data") or {}).items():  # runs from before it have none
        nodes[f"_{name}"] = dict(keys) if "_target_" in keys else own | keys
    alike: dict[str, list[str]] = {}
    for ending, node in nodes.items():
        alike.setdefault(json.dumps(node, sort_keys=True), []).append(ending)
    return {tuple(endings): nodes[endings[0]] for endings in alike.values()}


def build_masking(config: Config, trusted: bool = True) -> Masking:
    return _build(config["masking"], trusted)


def build_eval_maskings(config: Config, trusted: bool = True) -> dict[tuple[str, ...], Masking]:
    """The frozen masking of each condition to evaluate, with the endings of its metrics' names: first the training's, then
    further rates, then the training's on further sources."""
    training = build_masking(config, trusted)
    evaluation = config["eval"]
    rate = getattr(training.frozen(), "rate", None)  # of a scheduled one: the last
    kind = evaluation["masking"]
    if kind is None:
        masking = training.frozen()
    elif kind == "single":
        masking = Single().frozen()
    else:
        masking = MASKINGS[kind](**({} if rate is None else {"rate": rate})).frozen()
    rates = dict.fromkeys(evaluation["mask_rates"] or [])
    plain, *further = _source_nodes(config)
    if rate in rates:
        plain += (f"_rate_{rate:.2f}",)
    conditions: dict[tuple[str, ...], Masking] = {plain: masking}
    for each in rates:
        if each != rate:
            conditions[(f"_rate_{each:.2f}",)] = masking.frozen(rate=each)
    return conditions | dict.fromkeys(further, masking)


def build_model(
    config: Config, vocab: Vocab, seq_len: int, trusted: bool = True, separate_documents: bool = False
) -> nn.Module:
    """The model for a source, initialised as a function of the seed alone. With `separate_documents`, it keeps documents that
    share a row apart; a ValueError where it can't."""
    seed_torch(config["seed"], Stream.INITIALISATION)
    provided = {"vocab_size": vocab.size, "seq_len": seq_len, "pad_token_id": vocab.pad_id}
    return _build_model(config["model"], trusted, separate_documents, **provided)


def _build_model(node: Config, trusted: bool, separate_documents: bool, **provided: Any) -> nn.Module:
    target = resolve_target(node["_target_"], trusted)
    if separate_documents and "separate_documents" not in inspect.signature(target).parameters:
        raise ValueError(
            f"data.packing=sentence_pack: the model {target.__name__} cannot keep documents apart, having no argument "
            "separate_documents; choose data.packing=chunk or document, or model=transformer"
        )
    return _build(node, trusted, separate_documents=separate_documents, **provided)


def build_optimizer(config: Config) -> Callable[[list[dict[str, Any]]], Optimizer]:
    target = resolve_target(config["optim"]["_target_"])
    node = {name: value for name, value in config["optim"].items() if name != "_target_"}
    if "lr" in node and not node["lr"] > 0:
        raise ValueError(f"optim.lr={node['lr']}: give a learning rate above 0")
    if isinstance(node.get("betas"), list):
        node["betas"] = tuple(node["betas"])
    if "fused" in node and str(config.get("trainer", {}).get("precision")).startswith("16"):
        node["fused"] = False  # a fused optimizer would undo the scaling of float16 gradients only after they were clipped
    return partial(target, **node)


def build_schedule(config: Config) -> Callable[[int, int], float]:
    return _build(config["schedule"])


def build_each(nodes: Config | None, **provided: Any) -> list[Any]:
    """The callbacks or loggers of a config; a null switches one off."""
    return [_build(node, **provided) for node in (nodes or {}).values() if node]

"""What a config asks for that no run of it could give, as far as it is known beforehand: memory, metrics.

Sizes are lower bounds: what is refused here can't work, and what is not refused may still be too large.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mlm_lightning.config.settings import Loader, Node, SweepSettings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.source import Source
from mlm_lightning.errors import ConfigError, mistakes
from mlm_lightning.masking import Masking
from mlm_lightning.processes import memory
from mlm_lightning.tasks import MLM
from mlm_lightning.values import suggestion

_GB = 10**9
_TOKEN = 3 * 8  # bytes: of the row, the input and the label
_PARAMETER = 2 * 4  # bytes: itself and its gradient
_DEVICE, _WORKER = 200 * 2**20, 20 * 2**20  # bytes of a process that trains, and of one that reads rows
_SUMMARY = ("best/val/loss", "best/step", "steps", "tokens", "tokens_per_second", "seconds")
"""What a run's summary has beside the metrics of its last validation."""
_KNOWN = ("mlm_lightning.", "lightning.")
"""Where callbacks come from that log no metrics of their own."""


def too_large_batches(loader: Loader, sources: Sequence[Source]) -> list[ConfigError]:
    """Of training or evaluation."""
    seq_len = max(source.seq_len for source in sources)
    what = f"so many rows of {seq_len:,} tokens"
    return _beyond(memory(), "data.batch_size", loader.batch_size, loader.batch_size * seq_len * _TOKEN, what)


def too_large_training(trainer: TrainerSettings | None, loader: Loader | None) -> list[ConfigError]:
    """Processes that don't fit in memory."""
    found = []
    if loader:
        what = "so many processes"
        found += _beyond(memory(), "data.num_workers", loader.num_workers, loader.num_workers * _WORKER, what)
    if trainer:
        found += _beyond(memory(), "trainer.devices", trainer.devices, trainer.num_processes() * _DEVICE, "so many processes")
    return found


def growing_and_compiled(trainer: TrainerSettings | None, loader: Loader | None) -> list[ConfigError]:
    """Layers are compiled for one shape."""
    if trainer is None or loader is None or trainer.compile is not True:
        return []
    growing = {"data.length_schedule": loader.length_schedule, "trainer.batch_schedule": trainer.batch_schedule}
    problem = "layers are compiled for one shape, and with {} it changes"
    return [
        ConfigError("trainer.compile", True, problem.format(key), f"set trainer.compile=false, or {key}=null")
        for key, schedule in growing.items()
        if schedule is not None
    ]


def nothing_masked(parts: Mapping[str, Any], overrides: Sequence[str]) -> Iterator[ConfigError]:
    """A task that reads whole rows has no use for what says how they are masked."""
    problem, remedy = "has no effect: task=classify reads whole rows", "leave it out"
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0] == "masking":
            yield ConfigError(key, value, problem, remedy)
    for name in ("mask_rates", "masking"):
        if (given := getattr(parts["eval"], name, None)) is not None:
            yield ConfigError(f"eval.{name}", given, problem, remedy)


def too_large_model(model: Node, built: nn.Module) -> list[ConfigError]:
    """A model that can't be trained on any device here, sharded or not."""
    parameters = sum(parameter.numel() for parameter in built.parameters())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    there = max(memory(), sum(torch.cuda.get_device_properties(device).total_memory for device in devices))
    sizes = {name: value for name, value in model.arguments.items() if isinstance(value, int)}
    largest = max(sizes, key=lambda name: sizes[name], default="_target_")
    what = f"the model's {parameters:,} parameters and their gradients"
    return _beyond(there, f"model.{largest}", model.arguments.get(largest, model.target), parameters * _PARAMETER, what)


def _beyond(there: int, key: str, value: Any, needed: int, what: str) -> list[ConfigError]:
    """An error where `needed` bytes are more than there are."""
    if needed <= there:
        return []
    problem = f"{what} take at least {needed / _GB:,.0f} GB, and there are {there / _GB:,.0f} GB here"
    return [ConfigError(key, value, problem, "give less")]


def unknown_metrics(
    parts: Mapping[str, Any], sources: Mapping[tuple[str, ...], Node], maskings: Mapping[tuple[str, ...], Masking]
) -> Iterator[ConfigError]:
    """Metrics that are asked for by name, and that no validation of this run has. `parts` are those of Settings."""
    data, sweep = parts["data"], parts["sweep"]
    by_name = {name: node for names, node in sources.items() for name in names}
    names: dict[str, None] = {}
    has_ngrams = type(data.instance).ngrams is not Source.ngrams and not data.instance.endless
    for ends in maskings:
        has_oracle = type(by_name.get(ends[0], data).instance).oracle is not Source.oracle
        task = parts["task"] or MLM()
        with mistakes():
            sums = task.sums(2, further_oracles=parts["oracles"] if "" in ends else ())
            metrics = sums.compute(has_oracle, has_ngrams and isinstance(task, MLM))
        names |= {f"val/{metric}{'_' * bool(end)}{end}": None for end in ends for metric in metrics}
    others = [type(task).__module__, *(node.target for node in parts["callbacks"].values())]
    known = all(each.startswith(_KNOWN) for each in others)  # else it shows in the first validation
    for key, name in asked_metrics(parts["callbacks"], sweep).items():
        if key == "sweep.objective" and name in _SUMMARY:
            problem = "is known at a run's end alone, so that a search can't give up runs by it"
            yield ConfigError(key, name, problem, "set sweep.prune=false")
        elif known and name not in names:
            yield no_metric(key, name, names)


def asked_metrics(callbacks: Mapping[str, Node], sweep: SweepSettings | None) -> dict[str, str]:
    """The metrics of validations that a search, and monitors of callbacks that are ours or Lightning's, ask for, by their
    keys."""
    ours = {f"callbacks.{name}.monitor": node for name, node in callbacks.items() if node.target.startswith(_KNOWN)}
    asked = {key: node.arguments.get("monitor") for key, node in ours.items()}
    if sweep is not None and (sweep.objective not in _SUMMARY or (sweep.trials is not None and sweep.prune)):
        asked["sweep.objective"] = sweep.objective
    return {key: name for key, name in asked.items() if isinstance(name, str)}


def no_metric(key: str, value: str, names: Collection[str]) -> ConfigError:
    return ConfigError(key, value, f"is no metric of this run{suggestion(value, list(names))} There are: {', '.join(names)}")

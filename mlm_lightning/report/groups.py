"""Runs in groups: what differs among them is an axis, a seed that makes replicates, or follows from an axis."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlm_lightning.config.shipped import name_of
from mlm_lightning.config.signatures import MOVED
from mlm_lightning.report.learned import leak
from mlm_lightning.report.metric import Interval, Metric, interval, mean
from mlm_lightning.report.results import NOT_SET, Result
from mlm_lightning.runs.identity import LATER_KEYS

MIN_MONOTONE = 5
"""Numbers that rise or fall together hardly by chance."""


@dataclass
class Axis:
    """A key that was swept."""

    key: str
    values: list[Any]
    also: list[str] = field(default_factory=list)
    """Keys that only change where this one does."""

    @property
    def name(self) -> str:
        return self.key.removesuffix("._target_")

    @property
    def noted(self) -> list[str]:
        """Of `also`, what does not go without saying: other data have other keys."""
        return [key for key in self.also if not (self.key == "data._target_" and key.startswith("data."))]

    @property
    def numeric(self) -> bool:
        return all(is_number(value) for value in self.values)

    @property
    def logarithmic(self) -> bool:
        """Whether the values are more evenly spaced on a logarithmic scale."""
        if not self.numeric or min(self.values) <= 0 or max(self.values) < 4 * min(self.values):
            return False
        if len(self.values) == 2:
            return max(self.values) >= 10 * min(self.values)
        return _unevenness([math.log(value) for value in self.values]) < 0.6 * _unevenness(self.values)

    def place(self, values: dict[str, Any]) -> float:
        """Where a group of these values stands on a plot: at its number, or at the index of its category."""
        value = values[self.key]
        return float(value) if self.numeric else [canonical(each) for each in self.values].index(canonical(value))


def _unevenness(values: Sequence[float]) -> float:
    """How far sorted values lie from even steps, as a share of their range; random values' as well as a grid's."""
    low, high, last = values[0], values[-1], len(values) - 1
    return max(abs((value - low) / (high - low) - index / last) for index, value in enumerate(values))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_text(value: Any) -> str:
    """A config's value in a table: `1e-3`, `null`; of a `_target_`, the name of the config that has it, or the class."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if not re.fullmatch(r"\w+(\.\w+)+\.[A-Z]\w*", str(value)):
        return str(value)
    return name_of(MOVED.get(value, value)) or value.rpartition(".")[2]


def canonical(value: Any) -> str:
    """Equal for equal values: 1 is 1.0, but not true."""
    return repr(float(value)) if is_number(value) else json.dumps(value, sort_keys=True, default=str)


def sort_key(value: Any) -> tuple[int, float, str]:
    """Numbers by size, before all else by its text."""
    return (0, value, "") if is_number(value) else (1, 0.0, as_text(value))


def differing(results: Sequence[Result]) -> dict[str, list[Any]]:
    """The keys that decide the result and differ among the runs that have a config, each with its value in every one."""
    rows = [result.settings for result in results if result.config]
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key, LATER_KEYS.get(key, NOT_SET)) for row in rows] for key in keys}
    return {key: column for key, column in columns.items() if len(set(map(canonical, column))) > 1}


def find_axes(results: Sequence[Result], swept: Sequence[str] = ()) -> tuple[list[Axis], list[str]]:
    """The axes of some runs, and the keys of their replicates (those that end in `seed`).

    model.d_model   model.nhead   optim.lr   seed
    32              2             0.1        0          axes        model.d_model (and with it model.nhead), optim.lr
    32              2             0.2        1     ─►   replicates  seed
    64              4             0.1        0
    64              4             0.2        1

    What `swept` names is an axis wherever it differs. Of all else, a key that only changes where axes do (as one YAML sets
    several keys) is no axis of its own: it is noted with the axis.
    """
    columns = differing(results)
    replicates = [key for key in columns if key.endswith("seed")]
    texts = {key: list(map(canonical, column)) for key, column in columns.items() if key not in replicates}
    named = list(dict.fromkeys(found for key in swept if (found := _key_of(key, list(texts)))))

    def rank(key: str) -> tuple[Any, ...]:
        """What should stand for several keys that change together comes first."""
        return (not key.endswith("_target_"), -len(set(texts[key])), not all(map(is_number, columns[key])), key)

    num_groups = len(set(zip(*texts.values(), strict=True)))
    axes: dict[str, Axis] = {}
    for key in [*named, *sorted(texts.keys() - set(named), key=rank)]:
        leading = None if key in named else _leading(texts[key], {axis: texts[axis] for axis in axes}, bool(named), num_groups)
        if leading is None:
            unique = {canonical(value): value for value in columns[key]}
            axes[key] = Axis(key, sorted(unique.values(), key=sort_key))
        else:
            axes[leading].also.append(key)
    for axis in axes.values():
        if axis.key.endswith("._target_"):  # a class that has a seed, or another one, is not repeated by it
            own = [key for key in replicates if key.startswith(f"{axis.name}.")]
            own = [key for key in own if _is_function(list(map(canonical, columns[key])), texts[axis.key])]
            axis.also += own
            replicates = [key for key in replicates if key not in own]
    return list(axes.values()), replicates


def _key_of(swept: str, keys: list[str]) -> str | None:
    """The config's key behind a swept one: `masking=span` changes `masking._target_` and what belongs to it."""
    if swept in keys:
        return swept
    inside = [key for key in keys if key.startswith(f"{swept}.")]
    return min(inside, key=lambda key: not key.endswith("_target_"), default=None)


def _leading(column: list[str], axes: dict[str, list[str]], named: bool, num_groups: int) -> str | None:
    """The axis that a column is a function of. Where the sweep named its axes, also that of all axes together: the last."""
    for key, values in axes.items():
        if _is_function(column, values) and (named or len(set(values)) < num_groups or _is_monotone(column, values)):
            return key
    together = list(zip(*axes.values(), strict=True))
    return list(axes)[-1] if named and _is_function(column, together) else None


def _is_function(column: Sequence[Any], of: Sequence[Any]) -> bool:
    return len(set(zip(of, column, strict=True))) == len(set(of))


def _is_monotone(column: list[str], of: list[str]) -> bool:
    """Whether a function is more than chance though each group has a value of its own, as in a random search: of such values
    anything is a function. Then many numbers must rise or fall together."""
    pairs = set(zip(of, column, strict=True))
    if len(pairs) < MIN_MONOTONE:
        return True
    try:
        ordered = [other for _, other in sorted((float(value), float(other)) for value, other in pairs)]
    except ValueError:
        return True
    return ordered in (sorted(ordered), sorted(ordered, reverse=True))


@dataclass
class Group:
    """Runs that differ in nothing but seeds. A metric may be given by the name of its column."""

    values: dict[str, Any]
    """By the axes' keys."""
    results: list[Result]

    def measured(self, metric: str | Metric) -> list[float]:
        """The runs' values, as far as they are numbers."""
        found = [_metric(metric).of(result) for result in self.results]
        return [value for value in found if math.isfinite(value)]

    def interval(self, metric: str | Metric) -> Interval | None:
        return interval(self.measured(metric))

    def mean(self, metric: str | Metric) -> float:
        return mean(self.measured(metric))

    @property
    def leaks(self) -> bool:
        """Whether all its runs lie below the best possible loss: they see their labels."""
        return all(leak(result.summary) for result in self.results)

    def limit(self, metric: str | Metric) -> float:
        """The oracle's, where it is the same kind of number; the mean over seeds of the data."""
        return mean([_metric(metric).limit(result) for result in self.results])

    def counted(self, metric: str | Metric, kind: str) -> float:
        """What counts of the training text reach of it, `unigram` or `bigram`."""
        return mean([_metric(metric).counted(result, kind) for result in self.results])


def _metric(metric: str | Metric) -> Metric:
    return Metric(metric) if isinstance(metric, str) else metric

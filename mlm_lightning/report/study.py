"""What was swept, and what came of it: groups of runs that differ in seeds alone, and the best of them.

masking.rate   seed   val/loss          masking.rate    val/loss
0.1            0      0.981        ─►   0.1             0.984 ± 0.038  (n = 2)
0.1            1      0.987             0.4             1.052 ± 0.025  (n = 2)
0.4            0      1.050
0.4            1      1.054             masking.rate is an axis, seed makes replicates
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlm_lightning.report.axes import NOT_SET, Axis, as_text, canonical, find_axes, sort_key
from mlm_lightning.report.metric import Metric, choose_metric, conditions_of
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.report.statistics import Interval, interval


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
        found = self.interval(metric)
        return math.nan if found is None else found.mean

    def limit(self, metric: str | Metric) -> float:
        """The oracle's, where it is the same kind of number; the mean over seeds of the data."""
        found = interval([_metric(metric).limit(result) for result in self.results])
        return math.nan if found is None else found.mean


def _metric(metric: str | Metric) -> Metric:
    return Metric((metric,)) if isinstance(metric, str) else metric


@dataclass
class Study:
    """What a report shows."""

    collection: Collection
    axes: list[Axis]
    replicates: list[str]
    metric: Metric

    @property
    def complete(self) -> list[Result]:
        return self.collection.complete

    @cached_property
    def conditions(self) -> list[str]:
        return conditions_of(self.complete)

    @cached_property
    def groups(self) -> list[Group]:
        """Of the complete runs, in the order of the axes' values."""
        return self.group(self.complete)

    def group(self, results: Sequence[Result]) -> list[Group]:
        found: dict[tuple[str, ...], Group] = {}
        for result in results:
            values = {axis.key: self.value(result, axis) for axis in self.axes}
            found.setdefault(tuple(map(canonical, values.values())), Group(values, [])).results.append(result)
        return sorted(found.values(), key=lambda group: [sort_key(value) for value in group.values.values()])

    def value(self, result: Result, axis: Axis) -> Any:
        default = None if result.config else result.settings.get(axis.name)
        return result.settings.get(axis.key, NOT_SET if default is None else default)

    def name(self, group: Group) -> str:
        """`masking.rate=0.1, model.num_layers=2`."""
        return ", ".join(f"{axis.name}={as_text(group.values[axis.key])}" for axis in self.axes) or "all runs"

    @cached_property
    def ranked(self) -> list[Group]:
        """The groups that have the metric, the best one first."""
        return self.rank(self.metric)

    def rank(self, metric: Metric) -> list[Group]:
        scored = [(found.mean, group) for group in self.groups if (found := group.interval(metric)) is not None]
        return [group for _, group in sorted(scored, key=lambda each: -each[0] if metric.maximize else each[0])]

    @property
    def best(self) -> Result | None:
        """The best run of the best group."""
        if not self.ranked:
            return None
        sign = -1 if self.metric.maximize else 1
        runs = [result for result in self.ranked[0].results if math.isfinite(self.metric.of(result))]
        return min(runs, key=lambda result: sign * self.metric.of(result))

    @property
    def has_oracle(self) -> bool:
        return any(math.isfinite(result.value("val/oracle_loss")) for result in self.complete)


def study(collection: Collection, metric: str | None = None) -> Study:
    """Finds the axes, and a metric that may be compared across them. Raises UserError for a metric that no run has."""
    axes, replicates = find_axes(collection.results, collection.swept)
    return Study(collection, axes, replicates, choose_metric(collection, axes, metric))

"""What came of a sweep: groups of runs that differ in seeds alone, what they are compared by, and which is best.

masking.rate   seed   at 0.1   at 0.4          masking.rate    at mask rate 0.10       at mask rate 0.40
0.1            0      0.981    1.060     ─►    0.1             0.984 ± 0.038 (best)    1.062 ± 0.025
0.1            1      0.987    1.064           0.4             0.999 ± 0.021           1.052 ± 0.025 (best)
0.4            0      0.997    1.050
0.4            1      1.001    1.054           no group is best: it depends on the condition

Where the sweep changes the task (its masks, its data), plain `val/loss` is no fair comparison, as a lower one may be an easier
question, and neither is the excess over the oracle: of the same weights it differs from task to task. Groups are then compared
under one condition at a time, out of those that all runs were evaluated under (`val/loss_rate_0.30`, `val/loss_k2`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlm_lightning.errors import UserError
from mlm_lightning.report.compare import Standing
from mlm_lightning.report.groups import Axis, Group, as_text, canonical, find_axes, is_number, sort_key
from mlm_lightning.report.metric import DEFAULT, Metric
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.runs.evaluations import changes_task, natural
from mlm_lightning.tasks import MLM, Classify
from mlm_lightning.values import suggestion


@dataclass
class Study:
    """What a report shows."""

    collection: Collection
    axes: list[Axis]
    replicates: list[str]
    metrics: list[Metric]
    """What groups are compared by: one, or one for each condition; none where nothing compares them fairly."""
    tasks: list[str] = field(default_factory=list)
    """The names of the axes that change the task."""
    conditions: list[str] = field(default_factory=list)
    """Those that every complete run was evaluated under."""

    @property
    def metric(self) -> Metric:
        """The one that stands for all, in words."""
        return self.metrics[0] if self.metrics else Metric()

    @property
    def by_condition(self) -> bool:
        """Whether groups are compared under one condition at a time."""
        return bool(self.tasks) and bool(self.metrics) and self.metrics[0].condition in self.conditions

    @cached_property
    def per(self) -> str:
        """What losses are means over."""
        labelled = any("task.label" in result.settings for result in self.collection.complete)
        return Classify.unit if labelled else MLM.unit

    @cached_property
    def groups(self) -> list[Group]:
        """Of the complete runs, in the order of the axes' values."""
        return self.group(self.collection.complete)

    def group(self, results: Sequence[Result]) -> list[Group]:
        found: dict[tuple[str, ...], Group] = {}
        for result in results:
            values = {axis.key: result.get(axis.key) for axis in self.axes}
            found.setdefault(tuple(map(canonical, values.values())), Group(values, [])).results.append(result)
        return sorted(found.values(), key=lambda group: list(map(sort_key, group.values.values())))

    def name(self, group: Group) -> str:
        """`masking.rate=0.1, model.num_layers=2`."""
        return ", ".join(f"{axis.name}={as_text(group.values[axis.key])}" for axis in self.axes) or "all runs"

    @cached_property
    def standings(self) -> list[Standing]:
        """The groups by each metric that some have."""
        ranked = ((metric, self.rank(metric)) for metric in self.metrics)
        return [Standing.of(groups, metric, self.replicates) for metric, groups in ranked if groups]

    @property
    def ranked(self) -> list[Group]:
        """The groups, the best one first where there is one metric; else in the order of their values."""
        return self.standings[0].ranked if len(self.standings) == 1 else self.groups

    def rank(self, metric: Metric) -> list[Group]:
        measured = [group for group in self.groups if group.measured(metric)]
        measured = [group for group in measured if not group.leaks] or measured  # no answer is better for having been seen
        return sorted(measured, key=lambda group: group.mean(metric), reverse=metric.maximize)

    @property
    def winner(self) -> Group | None:
        """The group that is best by every metric."""
        best = [standing.best for standing in self.standings]
        return best[0] if best and all(each is best[0] for each in best) else None

    @property
    def best(self) -> Result | None:
        """The best run of the group that wins."""
        return None if self.winner is None else self.best_run(self.winner, self.metrics)

    def best_run(self, group: Group, metrics: Sequence[Metric]) -> Result | None:
        """By the mean of some metrics, which are the same for all runs of a group."""
        means = {result.folder: sum(metric.of(result) for metric in metrics) for result in group.results}
        runs = [result for result in group.results if math.isfinite(means[result.folder])]
        choose = max if metrics[0].maximize else min
        return choose(runs, key=lambda result: means[result.folder], default=None)

    def is_starred(self, result: Result, metric: Metric) -> bool:
        """Whether a table marks this run in the column of a metric: the best run of the best group."""
        return any(each.metric == metric and result is self.best_run(each.best, [metric]) for each in self.standings)


def study(collection: Collection, metric: str | None = None) -> Study:
    """Finds the axes, and metrics that may be compared across them. Raises UserError for a metric that no run has."""
    axes, replicates = find_axes(collection.results, collection.swept)
    complete = collection.complete
    settings: Mapping[str, Any] = complete[0].settings if complete else {}
    changed = {axis.name: [key for key in (axis.key, *axis.also) if changes_task(key, settings)] for axis in axes}
    tasks = [name for name, keys in changed.items() if keys]
    conditions = conditions_of(complete, [key for keys in changed.values() for key in keys])
    return Study(collection, axes, replicates, choose_metrics(collection, tasks, conditions, metric), tasks, conditions)


def choose_metrics(collection: Collection, tasks: list[str], conditions: list[str], asked: str | None) -> list[Metric]:
    """The one that was asked for, else the sweep's objective, else those that compare all runs fairly. Raises UserError for a
    metric that no run has."""
    complete, objective = collection.complete, collection.objective
    chosen = [Metric(f"{DEFAULT}_{each}") for each in conditions] if tasks else [Metric()]
    if asked:
        numbers = sorted({key for result in complete for key, value in result.summary.items() if is_number(value)})
        if complete and asked not in numbers:
            there = ", ".join(numbers)
            raise UserError(f"--metric {asked}: no complete run has it{suggestion(asked, numbers)} There are: {there}")
        chosen = [Metric(asked, "accuracy" in asked)]
    # a grid can have been told an objective that its runs don't have
    elif objective and any(objective in result.summary for result in complete):
        chosen = [Metric(objective, collection.maximize, "the sweep names it as its objective")]
    own = [each for each in chosen if tasks and each.condition not in conditions]
    caution = f"each run has it on its own task, which {' and '.join(tasks)} changes: an easier task looks like a better run"
    return [
        Metric(each.name, each.maximize, f"{each.note}; {caution}".lstrip("; ")) if each in own else each for each in chosen
    ]


def conditions_of(results: Sequence[Result], changed: Sequence[str] = ()) -> list[str]:
    """The evaluation conditions that every complete run has, in natural order: `rate_0.30`, `k2`. Where the keys `changed`
    change the task, those that are the same for all: `rate_0.30` is at each run's own filter level."""
    prefix = f"{DEFAULT}_"
    found = [{name.removeprefix(prefix) for name in result.summary if name.startswith(prefix)} for result in results]
    common = set.intersection(*found) if found else set()
    evaluated = set.intersection(*(set(result.evaluated) for result in results)) if results else set()

    def is_same(name: str) -> bool:
        if name in evaluated or not changed:
            return True
        if name.startswith("rate_"):
            return set(changed) <= {"masking.rate", "masking.rate.end"}
        return all(f"eval.{key.replace('.', f'.{name}.', 1)}" in result.settings for key in changed for result in results)

    return sorted(filter(is_same, common), key=natural)

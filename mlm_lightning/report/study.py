"""What was swept, and what came of it: axes from the configs, groups of seeds, means with intervals.

    masking.rate   seed   val/loss          masking.rate    val/loss
    0.1            0      0.981        ─►   0.1             0.984 ± 0.038  (n = 2)
    0.1            1      0.987             0.4             1.052 ± 0.025  (n = 2)
    0.4            0      1.050
    0.4            1      1.054             masking.rate is an axis, seed makes replicates

An evaluation condition (`val/loss_rate_0.30`, `val/loss_k2`) is a further axis: the same weights, measured elsewhere.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from mlm_lightning.errors import UserError
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.values import suggestion

NOT_SET = "not set"
DEFAULT = "val/loss"
MANY = 5  # values, of which a coincidence is unlikely

# Keys of masking and data that change how a model is trained, and not what it is asked in evaluation.
_TRAINING_ALONE = ("data.batch_size", "data.train_size", "masking.mask_share", "masking.random_share")


# numbers


@dataclass(frozen=True)
class Interval:
    """A mean and, of two values or more, half of its 95 % interval (Student's t, over seeds)."""

    mean: float
    half: float
    n: int

    def overlaps(self, other: "Interval") -> bool:
        halves = (0.0 if math.isnan(each.half) else each.half for each in (self, other))
        return abs(self.mean - other.mean) <= sum(halves)


def interval(values: Sequence[float]) -> Interval | None:
    """None where no value is a number."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    n, mean = len(finite), sum(finite) / len(finite)
    if n == 1:
        return Interval(mean, math.nan, 1)
    variance = sum((value - mean) * (value - mean) for value in finite) / (n - 1)  # ** 2 raises where * is inf
    return Interval(mean, t_quantile(n - 1) * math.sqrt(variance / n), n)


@lru_cache
def t_quantile(df: int, share: float = 0.95) -> float:
    """The t that a Student variable of `df` degrees of freedom stays within, on either side of 0, with probability `share`."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if _t_share(theta, df) < share else (low, theta)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_share(theta: float, df: int) -> float:
    """P(|T| < √df tan θ), the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(theta), df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


# axes


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


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unevenness(values: Sequence[float]) -> float:
    """How far sorted values lie from even steps, as a share of their range; random values' as well as a grid's."""
    low, high, last = values[0], values[-1], len(values) - 1
    return max(abs((value - low) / (high - low) - place / last) for place, value in enumerate(values))


def shown(value: Any) -> str:
    """A config's value in a table: `1e-3`, `null`, the class of a `_target_`."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    return value.rpartition(".")[2] if re.fullmatch(r"\w+(\.\w+)+\.[A-Z]\w*", str(value)) else str(value)


def same(value: Any) -> str:
    """Equal for equal values: 1 is 1.0, but not true."""
    return repr(float(value)) if is_number(value) else json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, value, "") if is_number(value) else (1, 0.0, shown(value))


def differing(results: Sequence[Result]) -> dict[str, list[Any]]:
    """The keys that decide the result and whose values differ among the runs, each with its value in every run."""
    rows = [result.settings for result in results]
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key, NOT_SET) for row in rows] for key in keys}
    return {key: column for key, column in columns.items() if len(set(map(same, column))) > 1}


def find_axes(results: Sequence[Result], swept: Sequence[str] = ()) -> tuple[list[Axis], list[str]]:
    """The axes of some runs, and the keys of their replicates (those that end in `seed`).

    What `swept` names is an axis wherever it differs. Of all else, a key that only changes where axes do (as one YAML sets
    several keys) is no axis of its own: it is noted with the axis.
    """
    columns = differing([result for result in results if result.config])
    replicates = [key for key in columns if key.endswith("seed")]
    left = {key: list(map(same, column)) for key, column in columns.items() if key not in replicates}
    named = list(dict.fromkeys(found for key in swept if (found := _key_of(key, list(left)))))
    rest = sorted(left.keys() - set(named), key=lambda key: _rank(key, columns[key]))
    distinct = len(set(zip(*left.values(), strict=True)))
    axes: list[Axis] = []
    for key in named + rest:
        there = {axis.key: left[axis.key] for axis in axes}
        owner = None if key in named else _owner(left[key], there, bool(named), distinct)
        if owner is None:
            unique = {same(value): value for value in columns[key]}
            axes.append(Axis(key, sorted(unique.values(), key=_order)))
        else:
            next(axis for axis in axes if axis.key == owner).also.append(key)
    return axes, replicates


def _key_of(swept: str, keys: list[str]) -> str | None:
    """The config's key behind a swept one: `masking=span` changes `masking._target_` and what belongs to it."""
    if swept in keys:
        return swept
    inside = [key for key in keys if key.startswith(f"{swept}.")]
    return min(inside, key=lambda key: (not key.endswith("_target_"), inside.index(key)), default=None)


def _rank(key: str, column: list[Any]) -> tuple[Any, ...]:
    """What should stand for several keys that change together comes first."""
    numeric = all(is_number(value) for value in column)
    return (not key.endswith("_target_"), -len(set(map(same, column))), not numeric, key)


def _owner(column: list[str], axes: dict[str, list[str]], named: bool, distinct: int) -> str | None:
    """The axis that a column is a function of. Where the sweep named its axes, also that of all axes together: the last."""
    for key, values in axes.items():
        if _is_function(column, values) and (named or len(set(values)) < distinct or _follows(column, values)):
            return key
    together = list(zip(*axes.values(), strict=True))
    return list(axes)[-1] if named and _is_function(column, together) else None


def _follows(column: list[str], values: list[str]) -> bool:
    """Whether a function is more than chance though each group has a value of its own, as in a random search: of such values
    anything is a function. Then many numbers must rise or fall together."""
    pairs = set(zip(values, column, strict=True))
    if len(pairs) < MANY:
        return True
    try:
        ordered = [other for _, other in sorted((float(value), float(other)) for value, other in pairs)]
    except ValueError:
        return True
    return ordered in (sorted(ordered), sorted(ordered, reverse=True))


def _is_function(column: Sequence[Any], of: Sequence[Any]) -> bool:
    return len(set(zip(of, column, strict=True))) == len(set(of))


# metrics


@dataclass(frozen=True)
class Metric:
    """A number of a run: a column of its summary, or the mean of several (one per evaluation condition)."""

    columns: tuple[str, ...]
    maximize: bool = False
    note: str = ""
    """Why it was chosen, where that isn't plain."""

    @property
    def name(self) -> str:
        if len(self.columns) == 1:
            return self.columns[0]
        return f"{DEFAULT}, mean over {', '.join(condition_name(each.removeprefix(f'{DEFAULT}_')) for each in self.columns)}"

    def of(self, result: Result) -> float:
        return sum(result.value(column) for column in self.columns) / len(self.columns)

    def limit(self, result: Result) -> float:
        """What the oracle reaches; NaN where there is none."""
        return sum(limit_of(result, column) for column in self.columns) / len(self.columns)


def limit_of(result: Result, column: str) -> float:
    """The oracle's value of a metric, under the same condition."""
    match = re.fullmatch(r"(?:best/)?(\w+)/(loss|accuracy|perplexity|excess_loss)(_.+)?", column)
    if match is None:
        return math.nan
    stage, base, condition = match[1], match[2], match[3] or ""
    if base == "accuracy":
        return result.value(f"{stage}/oracle_accuracy{condition}")
    loss = result.value(f"{stage}/oracle_loss{condition}")
    if base == "excess_loss":
        return loss * 0
    return math.exp(loss) if base == "perplexity" and loss < 700 else loss


def conditions_of(results: Sequence[Result]) -> list[str]:
    """The evaluation conditions that every complete run has: `rate_0.30`, `k2`, in natural order."""
    found = [
        {name.removeprefix(f"{DEFAULT}_") for name in result.summary if name.startswith(f"{DEFAULT}_")} for result in results
    ]
    shared = set.intersection(*found) if found else set()
    return sorted(shared, key=lambda name: [_order(float(part) if part[:1].isdigit() else part) for part in _parts(name)])


def _parts(name: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?|\D+", name)


def condition_name(condition: str) -> str:
    return condition.replace("rate_", "mask rate ") if condition.startswith("rate_") else condition


# the whole


@dataclass
class Group:
    """Runs that differ in nothing but seeds."""

    values: dict[str, Any]
    """By the axes' keys."""
    results: list[Result]

    def interval(self, column: "str | Metric") -> Interval | None:
        of = column.of if isinstance(column, Metric) else (lambda result: result.value(column))
        return interval([of(result) for result in self.results])

    def limit(self, column: "str | Metric") -> float:
        """The oracle's, where it is the same kind of number; the mean over seeds of the data."""
        of = column.limit if isinstance(column, Metric) else (lambda result: limit_of(result, column))
        found = interval([of(result) for result in self.results])
        return math.nan if found is None else found.mean


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
            found.setdefault(tuple(map(same, values.values())), Group(values, [])).results.append(result)
        return sorted(found.values(), key=lambda group: [_order(value) for value in group.values.values()])

    def value(self, result: Result, axis: Axis) -> Any:
        default = None if result.config else result.settings.get(axis.name)
        return result.settings.get(axis.key, NOT_SET if default is None else default)

    def name(self, group: Group) -> str:
        """`masking.rate=0.1, model.num_layers=2`."""
        return ", ".join(f"{axis.name}={shown(group.values[axis.key])}" for axis in self.axes) or "all runs"

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
    return Study(collection, axes, replicates, _choose_metric(collection, axes, metric))


def _choose_metric(collection: Collection, axes: list[Axis], asked: str | None) -> Metric:
    if asked:
        _check_metric(asked, collection.complete)
        return Metric((asked,), "accuracy" in asked)
    objective = collection.objective
    # val/loss is the objective that nobody chose; and a grid can have been told one that its runs don't have
    if objective and objective != DEFAULT and any(objective in result.summary for result in collection.complete):
        return Metric((objective,), collection.maximize, "the sweep names it as its objective")
    groups = ("masking", "data", "eval")
    measures = [axis.name for axis in axes if axis.key.partition(".")[0] in groups and axis.key not in _TRAINING_ALONE]
    if not measures:
        return Metric((DEFAULT,))
    # plain val/loss of such runs is measured on each run's own masks or data: a lower one may just be an easier question
    because = f"plain {DEFAULT} is no fair comparison here, as {' and '.join(measures)} changes what is asked of the model"
    if conditions := conditions_of(collection.complete):
        return Metric(tuple(f"{DEFAULT}_{each}" for each in conditions), note=because)
    if any("val/excess_loss" in result.summary for result in collection.complete):
        return Metric(("val/excess_loss",), note=because)
    return Metric((DEFAULT,), note=f"{because}; eval.mask_rates or eval.data would measure all runs alike")


def _check_metric(name: str, complete: Sequence[Result]) -> None:
    numbers = sorted({key for result in complete for key, value in result.summary.items() if is_number(value)})
    if complete and name not in numbers:
        raise UserError(f"--metric {name}: no complete run has it{suggestion(name, numbers)} There are: {', '.join(numbers)}")

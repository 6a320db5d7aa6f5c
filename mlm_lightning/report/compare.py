"""Groups against the best one, under one condition at a time: differences by seed, each with a 95 % interval.

seed     rate=0.1   rate=0.4   difference
0        0.981      1.050      0.069
1        0.987      1.054      0.067       ─►  0.068 ± 0.013   paired: what both runs of a seed share, cancels
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlm_lightning.report.groups import Group, canonical
from mlm_lightning.report.metric import Interval, Metric, interval, t_quantile


@dataclass(frozen=True)
class Difference(Interval):
    """Of a group's mean to the best one's; `n` pairs of runs, or runs of the smaller group."""

    paired: bool

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half  # false where it is not known


def difference(group: Group, best: Group, metric: Metric, replicates: Sequence[str]) -> Difference | None:
    """None where one of them has no number. Paired where both groups have a run of each seed, else Welch's."""
    one, other = (_by_seeds(each, metric, replicates) for each in (group, best))
    if not one or not other:
        return None
    if one.keys() == other.keys() and all(len(values) == 1 for each in (one, other) for values in each.values()):
        found = interval([one[seeds][0] - other[seeds][0] for seeds in one])
        return Difference(found.mean, found.half, found.n, paired=True) if found else None
    samples = [interval([value for values in each.values() for value in values]) for each in (one, other)]
    first, second = (each for each in samples if each)
    return welch(first, second)


def _by_seeds(group: Group, metric: Metric, replicates: Sequence[str]) -> dict[tuple[str, ...], list[float]]:
    found: dict[tuple[str, ...], list[float]] = {}
    for result in group.results:
        if math.isfinite(value := metric.of(result)):
            found.setdefault(tuple(canonical(result.get(key)) for key in replicates), []).append(value)
    return found


def welch(one: Interval, other: Interval) -> Difference:
    """The unpaired interval of two means whose spreads may differ (Welch 1947), its degrees of freedom rounded down."""
    mean, n = one.mean - other.mean, min(one.n, other.n)
    if n == 1:
        return Difference(mean, math.nan, n, paired=False)
    squares = [(each.half / t_quantile(each.n - 1)) ** 2 for each in (one, other)]  # of the standard errors
    parts = [square**2 / (each.n - 1) for square, each in zip(squares, (one, other), strict=True)]
    if not sum(parts):
        return Difference(mean, 0.0, n, paired=False)
    freedom = max(1, int(sum(squares) ** 2 / sum(parts)))
    return Difference(mean, t_quantile(freedom) * math.sqrt(sum(squares)), n, paired=False)


@dataclass
class Standing:
    """The groups under one condition, the best one first; `differences` are those of the others to it."""

    metric: Metric
    ranked: list[Group]
    differences: list[Difference | None]

    @classmethod
    def of(cls, ranked: list[Group], metric: Metric, replicates: Sequence[str]) -> "Standing":
        return cls(metric, ranked, [difference(each, ranked[0], metric, replicates) for each in ranked[1:]])

    @property
    def best(self) -> Group:
        return self.ranked[0]

    @property
    def contested(self) -> list[tuple[Group, Difference]]:
        """The other groups whose difference may be chance."""
        pairs = zip(self.ranked[1:], self.differences, strict=True)
        return [(group, each) for group, each in pairs if each and not each.is_clear]

    def to_best(self, group: Group) -> Difference | None:
        """None for the best group itself."""
        return self.differences[self.ranked.index(group) - 1] if group in self.ranked[1:] else None

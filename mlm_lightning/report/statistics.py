"""The mean of a few runs and its 95 % interval, by Student's t: two or three seeds are too few for a normal distribution.

0.981, 0.987  ─►  0.984 ± 12.71 · 0.003
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval, over seeds; NaN where there is only one value."""

    mean: float
    half: float
    n: int

    @property
    def margin(self) -> float:
        """`half`, or 0 where it is not known."""
        return 0.0 if math.isnan(self.half) else self.half

    def overlaps(self, other: "Interval") -> bool:
        return abs(self.mean - other.mean) <= self.margin + other.margin


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
        low, high = (theta, high) if _probability_within(theta, df) < share else (low, theta)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _probability_within(theta: float, df: int) -> float:
    """P(|T| < √df tan θ), the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(theta), df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total

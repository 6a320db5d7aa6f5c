"""The number that runs are compared by: its name in words, what the oracle reaches of it, its mean and 95 % interval.

Intervals are Student's, as two or three seeds are too few for a normal distribution: 0.981, 0.987  ─►  0.984 ± 12.71 · 0.003
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mlm_lightning.report.results import DEFAULT, Result

_STAGES = {"val": "validation", "train": "training", "best/val": "best validation", "test": "test"}
_QUANTITIES = {  # and their units
    "excess_loss": ("excess over the oracle", "nats a token"),
    "unigram_loss": ("loss of counting tokens", "nats a token"),
    "bigram_loss": ("loss of counting pairs", "nats a token"),
    "unigram_accuracy": ("accuracy of counting tokens", ""),
    "gain_over_unigram": ("gain over counting tokens", "nats a token"),
    "perplexity": ("perplexity", ""),
    "accuracy": ("accuracy", ""),
    "macro_f1": ("macro-F1", ""),
    "loss": ("loss", "nats a token"),
}


@dataclass(frozen=True)
class Metric:
    """A number of a run: a column of its summary, `val/loss` or, under an evaluation condition, `val/loss_rate_0.30`."""

    name: str = DEFAULT
    maximize: bool = False
    note: str = ""
    """Why it was chosen, or what it can't tell, where that isn't plain."""

    def of(self, result: Result) -> float:
        return result.value(self.name)

    def limit(self, result: Result) -> float:
        """What the oracle reaches; NaN where there is none."""
        return limit_of(result, self.name)

    def counted(self, result: Result, kind: str) -> float:
        """What counts of the training text reach, `unigram` or `bigram`; NaN where there are none, and of other quantities."""
        counts_loss = _parts(self.name)[1] in ("loss", "perplexity")
        return _beside(result, self.name, f"{kind}_loss") if counts_loss else math.nan

    @property
    def condition(self) -> str:
        """`rate_0.30`; empty for a run's own."""
        return _parts(self.name)[2]


def _parts(column: str) -> tuple[str, str, str]:
    """Stage, quantity and condition: `("best/val", "loss", "k1")`; empty where it is none of ours."""
    match = re.fullmatch(rf"(?:(.*)/)?({'|'.join(_QUANTITIES)})(?:_(.*))?", column)
    return (match[1] or "", match[2], match[3] or "") if match else ("", "", "")


def limit_of(result: Result, column: str) -> float:
    """The oracle's value of a metric, under the same condition."""
    quantity = _parts(column)[1]
    if "gram" in quantity:  # of counts, not of the model
        return math.nan
    value = _beside(result, column, "oracle_accuracy" if quantity == "accuracy" else "oracle_loss")
    return value * 0 if quantity == "excess_loss" else value


def _beside(result: Result, column: str, name: str) -> float:
    """Another value of the same stage and condition, of a perplexity as one: frozen masks give the best step those of the
    last."""
    stage, quantity, condition = _parts(column)
    value = result.value(f"{stage.removeprefix('best/')}/{name}" + (f"_{condition}" if condition else ""))
    return math.exp(value) if quantity == "perplexity" and value < 700 else value


def describe(metric: str | Metric, per: str = "token") -> tuple[str, str, str]:
    """What it measures, where, and its unit: `("validation loss", "mask rate 0.30", "nats a token")`, or `per` row."""
    name = metric if isinstance(metric, str) else metric.name
    stage, quantity, condition = _parts(name)
    if not quantity:
        return name, "", ""
    words, unit = _QUANTITIES[quantity]
    own = quantity in ("excess_loss", "gain_over_unigram")
    subject = words if own else f"{_STAGES.get(stage, stage)} {words}"
    return subject, condition_name(condition), unit.replace("token", per)


def label(metric: str | Metric, per: str = "token") -> str:
    """`validation loss, mask rate 0.30 (nats a token)`."""
    subject, where, unit = describe(metric, per)
    return subject + (f", {where}" if where else "") + (f" ({unit})" if unit else "")


def condition_name(condition: str) -> str:
    """`filter_level_2,rate_0.40` as `filter level 2, mask rate 0.40`."""
    parts = (re.sub(r"^rate_(?=[\d.]+$)", "mask rate ", part) for part in condition.split(","))
    return ", ".join(re.sub(r"_(?=[\w.+-]*$)", " ", part) if "_" in part else part for part in parts)


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


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    found = interval(values)
    return found.mean if found else math.nan


@lru_cache
def t_quantile(df: int, share: float = 0.95) -> float:
    """The t that a Student variable of `df` degrees of freedom stays within, on either side of 0, with probability `share`."""
    low, high, odd = 0.0, math.pi / 2, df % 2
    for _ in range(100):
        theta = (low + high) / 2
        # P(|T| < √df tan θ), the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4
        term, total = (math.cos(theta) if odd else 1.0), 0.0
        for k in range(2 + odd, df + 1, 2):
            total += term
            term *= math.cos(theta) ** 2 * (k - 1) / k
        within = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
        low, high = (theta, high) if within < share else (low, theta)
    return math.sqrt(df) * math.tan((low + high) / 2)

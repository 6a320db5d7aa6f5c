"""The number that runs are compared by, and what the oracle reaches of it.

Where the sweep changes what is asked of the model (its masks, its data), plain `val/loss` is no fair comparison, as a lower one
may be an easier question. Then groups are compared under the evaluation conditions that all runs share (`val/loss_rate_0.30`,
`val/loss_k2`: the same weights, measured elsewhere), else by their excess over the oracle.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlm_lightning.errors import UserError
from mlm_lightning.report.axes import Axis, is_number, sort_key
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.values import suggestion

DEFAULT = "val/loss"

# Keys of masking and data that change how a model is trained, and not what it is asked in evaluation.
_TRAINING_ALONE = ("data.batch_size", "data.train_size", "masking.mask_share", "masking.random_share")
_STAGES = {"val": "validation", "train": "training", "best/val": "best validation", "test": "test"}
_QUANTITIES = {  # and their units
    "excess_loss": ("excess over the oracle", "nats a token"),
    "perplexity": ("perplexity", ""),
    "accuracy": ("accuracy", ""),
    "loss": ("loss", "nats a token"),
}


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


def describe(metric: str | Metric) -> tuple[str, str, str]:
    """What it measures, where, and its unit: `("validation loss", "mask rate 0.30", "nats a token")`."""
    name = metric if isinstance(metric, str) else metric.columns[0]
    match = re.fullmatch(rf"(?:(.*)/)?({'|'.join(_QUANTITIES)})(?:_(.*))?", name)
    if match is None:
        return name, "", ""
    stage, quantity, condition = match[1] or "", match[2], match[3]
    words, unit = _QUANTITIES[quantity]
    subject = words if quantity == "excess_loss" else f"{_STAGES.get(stage, stage)} {words}"
    if isinstance(metric, Metric) and len(metric.columns) > 1:
        return subject, "mean over conditions", unit
    return subject, condition_name(condition or ""), unit


def label(metric: str | Metric) -> str:
    """`validation loss, mask rate 0.30 (nats a token)`."""
    subject, where, unit = describe(metric)
    return subject + (f", {where}" if where else "") + (f" ({unit})" if unit else "")


def conditions_of(results: Sequence[Result]) -> list[str]:
    """The evaluation conditions that every complete run has: `rate_0.30`, `k2`, in natural order."""
    prefix = f"{DEFAULT}_"
    found = [{name.removeprefix(prefix) for name in result.summary if name.startswith(prefix)} for result in results]

    def natural(name: str) -> list[tuple[int, float, str]]:
        return [sort_key(float(part) if part[:1].isdigit() else part) for part in re.findall(r"\d+(?:\.\d+)?|\D+", name)]

    return sorted(set.intersection(*found) if found else set(), key=natural)


def condition_name(condition: str) -> str:
    return condition.replace("rate_", "mask rate ") if condition.startswith("rate_") else condition


def choose_metric(collection: Collection, axes: list[Axis], asked: str | None) -> Metric:
    """The one that was asked for, else the sweep's objective, else one that compares all runs fairly. Raises UserError for a
    metric that no run has."""
    complete = collection.complete
    if asked:
        numbers = sorted({key for result in complete for key, value in result.summary.items() if is_number(value)})
        if complete and asked not in numbers:
            there = ", ".join(numbers)
            raise UserError(f"--metric {asked}: no complete run has it{suggestion(asked, numbers)} There are: {there}")
        return Metric((asked,), "accuracy" in asked)
    objective = collection.objective
    # val/loss is the objective that nobody chose; and a grid can have been told one that its runs don't have
    if objective and objective != DEFAULT and any(objective in result.summary for result in complete):
        return Metric((objective,), collection.maximize, "the sweep names it as its objective")
    groups = ("masking", "data", "eval")
    measures = [axis.name for axis in axes if axis.key.partition(".")[0] in groups and axis.key not in _TRAINING_ALONE]
    if not measures:
        return Metric((DEFAULT,))
    because = f"plain {DEFAULT} is no fair comparison here, as {' and '.join(measures)} changes what is asked of the model"
    if conditions := conditions_of(complete):
        return Metric(tuple(f"{DEFAULT}_{each}" for each in conditions), note=because)
    if any("val/excess_loss" in result.summary for result in complete):
        return Metric(("val/excess_loss",), note=because)
    return Metric((DEFAULT,), note=f"{because}; eval.mask_rates or eval.data would measure all runs alike")

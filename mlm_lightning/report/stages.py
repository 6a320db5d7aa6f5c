"""In which order a run learns the correlations of its language: beside the exact posteriors of filter levels, over training.

step                  1      10     100    1000
KL from k2         0.02   *0.01    0.12    0.14      the languages by what their oracles lose on the run's rows, the most first:
KL from k1         0.10    0.09   *0.01    0.05      here k2, k1, and its own, k0
KL from k0, own    0.15    0.14    0.06   *0.00      * where the model is closest to it: one level after the other

A column of metrics.csv for each: `val/kl_to_oracle_under_k1`, `val/oracle_loss_under_k1` (`eval.oracles`), at the steps of
`trainer.val_steps`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlm_lightning.report import style
from mlm_lightning.report.groups import Group
from mlm_lightning.report.results import Result
from mlm_lightning.report.study import Study
from mlm_lightning.report.style import LIMIT_COLOUR, WIDTH, Picture
from mlm_lightning.report.tables import number

MAX_GROUPS, MAX_SENTENCES = 6, 5
"""Groups with a figure each, runs with a sentence each."""

_KL, _LOSS, _UNDER = "val/kl_to_oracle", "val/oracle_loss", "_under_"


@dataclass(frozen=True)
class Level:
    """A language whose exact posterior a run was compared with."""

    name: str
    kl: dict[int, float]
    """Nats a token from its posterior to the model's, by optimizer step."""
    oracle_loss: float
    """What its posterior loses on the run's own rows; least for the run's own language."""
    is_own: bool = False

    @property
    def closest(self) -> int:
        """The step at which the model is closest to it."""
        return min(self.kl, key=self.kl.__getitem__)


def levels_of(result: Result) -> list[Level]:
    """Those of a run, by the losses of their oracles, the run's own language last; empty where there is nothing to compare."""
    names = [column.removeprefix(_KL + _UNDER) for column in result.curves if column.startswith(_KL + _UNDER)]
    if not names or _KL not in result.curves:
        return []
    own_level = result.settings.get("data.filter_level")
    own = "its own" if own_level is None else f"k{own_level} (its own)"
    found = [_level(result, name, f"{_UNDER}{name}") for name in names] + [_level(result, own, "", is_own=True)]
    found = [level for level in found if level.kl]
    return sorted(found, key=lambda level: (level.is_own, -level.oracle_loss)) if len(found) > 1 else []


def _level(result: Result, name: str, ending: str, is_own: bool = False) -> Level:
    losses = result.curve(_LOSS + ending)
    return Level(name, dict(result.curve(_KL + ending)), losses[-1][1] if losses else math.nan, is_own)


def passed(result: Result, level: Level) -> int | None:
    """The step from which on the model's loss stays below that of a level's posterior: it knows what the level lacks."""
    curve = result.curve("val/loss")
    above = [step for step, value in curve if value >= level.oracle_loss]
    return min((step for step, _ in curve if step > max(above, default=0)), default=None)


def sentences(study: Study) -> list[str]:
    """Of each run with such curves: in which order the model came closest to the levels, and passed them."""
    found = [result for result in study.collection.complete if levels_of(result)]
    named = len(study.collection.complete) > 1
    return [(f"{result.name}: " if named else "") + _sentence(result) for result in found[:MAX_SENTENCES]]


def _sentence(result: Result) -> str:
    levels = levels_of(result)
    told = [f"{level.name} at step {level.closest:,} (KL {number(level.kl[level.closest])})" for level in levels]
    steps = [level.closest for level in levels]
    if steps != sorted(steps):
        order = "not in the order of the levels"
    elif len(set(steps)) == len(steps):
        order = "one level after the other"
    else:
        order = "in the order of the levels, where those of one step are not told apart"
    last = min(levels, key=lambda level: level.kl[max(level.kl)])
    lines = [
        f"The model is closest to the exact posterior of {', '.join(told)}: {order}.",
        f"In the end it is nearest to {last.name}.",
    ]
    beyond = [f"{level.name} from step {step:,}" for level in levels if (step := passed(result, level))]
    if beyond:
        lines.append(f"Its loss is below what these posteriors lose: {', '.join(beyond)} on.")
    return " ".join(lines)


def pictures(study: Study) -> Iterator[Picture]:
    """One for each group with such curves."""
    groups = study.group([result for result in study.collection.results if levels_of(result)])[:MAX_GROUPS]
    for place, group in enumerate(groups):
        yield _picture(study, group, f"stages_{place}" if len(groups) > 1 else "stages")


def _picture(study: Study, group: Group, name: str) -> Picture:
    """Left, how far the model is from each level's posterior; right, its loss, which passes the losses of their oracles."""
    figure, (distance, loss) = style.new_figure(WIDTH, 3.6, 2)
    looks: dict[str, style.LineStyle] = {}
    for result in group.results:
        levels = levels_of(result)
        looks |= dict(zip([level.name for level in levels], style.line_styles(len(levels), ordered=True)[::-1], strict=True))
        for level in levels:
            colour, marker = looks[level.name]
            distance.plot(*style.columns(sorted(level.kl.items())), color=colour, linewidth=2.0 if level.is_own else 1.4)
            at: Any = {"marker": marker, "markersize": 8, "linestyle": "none", "color": colour, "label": level.name}
            distance.plot([level.closest], [level.kl[level.closest]], **at)
        curve = result.curve("val/loss")
        loss.plot(*style.columns(curve), color=LIMIT_COLOUR)
        for level in levels:
            if step := passed(result, level):
                colour, marker = looks[level.name]
                loss.plot([step], [dict(curve)[step]], marker=marker, markersize=8, linestyle="none", color=colour)
            style.draw_level(loss, level.oracle_loss, looks[level.name])
    for ax in (distance, loss):
        style.set_log_scale(ax, "x")
        ax.set_xlabel("optimizer steps")
    if all(value > 0 for result in group.results for level in levels_of(result) for value in level.kl.values()):
        style.set_log_scale(distance, "y", (1, 2, 5))
    distance.set_ylabel("KL from the level’s posterior\nto the model’s (nats a token)")
    loss.set_ylabel("validation loss\n(nats a token)")
    style.add_legend(figure, [distance, loss], "exact posterior of")
    of = f" of {study.name(group)}" if study.axes else ""
    caption = (
        f"Learning in stages{of}. Left: how far the model is from the exact posterior of each level, on the run’s own rows; a "
        "mark where it is closest. Right: the model’s loss; dashed, what each level’s posterior loses on these rows; a mark "
        "from where on the model’s loss stays below it."
    )
    return Picture(name, caption, figure)

"""Learning curves: training and validation loss, and the excess where there is an oracle, against optimizer steps."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlm_lightning.report.figures.elements import columns, mark_end, set_log_scale
from mlm_lightning.report.figures.style import (
    LIMIT,
    LIMIT_COLOUR,
    WIDTH,
    LineStyle,
    Picture,
    add_legend,
    line_styles,
    new_figure,
    shortened,
)
from mlm_lightning.report.metric import label
from mlm_lightning.report.results import Curve
from mlm_lightning.report.study import Group, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_GROUPS = 10


def draw_curves(study: Study) -> list[Picture]:
    runs = [result for result in study.collection.results if result.curves]
    names = [name for name in ("train/loss", "val/loss", "val/excess_loss") if any(name in each.curves for each in runs)]
    if not names:
        return []
    every_group = groups = study.group(runs)
    if len(groups) > MAX_GROUPS:  # the best few, in the order of their values
        best = {study.name(group) for group in (study.ranked or groups)[:MAX_GROUPS]}
        groups = [group for group in groups if study.name(group) in best]
    styles = line_styles(len(groups), ordered=len(study.axes) == 1 and study.axes[0].numeric and len(groups) > 3)
    figure, panels = new_figure(WIDTH, 3.1, ncols=len(names))
    for ax, name in zip(panels, names, strict=True):
        curves = [[result.curves.get(name, []) for result in group.results] for group in groups]
        for group, style, several in zip(groups, styles, curves, strict=True):
            for curve in several:
                _draw_curve(ax, curve, style, shortened(study.name(group), 60))
        if name == "val/loss":
            _draw_limits(ax, groups, styles)
        if name == "val/excess_loss" and all(value > 0 for several in curves for curve in several for _, value in curve):
            set_log_scale(ax, "y", (1, 2, 5))
        ax.set_title(label(name).replace(" (", "\n("))
        ax.set_xlabel("optimizer steps")
        ax.locator_params(axis="x", nbins=5)
    add_legend(figure, panels)
    dashed = "; dashed, the best possible loss" if study.has_oracle else ""
    caption = f"Learning curves: a colour is a group, a thin line a run{dashed}."
    if len(groups) < len(every_group):
        caption += f" Of {len(every_group)} groups, the best {len(groups)} are shown."
    return [Picture("learning_curves", caption, figure)]


def _draw_curve(ax: "Axes", curve: Curve, style: LineStyle, name: str) -> None:
    points = [(step, value) for step, value in curve if math.isfinite(value)]
    if points:
        last = len(points) - 1
        # markers tell the lines apart in grey; at every point of a long curve they would hide it
        marked = list(range(last + 1)) if last < 12 else [round(last * part / 6) for part in range(1, 7)]
        x, y = columns(points)
        ax.plot(x, y, color=style[0], marker=style[1], markersize=3.5, linewidth=0.9, label=name, markevery=marked)


def _draw_limits(ax: "Axes", groups: Sequence[Group], styles: Sequence[LineStyle]) -> None:
    """What the oracle reaches: one dashed line for all, or one for each group."""
    limits = {}
    for index, group in enumerate(groups):
        last = [curve[-1][1] for result in group.results if (curve := result.curves.get("val/oracle_loss"))]
        if last and math.isfinite(limit := sum(last) / len(last)):
            limits[index] = limit
    different = {round(limit, 9) for limit in limits.values()}
    if len(different) == 1:
        ax.axhline(different.pop(), linestyle="--", linewidth=1.2, color=LIMIT_COLOUR, label=LIMIT)
        return
    for index, limit in limits.items():
        ax.axhline(limit, linestyle="--", linewidth=1.0, color=styles[index][0])
        mark_end(ax, limit, styles[index])
    if limits:
        ax.plot([], [], linestyle="--", linewidth=1.0, color=LIMIT_COLOUR, label=f"{LIMIT}, by colour and mark")

"""The metric for two keys: a heat map where the pairs fill a grid, coloured points where they don't (a random search)."""

import math
from typing import TYPE_CHECKING

from mlm_lightning.report.axes import Axis, as_text, canonical
from mlm_lightning.report.figures.elements import SweptAxis, set_log_scale
from mlm_lightning.report.figures.heat_map import draw_heat_map
from mlm_lightning.report.figures.style import MAX_CELLS, WIDTH, Picture, new_figure, on_two_lines, shortened
from mlm_lightning.report.metric import label
from mlm_lightning.report.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_pair(study: Study, across: Axis, down: Axis) -> Picture:
    best: dict[tuple[str, str], float] = {}
    for group in study.ranked:
        pair = canonical(group.values[across.key]), canonical(group.values[down.key])
        best.setdefault(pair, group.mean(study.metric))
    name = f"pair_{across.name}_{down.name}"
    chosen = "" if len(study.axes) == 2 else ", the other keys chosen freely"
    caption = f"{label(study.metric)} for {across.name} and {down.name}{chosen}; mean over seeds."
    sizes = len(across.values), len(down.values)
    if len(best) * 2 < sizes[0] * sizes[1] or max(sizes) > MAX_CELLS:
        return Picture(name, caption, _scatter(study, across, down))
    rows, columns = ([shortened(as_text(value)) for value in axis.values] for axis in (down, across))
    cells = [[best.get((canonical(x), canonical(y)), math.nan) for x in across.values] for y in down.values]
    figure, (ax,) = new_figure(min(WIDTH, 2.8 + 0.9 * len(columns)), 1.5 + 0.4 * len(rows))
    draw_heat_map(ax, cells, rows, columns, label(study.metric), "all", study.metric.maximize)
    ax.set_xlabel(across.name)
    ax.set_ylabel(down.name)
    return Picture(name, f"{caption} Framed: the best.", figure)


def _scatter(study: Study, across: Axis, down: Axis) -> "Figure":
    figure, (ax,) = new_figure(5.6, 3.8)
    groups = list(reversed(study.ranked))  # the best on top
    swept = SweptAxis(ax, across, 4.0)
    heights = {canonical(value): value if down.numeric else index for index, value in enumerate(down.values)}
    if down.logarithmic:
        set_log_scale(ax, "y")
    elif not down.numeric:
        ax.set_yticks(range(len(down.values)), [shortened(as_text(value)) for value in down.values])
    ax.set_ylabel(down.name)
    points = ax.scatter(
        [swept.x(group) for group in groups],
        [heights[canonical(group.values[down.key])] for group in groups],
        c=[group.mean(study.metric) for group in groups],
        cmap="cividis",
        edgecolors="#333333",
        linewidths=0.5,
        s=36,
    )
    figure.colorbar(points, ax=ax, label=on_two_lines(label(study.metric)))
    return figure

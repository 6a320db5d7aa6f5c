"""The same weights under each evaluation condition: lines where one key was swept, and a heat map of groups and conditions."""

from mlm_lightning.report.axes import as_text
from mlm_lightning.report.figures.elements import SweptAxis, draw_limits, draw_series, frame, mark_end
from mlm_lightning.report.figures.heat_map import draw_heat_map
from mlm_lightning.report.figures.style import (
    LIMIT,
    LIMIT_COLOUR,
    MAX_CELLS,
    MAX_COLOURS,
    WIDTH,
    Picture,
    add_legend,
    line_styles,
    new_figure,
    on_two_lines,
)
from mlm_lightning.report.metric import condition_name, label
from mlm_lightning.report.study import Study


def draw_conditions(study: Study) -> list[Picture]:
    conditions = study.conditions
    if len(conditions) < 2 or not study.axes:
        return []
    has_excess = all(f"val/excess_loss_{each}" in result.summary for each in conditions for result in study.complete)
    pictures = []
    if len(study.axes) == 1 and len(conditions) <= MAX_COLOURS:
        pictures.append(_lines(study, has_excess))
    if len(study.groups) <= MAX_CELLS and len(conditions) <= MAX_CELLS:
        pictures.append(_heat_map(study, "val/excess_loss" if has_excess else "val/loss"))
    return pictures


def _lines(study: Study, has_excess: bool) -> Picture:
    (axis,) = study.axes
    figure, panels = new_figure(WIDTH, 3.3, ncols=1 + has_excess)
    for ax, base in zip(panels, ("val/loss", "val/excess_loss"), strict=False):
        swept = SweptAxis(ax, axis, WIDTH / len(panels))
        for condition, style in zip(study.conditions, line_styles(len(study.conditions)), strict=True):
            metric = f"{base}_{condition}"
            draw_series(swept, study.groups, metric, style, condition_name(condition))
            if base == "val/loss":
                limits = draw_limits(swept, study.groups, metric, style[0], name="_")
                if len(limits) == 1:
                    mark_end(ax, limits.pop(), style)
        frame(ax, study.groups, [f"{base}_{each}" for each in study.conditions])
        ax.set_ylabel(on_two_lines(label(base)))
    if has_excess:
        panels[0].plot([], [], linestyle="--", color=LIMIT_COLOUR, linewidth=1.2, label=LIMIT)
    add_legend(figure, panels, "evaluated at")
    caption = f"The same weights under each evaluation condition, against {axis.name}: mean and 95 % interval over seeds"
    return Picture("conditions", f"{caption}{'; dashed: the best possible loss there' if has_excess else ''}.", figure)


def _heat_map(study: Study, base: str) -> Picture:
    conditions = study.conditions
    figure, (ax,) = new_figure(min(WIDTH, 2.6 + 0.95 * len(conditions)), 1.5 + 0.36 * len(study.groups))
    axis = study.axes[0] if len(study.axes) == 1 else None
    rows = [as_text(group.values[axis.key]) if axis else study.name(group) for group in study.groups]
    cells = [[group.mean(f"{base}_{each}") for each in conditions] for group in study.groups]
    draw_heat_map(ax, cells, rows, [condition_name(each) for each in conditions], label(base), best_of="column")
    ax.set_xlabel("evaluated at")
    ax.set_ylabel(f"trained with {axis.name}" if axis else "trained with")
    caption = f"{label(base)}, of each group (row) under each evaluation condition (column); mean over seeds."
    return Picture("conditions_heat", f"{caption} Framed: the best of its column.", figure)

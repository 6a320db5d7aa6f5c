"""A metric against one swept key: points for runs, a line through the means, a band for the intervals, the limit dashed."""

from mlm_lightning.report.axes import Axis, as_text, canonical
from mlm_lightning.report.figures.elements import SweptAxis, draw_limits, draw_points, draw_series, frame
from mlm_lightning.report.figures.style import (
    MARKERS,
    MAX_COLOURS,
    OKABE_ITO,
    WIDTH,
    Picture,
    add_legend,
    line_styles,
    new_figure,
    on_two_lines,
)
from mlm_lightning.report.metric import DEFAULT, Metric, label
from mlm_lightning.report.study import Group, Study


def draw_by_key(study: Study, axis: Axis) -> Picture:
    """The study's metric, and beside it the plain loss if that is not the metric."""
    metrics = [study.metric]
    if study.metric.columns != (DEFAULT,) and any(group.interval(DEFAULT) for group in study.groups):
        metrics.append(Metric((DEFAULT,)))
    others = [each for each in study.axes if each is not axis]
    colour_axis = others[0] if len(others) == 1 and len(others[0].values) <= MAX_COLOURS else None
    # where no two groups share a value (a random search), nothing can be chosen at a value, and a line would be noise
    joined = len(axis.values) < len(study.groups)
    figure, panels = new_figure(WIDTH, 3.4, ncols=len(metrics))
    is_cut = False
    for ax, metric in zip(panels, metrics, strict=True):
        swept = SweptAxis(ax, axis, WIDTH / len(metrics))
        if colour_axis is not None:
            _draw_by_colour(study, swept, metric, colour_axis)
        elif not others:
            draw_series(swept, study.groups, metric, (OKABE_ITO[0], MARKERS[0]), "mean and interval")
        else:
            _draw_best(study, swept, metric, joined)
        draw_limits(swept, study.groups, metric)
        is_cut |= frame(ax, study.groups, [metric])
        ax.set_ylabel(on_two_lines(label(metric)))
        if study.metric.note and metric.columns == (DEFAULT,):
            ax.set_title("each run on its own masks and data")
    add_legend(figure, panels, colour_axis.name if colour_axis else "")
    parts = [f"{label(study.metric)} against {axis.name}. Points are runs"]
    if not others or colour_axis:
        by = f", by {colour_axis.name}" if colour_axis else ""
        parts.append(f"mean and 95 % interval ({'band' if axis.numeric else 'bar'}) over seeds{by}")
    elif joined:
        best = "the line joins" if axis.numeric else "the large ones are"
        parts.append(f"{best} the best group at each value, the other {len(others)} keys chosen freely")
    if is_cut:
        parts.append("an interval that leaves the frame is cut")
    return Picture(f"by_{axis.name}", "; ".join(parts) + ".", figure)


def _draw_by_colour(study: Study, swept: SweptAxis, metric: Metric, axis: Axis) -> None:
    """A line for each value of a second key."""
    styles = line_styles(len(axis.values), ordered=axis.numeric and len(axis.values) > 2)
    for index, (value, style) in enumerate(zip(axis.values, styles, strict=True)):
        groups = [group for group in study.groups if canonical(group.values[axis.key]) == canonical(value)]
        shift = 0.0 if swept.axis.numeric else 0.3 * (index / max(1, len(styles) - 1) - 0.5)
        draw_series(swept, groups, metric, style, as_text(value), shift)


def _draw_best(study: Study, swept: SweptAxis, metric: Metric, joined: bool) -> None:
    """All runs as points, and the best group at each value of the key, whatever the other keys are."""
    points = [(swept.x(group), value) for group in study.groups for value in group.measured(metric)]
    draw_points(swept.ax, points, ("#888888", "o"), alpha=0.5, label="runs")
    if joined:
        best: dict[float, Group] = {}
        for group in study.rank(metric):
            best.setdefault(swept.x(group), group)
        groups = [best[x] for x in sorted(best)]
        draw_series(swept, groups, metric, (OKABE_ITO[0], MARKERS[0]), "best of the other keys", points=False)

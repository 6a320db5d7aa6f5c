"""What figures are made of: an x axis of a swept key, a line with its interval, the oracle's limit, a frame around them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlm_lightning.report.axes import Axis, as_text, canonical
from mlm_lightning.report.figures.style import LIMIT, LIMIT_COLOUR, WIDTH, LineStyle, shortened
from mlm_lightning.report.metric import Metric
from mlm_lightning.report.study import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class SweptAxis:
    """An x axis that shows a swept key, `width` inches long."""

    def __init__(self, ax: "Axes", axis: Axis, width: float = WIDTH) -> None:
        self.ax, self.axis = ax, axis
        ax.set_xlabel(axis.name)
        self._index = {canonical(value): float(index) for index, value in enumerate(axis.values)}
        if not axis.numeric:
            names = [shortened(as_text(value)) for value in axis.values]
            name_ticks(ax, names, crowded=sum(map(len, names)) > 60)
            ax.set_xlim(-0.5, len(names) - 0.5)
            ax.grid(axis="x", visible=False)
            return
        if axis.logarithmic:
            set_log_scale(ax, "x")
        if len(axis.values) <= 10:
            ax.set_xticks(axis.values, _labels_that_fit(axis, width))
            ax.set_xticks([], minor=True)

    def x(self, group: Group) -> float:
        value = group.values[self.axis.key]
        return float(value) if self.axis.numeric else self._index[canonical(value)]


def _labels_that_fit(axis: Axis, width: float) -> list[str]:
    """The values as labels of their ticks, but for those that would run into the label before."""
    at = [math.log(value) if axis.logarithmic else value for value in axis.values]
    labels, end = [], -math.inf
    for position, value in zip(at, axis.values, strict=True):
        inches = 0.85 * width * (position - at[0]) / max(at[-1] - at[0], 1e-300)
        half = 0.045 * (len(as_text(value)) + 1)
        fits = inches - half >= end
        labels.append(as_text(value) if fits else "")
        end = inches + half if fits else end
    return labels


def name_ticks(ax: "Axes", names: Sequence[str], crowded: bool) -> None:
    ax.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")


def set_log_scale(ax: "Axes", axis: Literal["x", "y"], multiples: tuple[int, ...] = (1,)) -> None:
    """A logarithmic axis with labels such as 0.02, at powers of ten times `multiples`."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(**{f"{axis}scale": "log"})
    ticks = ax.xaxis if axis == "x" else ax.yaxis
    ticks.set_major_locator(LogLocator(subs=multiples))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def draw_series(
    swept: SweptAxis,
    groups: Sequence[Group],
    metric: str | Metric,
    style: LineStyle,
    name: str,
    shift: float = 0.0,
    points: bool = True,
) -> None:
    """Points for runs, a line through means, a band (between categories: bars) for intervals."""
    ax, (colour, marker) = swept.ax, style
    known = [(swept.x(group) + shift, group, found) for group in groups if (found := group.interval(metric)) is not None]
    at, means, margins = [x for x, _, _ in known], [found.mean for *_, found in known], [found.margin for *_, found in known]
    if points:
        draw_points(ax, [(x, value) for x, group, _ in known for value in group.measured(metric)], style, alpha=0.4, zorder=2)
    if not swept.axis.numeric:
        ax.errorbar(at, means, margins, linestyle="none", marker=marker, color=colour, capsize=4, markersize=7, label=name)
        return
    ax.plot(at, means, marker=marker, color=colour, label=name, zorder=3)
    low, high = ([mean + sign * margin for mean, margin in zip(means, margins, strict=True)] for sign in (-1, 1))
    ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_points(ax: "Axes", points: Sequence[tuple[float, float]], style: LineStyle, **more: Any) -> None:
    ax.plot(*columns(points), linestyle="none", color=style[0], marker=style[1], markersize=4, **more)


def draw_limits(
    swept: SweptAxis, groups: Sequence[Group], metric: str | Metric, colour: Any = LIMIT_COLOUR, name: str = LIMIT
) -> set[float]:
    """The oracle's limit at each group, dashed; returns the limits."""
    ax, line = swept.ax, {"linestyle": "--", "linewidth": 1.2, "color": colour, "label": name}
    known = sorted({(swept.x(group), limit) for group in groups if math.isfinite(limit := group.limit(metric))})
    limits = {limit for _, limit in known}
    if len(limits) == 1:
        ax.axhline(known[0][1], **line)
    elif limits and not swept.axis.numeric:  # nothing lies between two categories
        at, heights = columns(known)
        ax.hlines(heights, [x - 0.3 for x in at], [x + 0.3 for x in at], **line)
    elif limits:
        ax.plot(*columns(known), **line)
    return limits


def mark_end(ax: "Axes", limit: float, style: LineStyle) -> None:
    """Marks the right end of a limit as the lines that it belongs to are marked: in grey, its colour doesn't tell."""
    look = {"marker": style[1], "color": style[0], "markerfacecolor": "white", "markersize": 5, "clip_on": False}
    ax.plot([1.0], [limit], transform=ax.get_yaxis_transform(), **look)


def frame(ax: "Axes", groups: Sequence[Group], metrics: Sequence[str | Metric]) -> bool:
    """Limits the y axis to what is measured: of two seeds, an interval may be 18 times as wide as they are apart. Returns
    whether one is cut."""
    pairs = [(group, metric) for group in groups for metric in metrics]
    values = [value for group, metric in pairs for value in (*group.measured(metric), group.limit(metric))]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return False
    intervals = [found for group, metric in pairs if (found := group.interval(metric)) is not None]
    low, high = min(values), max(values)
    margin = 0.45 * ((high - low) or abs(high) or 1.0)
    lowest = min([low, *(found.mean - found.margin for found in intervals)])
    highest = max([high, *(found.mean + found.margin for found in intervals)])
    bottom, top = max(lowest, low - margin), min(highest, high + margin)
    room = 0.04 * ((top - bottom) or 1.0)
    ax.set_ylim(bottom - room, top + room)
    return lowest < bottom - room or highest > top + room


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The x and the y of some points."""
    return [x for x, _ in points], [y for _, y in points]

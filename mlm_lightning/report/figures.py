"""The plots: a metric against what was swept, evaluation conditions, pairs of keys, learning curves.

Each is a `matplotlib.figure.Figure` of its own (no pyplot, no window, no global state). Colours are Okabe and Ito's, which
differ for the colour-blind, and every line has a marker of its own for a print in grey; ordered values and heat maps are
cividis, whose lightness rises steadily. Dashed lines are the oracle's limit, and nothing else is dashed.
"""

import io
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mlm_lightning.report.results import Curve, Result
from mlm_lightning.report.study import DEFAULT, Axis, Group, Interval, Metric, Study, condition_name, same, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LIMIT = "best possible (oracle)"
MOST_CURVES, MOST_CELLS, MOST_HUES, MOST_PAIRS = 10, 20, 10, 6

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.parse_math": False,  # a $ in a path is a dollar
    "figure.constrained_layout.use": True,
}
_WIDTH = 7.4  # inches, of a page
_NAMES = {
    "loss": ("loss", "nats a token"),
    "excess_loss": ("excess over the oracle", "nats a token"),
    "accuracy": ("accuracy", ""),
    "perplexity": ("perplexity", ""),
}
_STAGES = {"val": "validation", "train": "training", "best/val": "best validation", "test": "test"}


@dataclass
class Picture:
    """A figure, the name of its file, and what it shows."""

    name: str
    caption: str
    figure: "Figure"

    @cached_property
    def png(self) -> bytes:
        file = io.BytesIO()
        with _style():
            self.figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
        return file.getvalue()


def draw(study: Study) -> list[Picture]:
    """All figures that a study has the data for."""
    pictures: list[Picture] = []
    with _style():
        if study.ranked:
            if len(study.groups) > 2 or len(study.groups) < len(study.complete):  # of two runs, a table says it
                pictures += [_against(study, axis) for axis in study.axes]
            pictures += _conditions(study)
            pictures += _pairs(study)
        pictures += _curves(study)
    return pictures


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script than the font's
        yield


def _figure(width: float, height: float, **subplots: Any) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(squeeze=False, **subplots).flat)


# words and scales


def label(metric: "str | Metric") -> str:
    """`validation loss (nats a token)`."""
    name = metric if isinstance(metric, str) else metric.columns[0]
    stage, _, base = name.rpartition("/")
    for known in sorted(_NAMES, key=len, reverse=True):
        if base == known or base.startswith(f"{known}_"):
            words, unit = _NAMES[known]
            condition = base.removeprefix(known).removeprefix("_")
            where = "" if not condition else f", {condition_name(condition)}"
            if not isinstance(metric, str) and len(metric.columns) > 1:
                where = ", mean over conditions"
            subject = words if known == "excess_loss" else f"{_STAGES.get(stage, stage)} {words}"
            return f"{subject}{where}" + (f" ({unit})" if unit else "")
    return name


class Across:
    """An x axis that shows a swept key, `width` inches long."""

    def __init__(self, ax: "Axes", axis: Axis, width: float = _WIDTH) -> None:
        self.ax, self.axis = ax, axis
        ax.set_xlabel(axis.name)
        self._places = {same(value): float(place) for place, value in enumerate(axis.values)}
        if not axis.numeric:
            self._name_places([_short(shown(value)) for value in axis.values])
        elif axis.logarithmic:
            _plain_log(ax, "x", (1,))
        if axis.numeric and len(axis.values) <= 10:
            ax.set_xticks(axis.values, _room_for_labels(axis, width))
            ax.set_xticks([], minor=True)

    def at(self, group: Group) -> float:
        value = group.values[self.axis.key]
        return float(value) if self.axis.numeric else self._places[same(value)]

    def _name_places(self, names: list[str]) -> None:
        crowded = sum(map(len, names)) > 60
        self.ax.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        self.ax.set_xlim(-0.5, len(names) - 0.5)
        self.ax.grid(axis="x", visible=False)


def _room_for_labels(axis: Axis, width: float) -> list[str]:
    """The values as labels of their ticks, but for those that would run into the label before."""
    at = [math.log(value) if axis.logarithmic else value for value in axis.values]
    inches = [0.85 * width * (place - at[0]) / max(at[-1] - at[0], 1e-300) for place in at]
    labels, end = [], -math.inf
    for place, value in zip(inches, axis.values, strict=True):
        half = 0.045 * (len(shown(value)) + 1)
        fits = place - half >= end
        labels.append(shown(value) if fits else "")
        end = place + half if fits else end
    return labels


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _hues(values: Sequence[Any], ordered: bool) -> list[tuple[Any, str]]:
    """A colour and a marker for each of some lines."""
    if not ordered and len(values) <= len(OKABE_ITO):
        return list(zip(OKABE_ITO, MARKERS, strict=True))[: len(values)]
    import matplotlib

    # its upper end is too light for a line on white
    colours = [matplotlib.colormaps["cividis"](0.85 * place / max(1, len(values) - 1)) for place in range(len(values))]
    return [(colour, MARKERS[place % len(MARKERS)]) for place, colour in enumerate(colours)]


def _legend(figure: "Figure", panels: Sequence["Axes"], title: str = "") -> None:
    """One legend below all panels; the figure grows by it."""
    unique = {text: handle for ax in panels for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(unique), 5, 100 // (6 + max(map(len, unique), default=0))))
    rows = math.ceil(len(unique) / columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(
        unique.values(), unique.keys(), title=title or None, loc="outside lower center", ncols=columns, alignment="center"
    )


def _plain_log(ax: "Axes", axis: Literal["x", "y"], subs: tuple[int, ...]) -> None:
    """A logarithmic axis with labels such as 0.02, at powers of ten times `subs`."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(**{f"{axis}scale": "log"})
    ticks = ax.xaxis if axis == "x" else ax.yaxis
    ticks.set_major_locator(LogLocator(subs=subs))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def _frame(ax: "Axes", values: Sequence[float], intervals: Sequence[Interval]) -> bool:
    """Limits the y axis to what is measured: of two seeds, an interval may be 18 times as wide as they are apart. Returns
    whether one is cut."""
    if not values:
        return False
    low, high = min(values), max(values)
    margin = 0.45 * ((high - low) or abs(high) or 1.0)
    lowest = min([low, *(found.mean - _drawn(found) for found in intervals)])
    highest = max([high, *(found.mean + _drawn(found) for found in intervals)])
    edges = max(lowest, low - margin), min(highest, high + margin)
    room = 0.04 * ((edges[1] - edges[0]) or 1.0)
    ax.set_ylim(edges[0] - room, edges[1] + room)
    return lowest < edges[0] - room or highest > edges[1] + room


# a metric against one key


def _against(study: Study, axis: Axis) -> Picture:
    """The metric against a key, and beside it the plain loss if that is not the metric."""
    metrics = [study.metric]
    if study.metric.columns != (DEFAULT,) and any(group.interval(DEFAULT) for group in study.groups):
        metrics.append(Metric((DEFAULT,)))
    width = _WIDTH / len(metrics)
    figure, panels = _figure(_WIDTH, 3.4, ncols=len(metrics))
    hue = _hue(study, axis)
    cut = [_against_panel(study, Across(ax, axis, width), metric, hue) for ax, metric in zip(panels, metrics, strict=True)]
    for ax, metric in zip(panels, metrics, strict=True):
        ax.set_ylabel(_broken(label(metric)))
        if study.metric.note and metric.columns == (DEFAULT,):
            ax.set_title("each run on its own masks and data")
    _legend(figure, panels, hue.name if hue else "")
    band = "band" if axis.numeric else "bar"
    caption = f"{label(study.metric)} against {axis.name}. Points are runs; "
    joined = f"{'the line joins' if axis.numeric else 'the large ones are'} the best group at each value"
    if len(study.axes) > 1 and hue is None and _once_each(study, axis):
        caption = caption.removesuffix("; ")
    elif len(study.axes) > 1 and hue is None:
        caption += f"{joined}, the other {len(study.axes) - 1} keys chosen freely"
    else:
        caption += f"mean and 95 % interval ({band}) over seeds{f', by {hue.name}' if hue else ''}"
    caption += "; an interval that leaves the frame is cut." if any(cut) else "."
    return Picture(f"by_{_file_name(axis.name)}", _upper(caption), figure)


def _once_each(study: Study, axis: Axis) -> bool:
    """Whether no two groups share a value (a random search): nothing can be chosen at a value, and a line would be noise."""
    return len(axis.values) >= len(study.groups)


def _hue(study: Study, axis: Axis) -> Axis | None:
    others = [each for each in study.axes if each is not axis]
    return others[0] if len(others) == 1 and len(others[0].values) <= MOST_HUES else None


def _against_panel(study: Study, across: Across, metric: Metric, hue: Axis | None) -> bool:
    """Returns whether an interval is cut by the frame."""
    if hue is not None:
        hues = _hues(hue.values, ordered=hue.numeric and len(hue.values) > 2)
        for place, (value, style) in enumerate(zip(hue.values, hues, strict=True)):
            groups = [group for group in study.groups if same(group.values[hue.key]) == same(value)]
            aside = 0.0 if across.axis.numeric else 0.3 * (place / max(1, len(hues) - 1) - 0.5)
            _series(across, groups, metric, style, shown(value), aside)
    elif len(study.axes) == 1:
        _series(across, study.groups, metric, (OKABE_ITO[0], MARKERS[0]), "mean and interval")
    else:
        points = [(across.at(group), value) for group in study.groups for value in _values(group, metric)]
        across.ax.plot(*_unzip(points), linestyle="none", marker="o", color="#888888", alpha=0.5, markersize=4, label="runs")
        if not _once_each(study, across.axis):
            best = _best_by(study, across, metric)
            _series(across, best, metric, (OKABE_ITO[0], MARKERS[0]), "best of the other keys", dots=False)
    limits = [(across.at(group), group.limit(metric)) for group in study.groups]
    _limit_line(across.ax, limits, joined=across.axis.numeric)
    values = [value for group in study.groups for value in _values(group, metric)]
    known = [found for group in study.groups if (found := group.interval(metric)) is not None]
    return _frame(across.ax, values + [y for _, y in limits if math.isfinite(y)], known)


def _series(
    across: Across,
    groups: Sequence[Group],
    metric: Metric | str,
    style: tuple[Any, str],
    name: str,
    aside: float = 0.0,
    dots: bool = True,
) -> None:
    """Points for runs, a line through means, a band (between categories: bars) for intervals."""
    ax, (colour, marker) = across.ax, style
    known = [(across.at(each) + aside, each, found) for each in groups if (found := each.interval(metric)) is not None]
    at, means, halves = [x for x, _, _ in known], [found.mean for *_, found in known], [_drawn(found) for *_, found in known]
    if dots:
        points = [(x, value) for x, group, _ in known for value in _values(group, metric)]
        ax.plot(*_unzip(points), linestyle="none", marker=marker, color=colour, alpha=0.4, markersize=4, zorder=2)
    if not across.axis.numeric:
        ax.errorbar(at, means, halves, linestyle="none", marker=marker, color=colour, capsize=4, markersize=7, label=name)
        return
    ax.plot(at, means, marker=marker, color=colour, label=name, zorder=3)
    low, high = ([mean + sign * half for mean, half in zip(means, halves, strict=True)] for sign in (-1, 1))
    ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _values(group: Group, metric: Metric | str) -> list[float]:
    values = [metric.of(each) if isinstance(metric, Metric) else each.value(metric) for each in group.results]
    return [value for value in values if math.isfinite(value)]


def _drawn(found: Interval) -> float:
    return 0.0 if math.isnan(found.half) else found.half


def _unzip(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _best_by(study: Study, across: Across, metric: Metric) -> list[Group]:
    """The best group of each value of an axis."""
    best: dict[float, Group] = {}
    for group in study.rank(metric):
        best.setdefault(across.at(group), group)
    return [best[place] for place in sorted(best)]


def _limit_line(
    ax: "Axes", points: Sequence[tuple[float, float]], colour: Any = "#333333", name: str = LIMIT, joined: bool = True
) -> None:
    """The oracle's limit at each point, dashed."""
    known = sorted({point for point in points if math.isfinite(point[1])})
    if not known:
        return
    if len({y for _, y in known}) == 1:
        ax.axhline(known[0][1], linestyle="--", linewidth=1.2, color=colour, label=name)
    elif not joined:  # nothing lies between two categories
        at, limits = _unzip(known)
        ax.hlines(limits, [x - 0.3 for x in at], [x + 0.3 for x in at], ls="--", linewidth=1.2, color=colour, label=name)
    else:
        ax.plot(*_unzip(known), linestyle="--", linewidth=1.2, color=colour, label=name)


def _end_mark(ax: "Axes", limit: float, colour: Any, marker: str) -> None:
    """Marks the right end of a limit as the lines that it belongs to are marked: in grey, its colour doesn't tell."""
    if math.isfinite(limit):
        style = {"marker": marker, "color": colour, "markerfacecolor": "white", "markersize": 5, "clip_on": False}
        ax.plot([1.0], [limit], transform=ax.get_yaxis_transform(), **style)


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)


# evaluation conditions


def _conditions(study: Study) -> list[Picture]:
    """The same weights under each condition: lines where one key was swept, and a heat map."""
    conditions = study.conditions
    if len(conditions) < 2 or not study.axes:
        return []
    excess = all(f"val/excess_loss_{each}" in result.summary for each in conditions for result in study.complete)
    pictures = []
    if len(study.axes) == 1 and len(conditions) <= MOST_HUES:
        pictures.append(_condition_lines(study, conditions, excess))
    base = "val/excess_loss" if excess else "val/loss"
    cells = [[_mean(group, f"{base}_{each}") for each in conditions] for group in study.groups]
    if len(study.groups) <= MOST_CELLS and len(conditions) <= MOST_CELLS:
        figure, (ax,) = _figure(min(_WIDTH, 2.6 + 0.95 * len(conditions)), 1.5 + 0.36 * len(study.groups))
        one = study.axes[0] if len(study.axes) == 1 else None
        rows = [shown(group.values[one.key]) if one else study.name(group) for group in study.groups]
        _heat(ax, cells, rows, [condition_name(each) for each in conditions], label(base), best_of="column")
        ax.set_xlabel("evaluated at")
        ax.set_ylabel(f"trained with {one.name}" if one else "trained with")
        caption = f"{label(base)}, of each group (row) under each evaluation condition (column); mean over seeds. "
        pictures.append(Picture("conditions_heat", f"{_upper(caption)}Framed: the best of its column.", figure))
    return pictures


def _condition_lines(study: Study, conditions: list[str], excess: bool) -> Picture:
    (axis,) = study.axes
    figure, panels = _figure(_WIDTH, 3.3, ncols=1 + excess)
    hues = _hues(conditions, ordered=False)
    for ax, base in zip(panels, ("val/loss", "val/excess_loss"), strict=False):
        across = Across(ax, axis, _WIDTH / len(panels))
        for condition, style in zip(conditions, hues, strict=True):
            metric = f"{base}_{condition}"
            _series(across, study.groups, metric, style, condition_name(condition))
            if base == "val/loss":
                limits = [(across.at(group), group.limit(metric)) for group in study.groups]
                _limit_line(ax, limits, style[0], name="_")
                if len({limit for _, limit in limits}) == 1:
                    _end_mark(ax, limits[0][1], *style)
        _frame_conditions(ax, study, [f"{base}_{each}" for each in conditions])
        ax.set_ylabel(_broken(label(base)))
    if excess:
        panels[0].plot([], [], linestyle="--", color="#333333", linewidth=1.2, label=LIMIT)
    _legend(figure, panels, "evaluated at")
    caption = f"The same weights under each evaluation condition, against {axis.name}: mean and 95 % interval over seeds"
    return Picture("conditions", f"{caption}{'; dashed: the best possible loss there' if excess else ''}.", figure)


def _frame_conditions(ax: "Axes", study: Study, columns: list[str]) -> None:
    pairs = [(group, column) for group in study.groups for column in columns]
    values = [value for group, column in pairs for value in (*_values(group, column), group.limit(column))]
    known = [found for group, column in pairs if (found := group.interval(column)) is not None]
    _frame(ax, [value for value in values if math.isfinite(value)], known)


def _mean(group: Group, column: "str | Metric") -> float:
    found = group.interval(column)
    return math.nan if found is None else found.mean


def _broken(text: str) -> str:
    """A long label on two lines."""
    return text.replace(" (", "\n(") if len(text) > 24 else text


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


# pairs of keys


def _pairs(study: Study) -> list[Picture]:
    pairs = list(itertools.combinations(study.axes, 2))
    return [_pair(study, *pair) for pair in pairs[:MOST_PAIRS]]


def _pair(study: Study, across: Axis, down: Axis) -> Picture:
    """A heat map where the pairs fill a grid, and coloured points where they don't (a random search)."""
    best: dict[tuple[str, str], float] = {}
    for group in study.ranked:
        best.setdefault((same(group.values[across.key]), same(group.values[down.key])), _mean(group, study.metric))
    chosen = "" if len(study.axes) == 2 else ", the other keys chosen freely"
    caption = f"{label(study.metric)} for {across.name} and {down.name}{chosen}; mean over seeds."
    name = f"pair_{_file_name(across.name)}_{_file_name(down.name)}"
    sizes = len(across.values), len(down.values)
    if len(best) * 2 < sizes[0] * sizes[1] or max(sizes) > MOST_CELLS:
        return Picture(name, _upper(caption), _scatter(study, across, down))
    rows, columns = ([_short(shown(value)) for value in axis.values] for axis in (down, across))
    values = [[best.get((same(x), same(y)), math.nan) for x in across.values] for y in down.values]
    figure, (ax,) = _figure(min(_WIDTH, 2.8 + 0.9 * len(columns)), 1.5 + 0.4 * len(rows))
    _heat(ax, values, rows, columns, label(study.metric), "all", study.metric.maximize)
    ax.set_xlabel(across.name)
    ax.set_ylabel(down.name)
    return Picture(name, f"{_upper(caption)} Framed: the best.", figure)


def _scatter(study: Study, across: Axis, down: Axis) -> "Figure":
    figure, (ax,) = _figure(5.6, 3.8)
    groups = list(reversed(study.ranked))  # the best on top
    x = Across(ax, across, 4.0)
    places = {same(value): value if down.numeric else place for place, value in enumerate(down.values)}
    if down.logarithmic:
        _plain_log(ax, "y", (1,))
    elif not down.numeric:
        ax.set_yticks(range(len(down.values)), [_short(shown(value)) for value in down.values])
    ax.set_ylabel(down.name)
    points = ax.scatter(
        [x.at(group) for group in groups],
        [places[same(group.values[down.key])] for group in groups],
        c=[_mean(group, study.metric) for group in groups],
        cmap="cividis",
        edgecolors="#333333",
        linewidths=0.5,
        s=36,
    )
    figure.colorbar(points, ax=ax, label=_broken(label(study.metric)))
    return figure


def _heat(
    ax: "Axes",
    cells: list[list[float]],
    rows: list[str],
    columns: list[str],
    name: str,
    best_of: str,
    maximize: bool = False,
) -> None:
    from matplotlib.patches import Rectangle

    ax.set_facecolor("#eeeeee")  # where nothing is known
    image = ax.imshow(cells, cmap="cividis", aspect="auto")
    crowded = max(map(len, columns)) > 12 and len(columns) > 3
    ax.set_xticks(range(len(columns)), columns, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label=_broken(name))
    places = [(y, x) for y in range(len(rows)) for x in range(len(columns)) if math.isfinite(cells[y][x])]
    values = [cells[y][x] for y, x in places]
    digits = 3 if values and max(values) - min(values) >= 0.02 else 4
    norm: Any = image.norm
    for y, x in places if len(rows) * len(columns) <= 150 else []:
        red, green, blue, _ = image.get_cmap()(norm(cells[y][x]))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        ax.text(x, y, f"{cells[y][x]:.{digits}f}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    sign = -1 if maximize else 1
    for column in range(len(columns)) if best_of == "column" else [None]:
        there = [(y, x) for y, x in places if column in (None, x)]
        if len(there) > 1:
            y, x = min(there, key=lambda at: sign * cells[at[0]][at[1]])
            ax.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.2))


# learning curves


def _curves(study: Study) -> list[Picture]:
    """Training and validation loss, and the excess where there is an oracle, against steps."""
    runs = [result for result in study.collection.results if result.curves]
    groups = study.group(runs)
    names = [name for name in ("train/loss", "val/loss", "val/excess_loss") if any(name in each.curves for each in runs)]
    if not names:
        return []
    left_out = max(0, len(groups) - MOST_CURVES)
    if left_out:
        groups = _chosen(study, groups)
    ordered = len(study.axes) == 1 and study.axes[0].numeric and len(groups) > 3
    hues = _hues(groups, ordered)
    figure, panels = _figure(_WIDTH, 3.1, ncols=len(names))
    for ax, name in zip(panels, names, strict=True):
        for group, (colour, marker) in zip(groups, hues, strict=True):
            for result in group.results:
                _curve(ax, result.curves.get(name, []), colour, marker, _short(study.name(group), 60))
        if name == "val/loss":
            _curve_limits(ax, groups, hues)
        if name == "val/excess_loss" and _all_positive(groups, name):
            _plain_log(ax, "y", (1, 2, 5))
        ax.set_title(label(name).replace(" (", "\n("))
        ax.set_xlabel("optimizer steps")
        ax.locator_params(axis="x", nbins=5)
    _legend(figure, panels)
    caption = "Learning curves: a colour is a group, a thin line a run; dashed, the best possible loss."
    if left_out:
        caption += f" Of {len(groups) + left_out} groups, the best {len(groups)} are shown."
    if not study.has_oracle:
        caption = caption.replace("; dashed, the best possible loss", "")
    return [Picture("learning_curves", caption, figure)]


def _chosen(study: Study, groups: list[Group]) -> list[Group]:
    """The best few, in the order of their values."""
    best = [study.name(group) for group in study.ranked[:MOST_CURVES]] or [study.name(group) for group in groups[:MOST_CURVES]]
    return [group for group in groups if study.name(group) in best]


def _curve(ax: "Axes", curve: Curve, colour: Any, marker: str, name: str) -> None:
    points = [(step, value) for step, value in curve if math.isfinite(value)]
    if points:
        # markers tell the lines apart in grey; at every point of a long curve they would hide it
        ax.plot(
            *_unzip(points), color=colour, marker=marker, markersize=3.5, linewidth=0.9, label=name, markevery=_every(points)
        )


def _every(points: Sequence[Any]) -> list[int]:
    last = len(points) - 1
    return list(range(last + 1)) if last < 12 else [round(last * part / 6) for part in range(1, 7)]


def _curve_limits(ax: "Axes", groups: Sequence[Group], hues: Sequence[tuple[Any, str]]) -> None:
    limits = [_curve_limit(group.results) for group in groups]
    known = sorted({round(each, 9) for each in limits if math.isfinite(each)})
    if len(known) == 1:
        ax.axhline(known[0], linestyle="--", linewidth=1.2, color="#333333", label=LIMIT)
        return
    for each, style in zip(limits, hues, strict=True):
        if math.isfinite(each):
            ax.axhline(each, linestyle="--", linewidth=1.0, color=style[0])
            _end_mark(ax, each, *style)
    if known:
        ax.plot([], [], linestyle="--", linewidth=1.0, color="#333333", label=f"{LIMIT}, by colour and mark")


def _curve_limit(results: Sequence[Result]) -> float:
    values = [result.curves["val/oracle_loss"][-1][1] for result in results if result.curves.get("val/oracle_loss")]
    return sum(values) / len(values) if values else math.nan


def _all_positive(groups: Sequence[Group], name: str) -> bool:
    return all(value > 0 for group in groups for result in group.results for _, value in result.curves.get(name, []))

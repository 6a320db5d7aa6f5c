"""How every figure looks, what it is made of, and what it becomes: a PNG, an SVG and a PDF with a caption.

Each is a `matplotlib.figure.Figure` of its own (no pyplot, no window, no global state). Colours are Okabe and Ito's, which
differ for the colour-blind, and every line has a marker of its own for a print in grey; ordered values and heat maps are
cividis, whose lightness rises steadily. Dashed lines are the oracle's limit, dotted ones what counting tokens gives, dashes and
dots what counting pairs gives, and nothing else is drawn so.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlm_lightning.report.groups import Axis, Group, as_text
from mlm_lightning.report.metric import Interval, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FRAME_COLOUR = "#D55E00"
LIMIT = "best possible (oracle)"
LIMIT_COLOUR = "#333333"
COUNTED = {"unigram": ("counting tokens (unigram)", ":"), "bigram": ("counting pairs (bigram)", "-.")}
"""What counts of the training text give: names and line styles."""
WIDTH = 7.4  # inches, of a page
DPI = 200

Cells = list[list[Interval | None]]

LineStyle = tuple[Any, str]
"""A colour and a marker."""

Format = Literal["png", "svg", "pdf"]
FORMATS: dict[Format, str] = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
"""The files of a picture, and what would make two of the same figure differ."""

MOST_BARS = 8
"""Points of a line whose intervals are bars: of few points, or two seeds, a band shows less than it covers."""

TEMPLATES = Path(__file__).parent / "templates"


@contextmanager
def applied() -> Iterator[None]:
    from matplotlib.style import context

    with context(TEMPLATES / "figures.mplstyle"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script than the font's
        yield


@dataclass
class Picture:
    """A figure, the name of its file, and what it shows."""

    name: str
    caption: str
    figure: "Figure"

    def __post_init__(self) -> None:
        self.name = re.sub(r"[^\w.-]", "-", self.name)
        self.caption = self.caption[:1].upper() + self.caption[1:]

    @cached_property
    def png(self) -> bytes:
        return self.rendered("png")

    def rendered(self, kind: Format) -> bytes:
        """The same bytes whenever it is drawn: without a date."""
        file = io.BytesIO()
        with applied():
            self.figure.savefig(file, format=kind, dpi=DPI, metadata={FORMATS[kind]: None})
        return file.getvalue()


def new_figure(width: float, height: float, panels: int = 1, sharey: bool = False) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(ncols=panels, squeeze=False, sharey=sharey).flat)


def line_styles(count: int, ordered: bool = False) -> list[LineStyle]:
    """A colour and a marker for each of some lines."""
    if not ordered and count <= len(OKABE_ITO):
        return list(zip(OKABE_ITO, MARKERS, strict=True))[:count]
    import matplotlib

    # its upper end is too light for a line on white
    colours = [matplotlib.colormaps["cividis"](0.85 * index / max(1, count - 1)) for index in range(count)]
    return [(colour, MARKERS[index % len(MARKERS)]) for index, colour in enumerate(colours)]


def add_legend(figure: "Figure", panels: Sequence["Axes"], title: str = "") -> None:
    """One legend below all panels; the figure grows by it."""
    unique = {text: handle for ax in panels for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    columns = max(1, min(len(unique), 5, 100 // (6 + max(map(len, unique), default=0))))
    rows = math.ceil(len(unique) / columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    look: Any = {"loc": "outside lower center", "ncols": columns, "alignment": "center"}
    figure.legend(unique.values(), unique.keys(), title=title or None, **look)


def on_two_lines(text: str) -> str:
    """A long label, its unit below it."""
    return text.replace(" (", "\n(") if len(text) > 24 else text


def shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def show_key(ax: "Axes", axis: Axis, width: float) -> None:
    """Makes the x axis, `width` inches long, that of a swept key."""
    ax.set_xlabel(axis.name)
    if not axis.numeric:
        names = [shortened(as_text(value)) for value in axis.values]
        name_ticks(ax, names, crowded=sum(map(len, names)) > 60)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.grid(axis="x", visible=False)
        return
    if axis.logarithmic:
        set_log_scale(ax, "x")
    if len(axis.values) <= 10:
        at = [math.log(value) if axis.logarithmic else value for value in axis.values]
        labels, end = [], -math.inf
        for position, text in zip(at, map(as_text, axis.values), strict=True):
            inches, half = 0.85 * width * (position - at[0]) / max(at[-1] - at[0], 1e-300), 0.045 * (len(text) + 1)
            fits = inches - half >= end  # else it would run into the label before
            labels.append(text if fits else "")
            end = inches + half if fits else end
        ax.set_xticks(axis.values, labels)
        ax.set_xticks([], minor=True)


def name_ticks(ax: "Axes", names: Sequence[str], crowded: bool) -> None:
    ax.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")


def set_log_scale(ax: "Axes", axis: Literal["x", "y"], multiples: tuple[int, ...] = (1,)) -> None:
    """A logarithmic axis with labels such as 0.02, at powers of ten times `multiples`."""
    ax.set(**{f"{axis}scale": "log"})
    ticks: Any = ax.xaxis if axis == "x" else ax.yaxis
    ticks.get_major_locator().set_params(subs=multiples)
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter("")


def frame(ax: "Axes", groups: Sequence[Group], metrics: Sequence[str | Metric]) -> bool:
    """Limits the y axis to what is measured: of two seeds, an interval may be 18 times as wide as they are apart. Returns
    whether one is cut."""
    pairs = [(group, metric) for group in groups for metric in metrics]
    values = [value for group, metric in pairs for value in (*group.measured(metric), group.limit(metric))]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return False
    intervals = [found for group, metric in pairs if (found := group.interval(metric))]
    ends = [found.mean + sign * found.margin for found in intervals for sign in (-1, 1)]
    low, high, lowest, highest = min(values), max(values), min([*values, *ends]), max([*values, *ends])
    margin = 0.45 * ((high - low) or abs(high) or 1.0)
    bottom, top = max(lowest, low - margin), min(highest, high + margin)
    room = 0.04 * ((top - bottom) or 1.0)
    ax.set_ylim(bottom - room, top + room)
    return lowest < bottom - room or highest > top + room


def draw_runs(
    ax: "Axes", axis: Axis, groups: Sequence[Group], metric: str | Metric, style: LineStyle, shift: float = 0.0, **more: Any
) -> None:
    """A point for each run."""
    points = [(axis.place(group.values) + shift, value) for group in groups for value in group.measured(metric)]
    look = {"alpha": 0.4, "zorder": 2, "color": style[0], "marker": style[1], "markersize": 4} | more
    ax.plot(*columns(points), linestyle="none", **look)


def draw_series(
    ax: "Axes", axis: Axis, groups: Sequence[Group], metric: str | Metric, style: LineStyle, name: str, shift: float = 0.0
) -> None:
    """A line through the groups' means (none between categories), with bars for their intervals; of many points a band."""
    known = [(axis.place(group.values) + shift, found) for group in groups if (found := group.interval(metric))]
    at, means, margins = np.reshape([(x, found.mean, found.margin) for x, found in known], (-1, 3)).T
    look: Any = {"marker": style[1], "color": style[0]}
    if axis.numeric:
        ax.plot(at, means, zorder=3, label=name, **look)
    if not len(at):
        return
    if axis.numeric and len(at) > MOST_BARS and min(found.n for _, found in known) > 2:
        ax.fill_between(at, means - margins, means + margins, color=style[0], alpha=0.15, linewidth=0)
    else:
        more: Any = {} if axis.numeric else {"label": name, "markersize": 7}
        ax.errorbar(at, means, margins, linestyle="none", capsize=3, elinewidth=1.2, zorder=3, **look, **more)


def draw_limits(ax: "Axes", axis: Axis, groups: Sequence[Group], metric: str | Metric, style: LineStyle | None = None) -> None:
    """The oracle's limit at each group, dashed; `style` is that of the line that it belongs to, where there are several."""
    _draw_reference(ax, axis, [(group, group.limit(metric)) for group in groups], style)


def draw_counted(ax: "Axes", axis: Axis, groups: Sequence[Group], metric: str | Metric) -> None:
    """What counting gives at each group, where that lies in the frame: a model that has learned much is far from it, and a
    frame that shows both would hide how groups differ."""
    bottom, top = ax.get_ylim()
    for kind, (name, line) in COUNTED.items():
        heights = [(group, group.counted(metric, kind)) for group in groups]
        if any(bottom <= height <= top for _, height in heights):
            _draw_reference(ax, axis, heights, None, line, name)
    ax.set_ylim(bottom, top)


def _draw_reference(
    ax: "Axes",
    axis: Axis,
    found: Sequence[tuple[Group, float]],
    style: LineStyle | None,
    line: str = "--",
    name: str = LIMIT,
) -> None:
    """A height at each group."""
    places = {(axis.place(group.values), height) for group, height in found}
    at, heights = columns(sorted(each for each in places if math.isfinite(each[1])))
    if len(set(heights)) == 1:
        draw_level(ax, heights[0], style, line=line, name=name)
    elif axis.numeric and len(at):
        ax.plot(at, heights, **_look(style, line, name))
    elif len(at):  # nothing lies between two categories
        ax.hlines(heights, at - 0.3, at + 0.3, **_look(style, line, name))


def draw_level(
    ax: "Axes", height: float, style: LineStyle | None = None, linewidth: float = 1.2, line: str = "--", name: str = LIMIT
) -> None:
    """A limit, or what counting gives, that is the same everywhere. In a style, its right end is marked as the lines are that
    it belongs to: in grey, its colour doesn't tell."""
    ax.axhline(height, **_look(style, line, name, linewidth))
    if style:
        look: Any = {"marker": style[1], "color": style[0], "markerfacecolor": "white", "markersize": 5, "clip_on": False}
        ax.plot([1.0], [height], transform=ax.get_yaxis_transform(), **look)


def _look(style: LineStyle | None, line: str, name: str, linewidth: float = 1.2) -> dict[str, Any]:
    colour, name = (style[0], "_") if style else (LIMIT_COLOUR, name)
    return {"linestyle": line, "linewidth": linewidth, "color": colour, "label": name}


def contrast(one: Any, other: Any) -> float:
    """The ratio of two colours' luminances, from 1 to 21 (WCAG 2)."""
    from matplotlib.colors import to_rgb

    def luminance(colour: Any) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def text_colour(background: Any) -> str:
    """Black or white, whichever stands out more."""
    return max(("black", "white"), key=lambda colour: contrast(background, colour))


def draw_heat_map(
    ax: "Axes", cells: Cells, rows: list[str], names: list[str], colours: str, per_column: bool, maximize: bool
) -> None:
    """A table of means as `colours`, the numbers with their intervals in the cells, and the best one framed, or that of each
    column. `cells[row][column]` is None where nothing is known."""
    from matplotlib.patches import Rectangle

    ax.set_facecolor("#eeeeee")  # where nothing is known
    means = [[each.mean if each else math.nan for each in row] for row in cells]
    image: Any = ax.imshow(means, cmap="cividis", aspect="auto")
    name_ticks(ax, names, crowded=max(map(len, names)) > 12 and len(names) > 3)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, label=on_two_lines(colours))
    found = {(y, x): each for y, row in enumerate(cells) for x, each in enumerate(row) if each}
    known = {place: each.mean for place, each in found.items()}
    digits = 3 if known and max(known.values()) - min(known.values()) >= 0.02 else 4
    for (y, x), value in known.items() if len(rows) * len(names) <= 150 else ():
        half = found[y, x].half
        text = f"{value:.{digits}f}" + (f"\n± {half:.{digits}f}" if math.isfinite(half) else "")
        colour = text_colour(image.cmap(image.norm(value)))
        ax.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.15, color=colour)
    for column in range(len(names)) if per_column else [None]:
        compared = [(y, x) for y, x in known if column in (None, x)]
        if len(compared) > 1:
            y, x = (max if maximize else min)(compared, key=lambda cell: known[cell])
            ax.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=FRAME_COLOUR, linewidth=2.2))


def columns(points: Sequence[tuple[float, float]]) -> Any:
    """The x and the y of some points."""
    return np.reshape(points, (-1, 2)).T

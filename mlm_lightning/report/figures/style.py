"""How every figure looks, and what it becomes: a PNG with a caption.

Each is a `matplotlib.figure.Figure` of its own (no pyplot, no window, no global state). Colours are Okabe and Ito's, which
differ for the colour-blind, and every line has a marker of its own for a print in grey; ordered values and heat maps are
cividis, whose lightness rises steadily. Dashed lines are the oracle's limit, and nothing else is dashed.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FRAME_COLOUR = "#D55E00"
LIMIT = "best possible (oracle)"
LIMIT_COLOUR = "#333333"
WIDTH = 7.4  # inches, of a page
MAX_COLOURS, MAX_CELLS = 10, 20

LineStyle = tuple[Any, str]
"""A colour and a marker."""

_RC: Any = {
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


@contextmanager
def style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script than the font's
        yield


@dataclass
class Picture:
    """A figure, the name of its file, and what it shows."""

    name: str
    caption: str
    figure: "Figure"

    def __post_init__(self) -> None:
        self.name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in self.name)
        self.caption = self.caption[:1].upper() + self.caption[1:]

    @cached_property
    def png(self) -> bytes:
        file = io.BytesIO()
        with style():
            self.figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
        return file.getvalue()


def new_figure(width: float, height: float, **subplots: Any) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(squeeze=False, **subplots).flat)


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
    figure.legend(
        unique.values(), unique.keys(), title=title or None, loc="outside lower center", ncols=columns, alignment="center"
    )


def on_two_lines(text: str) -> str:
    """A long label, its unit below it."""
    return text.replace(" (", "\n(") if len(text) > 24 else text


def shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"

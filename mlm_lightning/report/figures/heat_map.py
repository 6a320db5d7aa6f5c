"""A table of numbers as colours, the numbers in the cells and the best ones framed."""

import math
from typing import TYPE_CHECKING, Any, Literal

from mlm_lightning.report.figures.elements import name_ticks
from mlm_lightning.report.figures.style import FRAME_COLOUR, on_two_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_heat_map(
    ax: "Axes",
    cells: list[list[float]],
    rows: list[str],
    columns: list[str],
    name: str,
    best_of: Literal["column", "all"],
    maximize: bool = False,
) -> None:
    """`cells[row][column]`, NaN where nothing is known; `name` is that of the colours."""
    from matplotlib.patches import Rectangle

    ax.set_facecolor("#eeeeee")  # where nothing is known
    image = ax.imshow(cells, cmap="cividis", aspect="auto")
    name_ticks(ax, columns, crowded=max(map(len, columns)) > 12 and len(columns) > 3)
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label=on_two_lines(name))
    known = {(y, x): cells[y][x] for y in range(len(rows)) for x in range(len(columns)) if math.isfinite(cells[y][x])}
    digits = 3 if known and max(known.values()) - min(known.values()) >= 0.02 else 4
    norm: Any = image.norm
    for (y, x), value in known.items() if len(rows) * len(columns) <= 150 else ():
        red, green, blue, _ = image.get_cmap()(norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        ax.text(x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
    for column in range(len(columns)) if best_of == "column" else [None]:
        compared = [(y, x) for y, x in known if column in (None, x)]
        if len(compared) > 1:
            y, x = (max if maximize else min)(compared, key=lambda cell: known[cell])
            ax.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=FRAME_COLOUR, linewidth=2.2))

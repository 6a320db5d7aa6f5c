"""Where each layer looks: its attention averaged over rows, as maps, and as its share at each distance.

    weights_BHLL of a layer ─ mean over rows ─►  a map: query (down) × key (across)
                            └ sum over keys at one distance, mean over queries ─►  the layer's mass at that distance

Queries are told apart: at a masked position a token is to be predicted, at a visible one it is known. Beside the mass stands
that of an attention that looks at all tokens alike. Shapes beyond those of `batch`: H heads, C distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mlm_lightning.analysis.distances import Distances
from mlm_lightning.analysis.finding import Finding, Record
from mlm_lightning.analysis.subject import Subject
from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.errors import ConfigError
from mlm_lightning.models.attention import listening
from mlm_lightning.report import style
from mlm_lightning.report.style import WIDTH, Picture

NAME = "attention"
QUERIES = ("masked", "visible")
_LARGEST = 2**26
"""Elements of a layer's weights that are worked on at once."""
_ALIKE = 0.05
"""Mean distances that differ by less are no finding."""
_LOG_RANGE = 3
"""Of maps: from 1/8 to 8 times what a uniform attention gives."""


@dataclass
class Maps:
    """The attention of a model, by the queries that look: `sums[queries]` are those of the weights, one HLL a layer, and
    `counts[queries]`, L, the queries at each position. `uniform[queries]`, LL, are sums that look at all tokens alike."""

    title: str
    distances: Distances
    num_rows: int = 0
    sums: dict[str, list[Tensor]] = field(default_factory=dict)
    uniform: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        return len(self.sums[QUERIES[0]])

    def map(self, layer: int) -> Tensor:
        """The mean over all rows, (H, query, key); NaN where no row has a token."""
        masked, visible = QUERIES
        return (self.sums[masked][layer] + self.sums[visible][layer]) / (self.counts[masked] + self.counts[visible])[:, None]

    def mass(self, queries: str, layer: int | None) -> Tensor:
        """The share of the attention at each distance, HC, from 0 on; 1C of the uniform one (None)."""
        sums_HLL = self.uniform[queries][None] if layer is None else self.sums[queries][layer]
        classes_T = self.distances.class_LL.flatten()
        mass_HC = sums_HLL.new_zeros(len(sums_HLL), len(self.distances.labels)).index_add_(1, classes_T, sums_HLL.flatten(1))
        return mass_HC / self.counts[queries].sum()

    def mean_distance(self, queries: str, layer: int | None) -> float:
        """Of what is looked at, averaged over heads."""
        sums_LL = self.uniform[queries] if layer is None else self.sums[queries][layer].mean(0)
        return float((sums_LL * self.distances.apart_LL).sum() / self.counts[queries].sum())


def measure(subject: Subject, title: str = "") -> Maps:
    """Raises ConfigError where nothing can be heard of the model's attention."""
    maps: Maps | None = None
    for batch in _in_parts(subject):
        heard: list[Tensor] = []
        queries_QBL = _queries(batch)

        def listener(weights_BHLL: Tensor) -> None:
            # a mean over rows at once: all weights of all layers would not fit
            heard.append(torch.einsum("qbl,bhlm->qhlm", queries_QBL, weights_BHLL).double())  # noqa: B023

        with listening(listener):
            subject.run(batch)
        if not heard or any(each.shape[-2:] != heard[0].shape[-2:] for each in heard):
            name = type(subject.model).__name__
            problem = f"the model {name} computes its attention in a way that can't be listened to"
            raise ConfigError("analysis", NAME, problem, "a model of your own calls mlm_lightning.models.attention.attend")
        maps = maps or Maps(title, Distances.of(subject.source, batch.input_ids_BL.shape[1]))
        _add(maps, batch, queries_QBL, heard)
    assert maps is not None
    return maps


def _in_parts(subject: Subject) -> Any:
    for batch in subject.batches("val"):
        size = max(1, _LARGEST // (16 * batch.input_ids_BL.shape[1] ** 2))
        for start in range(0, len(batch.input_ids_BL), size):
            rows = slice(start, start + size)
            yield MLMBatch(*(None if each is None else each[rows] for each in batch))  # type: ignore[arg-type]


def _queries(batch: MLMBatch) -> Tensor:
    """1 at the positions of each of QUERIES, 0 elsewhere, in their order."""
    masked_BL = batch.labels_BL != IGNORE_INDEX
    token_BL = torch.ones_like(masked_BL) if batch.attention_mask_BL is None else batch.attention_mask_BL != 0
    return torch.stack((masked_BL, token_BL & ~masked_BL)).float()


def _add(maps: Maps, batch: MLMBatch, queries_QBL: Tensor, heard: Sequence[Tensor]) -> None:
    maps.num_rows += len(batch.input_ids_BL)
    tokens_BL = queries_QBL.sum(0)
    alike_BL = tokens_BL / tokens_BL.sum(1, keepdim=True)
    uniform_QLL = torch.einsum("qbl,bm->qlm", queries_QBL, alike_BL).double()
    for index, queries in enumerate(QUERIES):
        sums = [each[index] for each in heard]
        before = maps.sums.get(queries)
        maps.sums[queries] = sums if before is None else [one + other for one, other in zip(before, sums, strict=True)]
        maps.uniform[queries] = maps.uniform.get(queries, torch.tensor(0.0)) + uniform_QLL[index]
        maps.counts[queries] = maps.counts.get(queries, torch.tensor(0.0)) + queries_QBL[index].sum(0).double()


def finding(all_maps: Sequence[Maps], heads: bool = False) -> Finding:
    """Of one model, or of several side by side; with `heads` the maps are those of each head."""
    with style.applied():
        pictures = [_draw_maps(all_maps, heads), _draw_mass(all_maps)]
    table = [record for maps in all_maps for record in _table(maps, len(all_maps) > 1)]
    numbers = [record for maps in all_maps for record in _numbers(maps)]
    return Finding(NAME, [_sentence(maps) for maps in all_maps], table, numbers, pictures)


def _short(label: str) -> str:
    return label.replace("\n", " ")


def _table(maps: Maps, titled: bool) -> list[Record]:
    """The masked queries' attention, a line a layer, averaged over heads."""
    layers: list[tuple[str, int | None]] = [(f"{layer + 1}", layer) for layer in range(maps.num_layers)]
    rows, uniform_C = list[Record](), maps.mass("masked", None)[0]
    for name, layer in [*layers, ("uniform", None)]:
        mass_C = maps.mass("masked", layer).mean(0)
        shares = {_short(label): float(share) for label, share in zip(maps.distances.labels, mass_C, strict=True)}
        row = {"layer": name, "mean": maps.mean_distance("masked", layer)} | shares
        if layer is not None:
            times_C = (mass_C / uniform_C).nan_to_num(0.0)
            most = int(times_C.argmax())
            row["most above uniform"] = f"{_short(maps.distances.labels[most])} ({float(times_C[most]):.1f}x)"
        rows.append(({"model": maps.title} if titled else {}) | row | ({} if layer is not None else {"most above uniform": ""}))
    return rows


def _numbers(maps: Maps) -> list[Record]:
    rows: list[Record] = []
    for queries in QUERIES:
        uniform_C = maps.mass(queries, None)[0]
        for layer in range(maps.num_layers):
            mass_HC = maps.mass(queries, layer)
            named = [("mean", mass_HC.mean(0)), *((str(head + 1), mass_C) for head, mass_C in enumerate(mass_HC))]
            for head, mass_C in named:
                for distance, label in enumerate(maps.distances.labels):
                    row = {"model": maps.title, "queries": queries, "layer": layer + 1, "head": head, "distance": distance}
                    row |= {"what": _short(label), "mass": float(mass_C[distance]), "uniform": float(uniform_C[distance])}
                    rows.append(row)
    return rows


def _sentence(maps: Maps) -> str:
    means = [maps.mean_distance("masked", layer) for layer in range(maps.num_layers)]
    uniform = maps.mean_distance("masked", None)
    start, kind = f"{maps.title}: " if maps.title else "", maps.distances.name.partition(",")[0]
    if max(means) - min(means) < _ALIKE:
        return f"{start}from masked positions, all layers look equally far: mean {kind} {means[0]:.2f}, uniform {uniform:.2f}"
    near, far = means.index(min(means)), means.index(max(means))
    return (
        f"{start}from masked positions, layer {near + 1} looks nearest (mean {kind} {means[near]:.2f}) and layer {far + 1} "
        f"farthest ({means[far]:.2f}); a uniform attention: {uniform:.2f}{_among_related(maps, near)}"
    )


def _among_related(maps: Maps, layer: int) -> str:
    """What stays where a filter level has left more than the root in common."""
    if (related := maps.distances.related) is None:
        return ""
    share, uniform = (float(maps.mass("masked", each).mean(0)[: related + 1].sum()) for each in (layer, None))
    among = f"among leaves that have more than the root in common (uniform: {uniform:.0%})"
    return f"; {share:.0%} of layer {layer + 1}'s attention stays {among}"


def _draw_maps(all_maps: Sequence[Maps], heads: bool) -> Picture:
    """A row of panels a model, or a head of one; a column a layer."""
    rows: list[tuple[str, Maps, int | None]] = [(maps.title, maps, None) for maps in all_maps]
    if heads:
        prefixes = [(f"{maps.title}\n" if maps.title else "", maps) for maps in all_maps]
        rows = [
            (f"{prefix}head {head + 1}", maps, head) for prefix, maps in prefixes for head in range(len(maps.sums["masked"][0]))
        ]
    columns = max(maps.num_layers for maps in all_maps)
    panel = min(2.4, (WIDTH - 0.9) / columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(panel * columns + 0.9, (panel + 0.15) * len(rows) + 0.7))
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    image: Any = None
    for row, (name, maps, head) in enumerate(rows):
        length = len(maps.distances.class_LL)
        for layer, ax in enumerate(axes[row]):
            if layer >= maps.num_layers:
                ax.set_axis_off()
                continue
            map_HLL = maps.map(layer) * length
            map_LL = map_HLL.mean(0) if head is None else map_HLL[head]
            image = ax.imshow(map_LL.log2(), cmap="cividis", vmin=-_LOG_RANGE, vmax=_LOG_RANGE)
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0, labelsize=7)
            every = max(1, length // 4)
            ax.set_xticks(range(0, length, every))
            ax.set_yticks(range(0, length, every))
            if row == 0 or head is None:
                far = "" if head is not None else f"distance {maps.mean_distance('masked', layer):.1f}"
                ax.set_title("\n".join(filter(None, [f"layer {layer + 1}" if row == 0 else "", far])), fontsize=9)
            if row == len(rows) - 1:
                ax.set_xlabel("key", fontsize=8)
            else:
                ax.tick_params(labelbottom=False)
        axes[row][0].set_ylabel(f"{name}\nquery" if name else "query", fontsize=8)
    bar = figure.colorbar(image, ax=axes, label="times uniform", shrink=min(1.0, 2.5 / len(rows)), aspect=25)
    ticks = range(-_LOG_RANGE, _LOG_RANGE + 1)
    bar.set_ticks(list(ticks), labels=[f"{2.0**tick:g}" if tick >= 0 else f"1/{2**-tick}" for tick in ticks])
    caption = (
        f"Where each layer looks: attention averaged over {all_maps[0].num_rows} validation rows"
        f"{'' if heads else ' and over heads'}, in multiples of what looking at all tokens alike gives"
        f"{'' if heads else '; above each map, the mean distance from masked positions'}"
    )
    return Picture(f"{NAME}_maps", caption, figure)


def _draw_mass(all_maps: Sequence[Maps]) -> Picture:
    """Shares by distance: of one model a panel for masked and one for visible queries, of several a panel each, masked."""
    if len(all_maps) == 1:
        panels = [(all_maps[0], queries, f"from {queries} positions") for queries in QUERIES]
    else:
        panels = [(maps, "masked", maps.title) for maps in all_maps]
    figure, axes = style.new_figure(WIDTH if len(panels) < 4 else 1.5 * WIDTH, 2.7, len(panels), sharey=True)
    for ax, (maps, queries, title) in zip(axes, panels, strict=True):
        at = list(range(len(maps.distances.labels)))
        looks = style.line_styles(maps.num_layers, ordered=maps.num_layers > 2)
        for layer, (colour, marker) in enumerate(looks):
            mass_C = maps.mass(queries, layer).mean(0)
            ax.plot(at, mass_C, color=colour, marker=marker, label=f"layer {layer + 1}")
        ax.bar(at, maps.mass(queries, None)[0], color="#d9d9d9", width=0.6, label="uniform")
        crowded = len(panels) > 2
        labels = [label.split("\n")[0] if crowded else label for label in maps.distances.labels]
        ax.set_xticks(at, labels, fontsize=8)
        if (related := maps.distances.related) is not None:
            ax.axvspan(related + 0.5, at[-1] + 0.3, color="#e3eef8", zorder=0)
        ax.set_title(title)
        ax.set_ylim(0, None)
        ax.set_xlabel(maps.distances.name.partition(",")[0] if crowded else maps.distances.name, fontsize=9)
    axes[0].set_ylabel("share of the attention")
    style.add_legend(figure, axes)
    caption = f"How far {'masked positions' if len(all_maps) > 1 else 'positions'} look, by layer, averaged over heads"
    grey = [maps for maps in all_maps if maps.distances.related is not None]
    if grey:
        caption += "; in blue: leaves that are related through the root alone"
    return Picture(f"{NAME}_by_distance", caption, figure)

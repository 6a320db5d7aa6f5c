"""What is computed where: linear probes from each layer's hidden states to the latent variables behind the tokens.

              root                 level 0: one node, the whole row below it
          ┌────┴────┐
          a         b              level 1: two nodes, the states below each:   mean over its leaves ─► linear map ─► symbol
        ┌─┴─┐     ┌─┴─┐
    h_1   h_2   h_3   h_4          hidden states of a layer

A node's features are the mean of the hidden states at the positions below it, so that one probe serves all nodes of a level.
Probes are fitted to rows for training and tested on rows of validation, which are masked as in evaluation or whole. Of masked
rows, nodes with something masked below are asked about: all others are as in whole rows. The oracle's accuracy, on the same
nodes, is what no function of the tokens exceeds; what a probe lacks may be there all the same, if not linearly.

Shapes beyond those of `batch`: N nodes of a level, S symbols, E examples (nodes of all rows), F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_lightning.analysis.finding import Finding, Record, listed
from mlm_lightning.analysis.hidden import layers_of, watched
from mlm_lightning.analysis.subject import Subject, original_tokens, unmasked
from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.source import LatentOracle, LatentRows, Split
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.report import style
from mlm_lightning.report.style import WIDTH, Picture

NAME = "probe"
MAX_EXAMPLES = 8192
"""Nodes of a level that a probe is fitted to, and as many that it is tested on."""
L2 = 1e-4
"""Of the weights' squared norm, beside the mean loss; features have unit variance."""
ROWS = ("masked", "whole")


@dataclass
class Examples:
    """Nodes of one latent variable: `features[layer]` (E, F), their true symbols, the oracle's guesses (-1: there is no
    oracle), and the row that each is of."""

    features: list[Tensor]
    symbols_E: Tensor
    guesses_E: Tensor
    rows_E: Tensor


@dataclass
class Probed:
    """How well one layer tells one latent variable."""

    rows: str
    latent: str
    layer: int
    accuracy: float
    se: float
    oracle: float
    over_oracle_se: float
    nodes: int


def fit(features_EF: Tensor, symbols_E: Tensor, num_symbols: int, l2: float = L2) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, deterministic, in float64: the weights (F, S) and biases (S) that minimise the mean
    loss + l2/2 · |weights|² of features that are scaled to mean 0 and variance 1."""
    x_EF = features_EF.double()
    mean_F, std_F = x_EF.mean(0), x_EF.std(0, correction=0)
    scale_F = torch.where(std_F > 1e-9 * std_F.max().clamp(min=1e-300), 1 / std_F, 0.0)
    x_EF = (x_EF - mean_F) * scale_F
    # along the principal axes, each scaled by about its curvature, the same optimum is a few steps away
    variances_F, axes_FF = torch.linalg.eigh(x_EF.T @ x_EF / len(x_EF))
    steps_F = (variances_F.clamp(min=0) / 4 + l2).rsqrt()
    axes_FF = axes_FF * steps_F
    x_EF = x_EF @ axes_FF
    found_FS = torch.zeros(x_EF.shape[1], num_symbols, dtype=torch.float64, requires_grad=True)
    bias_S = torch.zeros(num_symbols, dtype=torch.float64, requires_grad=True)
    search: dict[str, Any] = {"line_search_fn": "strong_wolfe", "history_size": 20}
    optimizer = torch.optim.LBFGS([found_FS, bias_S], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-10, **search)

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = l2 / 2 * (found_FS * steps_F[:, None]).square().sum()
        value = F.cross_entropy(x_EF @ found_FS + bias_S, symbols_E) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    weight_FS = axes_FF @ found_FS.detach() * scale_F[:, None]
    return weight_FS, bias_S.detach() - mean_F @ weight_FS


def check(subject: Subject) -> None:
    """Raises ConfigError where there is nothing to probe, or no layers to probe it in."""
    rows = subject.source.rows("val")
    values = rows.latents(torch.tensor([0])) if isinstance(rows, LatentRows) else {}
    if not values:
        problem = f"the data ({type(subject.source).__name__}) has no latent variables that a probe could look for"
        raise ConfigError("analysis", NAME, problem, "give a run on a language that has, such as data=tree")
    length = subject.source.seq_len
    for name, values_BN in values.items():
        if length % (nodes := values_BN.shape[1]):
            problem = f"{nodes} nodes of {name} can't share {length} positions equally"
            raise ConfigError("analysis", NAME, problem, "give a language whose nodes stand over equally many positions")
    if not layers_of(subject.model):
        problem = f"the model {type(subject.model).__name__} keeps no layers in an nn.ModuleList"
        raise ConfigError("analysis", NO_VALUE, problem, f"leave out {NAME}")


def examine(subject: Subject) -> Finding:
    """Raises ConfigError as `check` does."""
    check(subject)
    found = [probed for rows in ROWS for probed in _probe(subject, rows)]
    with style.applied():
        picture = _draw(found, subject.source.seq_len)
    numbers: list[Record] = [dict(vars(each)) for each in found]
    return Finding(NAME, [_sentence(found, rows) for rows in ROWS], _table(found), numbers, [picture])


def _probe(subject: Subject, rows: str) -> Iterator[Probed]:
    train, val = (_examples(subject, split, rows) for split in ("train", "val"))
    for latent, learned in train.items():
        tested = val[latent]
        num_symbols = int(torch.cat((learned.symbols_E, tested.symbols_E)).max()) + 1
        oracle_right_E = (tested.guesses_E == tested.symbols_E).double()
        has_oracle = bool((tested.guesses_E >= 0).all())
        for layer, (features_EF, tested_EF) in enumerate(zip(learned.features, tested.features, strict=True)):
            weight_FS, bias_S = fit(features_EF, learned.symbols_E, num_symbols)
            guesses_E = (tested_EF.double() @ weight_FS + bias_S).argmax(1)
            right_E = (guesses_E == tested.symbols_E).double()
            accuracy, se = clustered(right_E, tested.rows_E)
            oracle, _ = clustered(oracle_right_E, tested.rows_E)
            _, over_se = clustered(right_E - oracle_right_E, tested.rows_E)
            nan = float("nan")
            compared = (oracle, over_se) if has_oracle else (nan, nan)
            yield Probed(rows, latent, layer, accuracy, se, *compared, len(right_E))


def clustered(values_E: Tensor, rows_E: Tensor) -> tuple[float, float]:
    """The mean, and its standard error, where examples of one row may depend on each other."""
    mean = values_E.mean()
    residuals_R = torch.zeros(int(rows_E.max()) + 1, dtype=torch.float64).index_add_(0, rows_E, values_E - mean)
    return float(mean), float(residuals_R.square().sum().sqrt() / len(values_E))


def _examples(subject: Subject, split: Split, rows: str) -> dict[str, Examples]:
    """By the latent variables' names, those that are the same as one before left out; at most MAX_EXAMPLES of each."""
    of_split = subject.source.rows(split)
    assert isinstance(of_split, LatentRows)
    parts: dict[str, list[Examples]] = {}
    counts: dict[str, int] = {}
    with watched(layers_of(subject.model)) as states:
        for batch in subject.batches(split, MAX_EXAMPLES):
            values = _distinct(of_split, batch.row_ids_B)
            wanted = [name for name in values if counts.get(name, 0) < MAX_EXAMPLES]
            if not wanted:
                break
            subject.run(batch if rows == "masked" else unmasked(batch))
            for name, part in _of_batch(subject, batch, rows, {each: values[each] for each in wanted}, states):
                room = MAX_EXAMPLES - counts.get(name, 0)
                cut = Examples(
                    [x[:room] for x in part.features], part.symbols_E[:room], part.guesses_E[:room], part.rows_E[:room]
                )
                parts.setdefault(name, []).append(cut)
                counts[name] = counts.get(name, 0) + len(cut.symbols_E)
    return {name: _joined(each) for name, each in parts.items()}


@exactly()
def _distinct(rows: LatentRows, index_B: Tensor) -> dict[str, Tensor]:
    """Their true values, each variable once: a tree's root is its level 0."""
    values = rows.latents(index_B)
    names = [name for name in values if not (name == "level_0" and "root" in values)]
    return {name: values[name] for name in names}


def _of_batch(
    subject: Subject, batch: MLMBatch, rows: str, values: dict[str, Tensor], states: list[Tensor]
) -> Iterator[tuple[str, Examples]]:
    masked_BL = batch.labels_BL != IGNORE_INDEX
    oracle, observed_BL = subject.condition.oracle, ~masked_BL if rows == "masked" else torch.ones_like(masked_BL)
    with exactly():
        exact = oracle.latents(original_tokens(batch), observed_BL) if isinstance(oracle, LatentOracle) else {}
    for name, values_BN in values.items():
        nodes = values_BN.shape[1]
        asked_BN = torch.ones_like(values_BN, dtype=torch.bool)
        if rows == "masked":
            asked_BN = masked_BL.unflatten(1, (nodes, -1)).any(2)
        guesses_BN = exact[name].argmax(2) if name in exact else torch.full_like(values_BN, -1)
        rows_BN = batch.row_ids_B[:, None].expand_as(values_BN)
        features = [x_BLD.unflatten(1, (nodes, -1)).mean(2)[asked_BN].float() for x_BLD in states]
        yield name, Examples(features, values_BN[asked_BN], guesses_BN[asked_BN], rows_BN[asked_BN])


def _joined(parts: list[Examples]) -> Examples:
    features = [torch.cat(each) for each in zip(*(part.features for part in parts), strict=True)]
    symbols_E, guesses_E, rows_E = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("symbols_E", "guesses_E", "rows_E")
    )
    return Examples(features, symbols_E, guesses_E, rows_E)


# what it says


def layer_name(layer: int) -> str:
    return f"layer {layer}" if layer else "embeddings"


def best_layer(probed: list[Probed]) -> Probed:
    """The first layer whose accuracy is within a standard error of the highest."""
    highest = max(probed, key=lambda each: each.accuracy)
    return next(each for each in probed if each.accuracy >= highest.accuracy - highest.se)


def _by_latent(found: list[Probed], rows: str) -> dict[str, list[Probed]]:
    by_latent: dict[str, list[Probed]] = {}
    for each in found:
        if each.rows == rows:
            by_latent.setdefault(each.latent, []).append(each)
    return by_latent


def _table(found: list[Probed]) -> list[Record]:
    records: list[Record] = []
    for rows in ROWS:
        for latent, probed in _by_latent(found, rows).items():
            accuracies = {layer_name(each.layer): each.accuracy for each in probed}
            best = layer_name(best_layer(probed).layer)
            records.append({"rows": rows, "latent": latent, **accuracies, "oracle": probed[0].oracle, "best in": best})
    return records


def _sentence(found: list[Probed], rows: str) -> str:
    parts = []
    for latent, probed in _by_latent(found, rows).items():
        best = best_layer(probed)
        oracle = "" if best.oracle != best.oracle else f"; oracle {best.oracle:.3f}"
        parts.append(f"{latent.replace('_', ' ')} in {layer_name(best.layer)} ({best.accuracy:.3f}{oracle})")
    what = "nodes above masked tokens" if rows == "masked" else "whole rows"
    return f"{what}: decoded best are {listed(parts)}"


def _draw(found: list[Probed], seq_len: int) -> Picture:
    figure, axes = style.new_figure(WIDTH, 3.2, len(ROWS), sharey=True)
    titles = {"masked": "nodes above masked tokens", "whole": "whole rows"}
    for ax, rows in zip(axes, ROWS, strict=True):
        by_latent = _by_latent(found, rows)
        looks = style.line_styles(len(by_latent), ordered=len(by_latent) > 2)
        for look, (latent, probed) in zip(looks, by_latent.items(), strict=True):
            layers = [each.layer for each in probed]
            accuracies, margins = [each.accuracy for each in probed], [1.96 * each.se for each in probed]
            ax.errorbar(layers, accuracies, margins, color=look[0], marker=look[1], capsize=2, label=latent.replace("_", " "))
            if probed[0].oracle == probed[0].oracle:
                style.draw_level(ax, probed[0].oracle, look)
        ax.set_xticks(layers, ["emb.", *map(str, layers[1:])])
        ax.set_xlabel("layer")
        ax.set_title(titles[rows])
    axes[0].set_ylabel("accuracy of a linear probe")
    style.add_legend(figure, axes)
    caption = (
        "What is computed where: the symbols of inner nodes, read linearly from the hidden states below them; "
        "bars are 95 % intervals, dashed lines the exact posterior's accuracy on the same nodes"
    )
    return Picture(NAME, caption, figure)

"""Whether a model's predictions are the exact ones: its distribution at masked positions beside the oracle's, symbol by symbol.

    in sample        rows of the run's language
    out of sample    the same masks on rows of independent uniform symbols, which the model has never seen

A model that has learned how to infer, and not only what is frequent, agrees out of sample, too.
Shapes beyond those of `batch`: P predictions, Q symbols.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlm_lightning.analysis.finding import Finding, Record
from mlm_lightning.analysis.subject import Subject, original_tokens
from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.source import Oracle
from mlm_lightning.errors import ConfigError
from mlm_lightning.report import style
from mlm_lightning.report.style import WIDTH, Picture

NAME = "posterior"
BINS = 20
MOST_PANELS = 6
"""Symbols with a panel each; more of them share one."""


@dataclass
class Compared:
    """The two distributions at each prediction, over all tokens."""

    sample: str
    model_PV: Tensor
    exact_PV: Tensor
    skipped: int = 0

    @property
    def kl_P(self) -> Tensor:
        """From the model to the oracle, in nats."""
        return (torch.special.xlogy(self.exact_PV, self.exact_PV) - torch.xlogy(self.exact_PV, self.model_PV)).sum(1)

    @property
    def ignorance(self) -> float:
        """The divergence of a model that says the oracle's mean everywhere."""
        mean_PV = self.exact_PV.mean(0).expand_as(self.exact_PV)
        return float(Compared(self.sample, mean_PV, self.exact_PV).kl_P.mean())

    @property
    def difference_P(self) -> Tensor:
        return (self.model_PV - self.exact_PV).abs().amax(1)


def check(subject: Subject) -> None:
    """Raises ConfigError where nothing exact is known."""
    if subject.condition.oracle is None:
        problem = f"the data ({type(subject.source).__name__}) has no exact posterior to compare with"
        raise ConfigError("analysis", NAME, problem, "give a run on a language that has, such as data=tree or data=uniform")


def examine(subject: Subject) -> Finding:
    """Raises ConfigError as `check` does."""
    check(subject)
    found = [compare(subject, "in sample")]
    if _has_symbols_alone(subject):
        found.append(compare(subject, "out of sample"))
    symbols = subject.source.vocab.regular_ids.tolist()
    with style.applied():
        picture = _draw(found, symbols)
    numbers = [record for each in found for record in _numbers(each, symbols)]
    return Finding(NAME, [_sentence(each) for each in found], [_record(each) for each in found], numbers, [picture])


def _has_symbols_alone(subject: Subject) -> bool:
    """Whether its rows are of the symbols 0 … q-1, as those of `uniform` are."""
    vocab = subject.source.vocab
    return vocab.tokens is None and vocab.regular_ids.tolist() == list(range(vocab.size - 1))


def compare(subject: Subject, sample: str) -> Compared:
    oracle, parts, skipped = subject.condition.oracle, list[tuple[Tensor, Tensor]](), 0
    assert oracle is not None
    for batch in subject.batches("val"):
        shown = batch if sample == "in sample" else _replaced(batch, subject)
        masked_BL, tokens_BL = shown.labels_BL != IGNORE_INDEX, original_tokens(shown)
        exact_BLV, possible_B = exact_posteriors(oracle, tokens_BL, ~masked_BL)
        skipped += int((~possible_B).sum())
        asked_BL = masked_BL & possible_B[:, None]
        parts.append((subject.run(shown).double().softmax(-1)[asked_BL], exact_BLV[asked_BL].double()))
    model_PV, exact_PV = (torch.cat(each) for each in zip(*parts, strict=True))
    return Compared(sample, model_PV, exact_PV, skipped)


def _replaced(batch: MLMBatch, subject: Subject) -> MLMBatch:
    """The same masks on uniform symbols."""
    symbols, length = subject.source.vocab.size - 1, batch.input_ids_BL.shape[1]
    tokens_BL = UniformSource(symbols, length, val_size=int(batch.row_ids_B.max()) + 1).rows("val")[batch.row_ids_B]
    masked_BL = batch.labels_BL != IGNORE_INDEX
    shown_BL = masked_BL & (batch.input_ids_BL == subject.source.vocab.mask_id)
    return batch._replace(
        input_ids_BL=torch.where(shown_BL, batch.input_ids_BL, tokens_BL),
        labels_BL=torch.where(masked_BL, tokens_BL, batch.labels_BL),
    )


@exactly()
def exact_posteriors(oracle: Oracle, tokens_BL: Tensor, observed_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the rows, BLV, and which of them, B, are possible in the oracle's language at all."""
    possible_B = torch.ones(len(tokens_BL), dtype=torch.bool)
    try:
        return oracle.posterior(tokens_BL, observed_BL), possible_B
    except ValueError:  # of one row at least
        found = [_of_row(oracle, tokens_BL[row : row + 1], observed_BL[row : row + 1]) for row in range(len(tokens_BL))]
    possible_B = torch.tensor([each is not None for each in found])
    nothing_1LV = torch.zeros(1, *tokens_BL.shape[1:], _width(found))
    return torch.cat([nothing_1LV.double() if each is None else each for each in found]), possible_B


def _of_row(oracle: Oracle, tokens_1L: Tensor, observed_1L: Tensor) -> Tensor | None:
    try:
        return oracle.posterior(tokens_1L, observed_1L)
    except ValueError:
        return None


def _width(found: list[Tensor | None]) -> int:
    return next((each.shape[-1] for each in found if each is not None), 0)


# what it says


def _record(compared: Compared) -> Record:
    kl_P, difference_P = compared.kl_P, compared.difference_P
    return {
        "rows": compared.sample,
        "predictions": len(kl_P),
        "KL": float(kl_P.mean()),
        "KL of the mean": compared.ignorance,
        "mean difference": float(difference_P.mean()),
        "max difference": float(difference_P.max()),
        "impossible rows": compared.skipped,
    }


def _sentence(compared: Compared) -> str:
    record = _record(compared)
    share = f" ({record['KL'] / known:.1%} of it)" if (known := record["KL of the mean"]) > 1e-9 else ""
    return (
        f"{compared.sample}: {record['KL']:.4f} nats from the exact posterior, where knowing the mean alone is {known:.4f} away"
        f"{share}; probabilities differ by {record['mean difference']:.3f} on average, {record['max difference']:.3f} at most"
    )


def _numbers(compared: Compared, symbols: list[int]) -> Iterator[Record]:
    """The model's mean and deviation where the exact probability lies in a bin."""
    bins_PV = (compared.exact_PV * BINS).long().clamp(max=BINS - 1)
    for symbol in symbols:
        for number in range(BINS):
            chosen_P = bins_PV[:, symbol] == number
            model_C, exact_C = compared.model_PV[chosen_P, symbol], compared.exact_PV[chosen_P, symbol]
            if len(model_C):
                bounds = {"exact_from": number / BINS, "exact_to": (number + 1) / BINS, "predictions": len(model_C)}
                means = {"exact_mean": float(exact_C.mean()), "model_mean": float(model_C.mean())}
                apart = {"rms_difference": float((model_C - exact_C).square().mean().sqrt())}
                yield {"rows": compared.sample, "symbol": symbol, **bounds, **means, **apart}


def _draw(found: list[Compared], symbols: list[int]) -> Picture:
    """A row of panels for each sample, a panel for each symbol, or one for all."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    panels = [[symbol] for symbol in symbols] if len(symbols) <= MOST_PANELS else [symbols]
    size = min(2.6, (WIDTH - 1.9) / len(panels))
    figure = Figure(figsize=(size * len(panels) + (1.9 if len(panels) > 1 else 2.6), (size + 0.25) * len(found) + 0.6))
    axes = figure.subplots(len(found), len(panels), squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for row, compared in enumerate(found):
        for ax, shown in zip(axes[row], panels, strict=True):
            exact, model = (each[:, shown].flatten().numpy() for each in (compared.exact_PV, compared.model_PV))
            most = len(found[0].exact_PV) * len(shown)
            edges = torch.linspace(0, 1, 41).tolist()
            *_, image = ax.hist2d(exact, model, [edges, edges], cmap="cividis_r", norm=LogNorm(1, most))
            ax.plot([0, 1], [0, 1], color=style.FRAME_COLOUR, linewidth=0.8)
            ax.set_aspect("equal")
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            if row == 0:
                ax.set_title(f"symbol {shown[0]}" if len(shown) == 1 else "all symbols")
            if row == len(found) - 1:
                ax.set_xlabel("exact")
        kl = float(compared.kl_P.mean())
        axes[row][0].set_ylabel(f"{compared.sample}\nKL {kl:.4f}\nmodel", fontsize=9)
    bar = figure.colorbar(image, ax=axes, label="predictions", aspect=30)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    caption = "Model's against exact probability of each symbol at masked positions; on the diagonal they are equal"
    return Picture(NAME, caption, figure)

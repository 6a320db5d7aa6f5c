"""Masked cross-entropy, and sums of it that are divided once.

    token losses ─► sums over tokens, batches, ranks ─► one division ─► loss, perplexity, accuracy, excess over the oracle,
                                                                        gain over counting tokens

A mean of means weighs tokens of rows with few masks more; sums do not care how rows were cut into batches.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, LabelledBatch, MLMBatch


def masked_cross_entropy(logits_BKV: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of -log p(label) over the predicted positions, in float32, and their number (both 0-dimensional)."""
    logits, labels = logits_BKV.flatten(0, 1).float(), labels_BK.flatten()
    loss_sum = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss_sum, (labels_BK != IGNORE_INDEX).sum()


class MetricSums:
    """Sums over the predicted tokens of a split, kept on `device` as one float64 vector until `compute`.

    The standard error of the excess is that of a ratio of sums over rows (Cochran 1977, eq. 6.13), since the tokens of one row
    are not independent: with d_r = the summed excess of row r and n_r = its number of predicted tokens,
    se² = R / (R - 1) · Σ (d_r - e n_r)² / (Σ n_r)².
    """

    SUMS = (
        *("tokens", "loss", "correct", "oracle_loss", "oracle_correct", "kl", "rows", "dd", "dn", "nn"),
        *("unigram_loss", "bigram_loss", "unigram_correct"),
    )

    def __init__(self, device: torch.device | str = "cpu", further_oracles: Iterable[str] = ()) -> None:
        self.further_oracles = tuple(further_oracles)
        self.sums = (*self.SUMS, *(f"{name}_under_{each}" for each in self.further_oracles for name in ("oracle_loss", "kl")))
        # float64 sums of up to 1e9 token losses; MPS has none
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.vector = torch.zeros(len(self.sums), dtype=dtype, device=device)

    def update(
        self,
        logits_BKV: Tensor,
        batch: MLMBatch | LabelledBatch,
        oracle_probs_BKV: Tensor | None = None,
        ngram_losses: Mapping[str, Tensor] | None = None,
        further_probs: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Adds a batch. `oracle_probs_BKV` is the oracle's posterior at the predicted positions, `further_probs` (BKV each) are
        those of further oracles, and `ngram_losses` (BK each) are what counts give there."""
        labels_BK = batch.labels_BK
        predicted_BK = labels_BK != IGNORE_INDEX
        target_BK1 = labels_BK.clamp(min=0).unsqueeze(-1)
        log_probs_BKV = logits_BKV.float().log_softmax(-1)
        loss_BK = -log_probs_BKV.gather(-1, target_BK1).squeeze(-1)
        sums = {
            "tokens": predicted_BK,
            "loss": loss_BK * predicted_BK,
            "correct": (logits_BKV.argmax(-1) == labels_BK) & predicted_BK,
            "rows": batch.row_ids_B != PADDING_ROW,
        }
        oracles = {} if oracle_probs_BKV is None else {"": oracle_probs_BKV}
        oracles |= {f"_under_{name}": probs_BKV for name, probs_BKV in (further_probs or {}).items()}
        for ending, probs_BKV in oracles.items():
            log_oracle_BKV = probs_BKV.to(self.vector.dtype).log()
            oracle_loss_BK = -log_oracle_BKV.gather(-1, target_BK1).squeeze(-1).masked_fill(~predicted_BK, 0.0)
            log_ratio_BKV = log_oracle_BKV - F.pad(log_probs_BKV, (0, log_oracle_BKV.shape[-1] - log_probs_BKV.shape[-1]))
            kl_BK = (probs_BKV * log_ratio_BKV).masked_fill(probs_BKV == 0, 0.0).sum(-1)
            sums |= {f"oracle_loss{ending}": oracle_loss_BK, f"kl{ending}": kl_BK * predicted_BK}
        if oracle_probs_BKV is not None:
            excess_B = ((loss_BK - sums["oracle_loss"]) * predicted_BK).sum(-1, dtype=self.vector.dtype)
            tokens_B = predicted_BK.sum(-1).to(self.vector.dtype)
            sums |= {
                "oracle_correct": (oracle_probs_BKV.argmax(-1) == labels_BK) & predicted_BK,
                "dd": excess_B.square(),
                "dn": excess_B * tokens_B,
                "nn": tokens_B.square(),
            }
        for name, value_BK in (ngram_losses or {}).items():
            sums[name] = value_BK.to(self.vector.dtype).to(self.vector.device)
        zero = self.vector.new_zeros(())
        stacked = torch.stack([sums[n].sum(dtype=self.vector.dtype) if n in sums else zero for n in self.sums])
        self.vector[: len(stacked)] += stacked

    @property
    def nothing_predicted(self) -> bool:
        return not self.vector[self.sums.index("tokens")]

    def compute(self, with_oracle: bool, with_ngrams: bool = False) -> dict[str, float]:
        """The token-weighted means; NaN where nothing was predicted at all."""
        s = dict(zip(self.sums, self.vector[: len(self.sums)].tolist(), strict=True))
        tokens, rows = s["tokens"] or math.nan, s["rows"]
        loss = s["loss"] / tokens
        metrics = {"loss": loss, "perplexity": perplexity(loss), "accuracy": s["correct"] / tokens}
        if with_oracle:
            excess = (s["loss"] - s["oracle_loss"]) / tokens
            squares = s["dd"] - 2 * excess * s["dn"] + excess**2 * s["nn"]
            metrics |= {
                "oracle_loss": s["oracle_loss"] / tokens,
                "excess_loss": excess,
                "excess_loss_se": math.sqrt(max(0.0, squares) * rows / (rows - 1)) / tokens if rows > 1 else math.nan,
                "oracle_accuracy": s["oracle_correct"] / tokens,
                "kl_to_oracle": s["kl"] / tokens,
            }
        for name in self.further_oracles:  # another language's loss may lie above the model's: there is no excess
            metrics[f"oracle_loss_under_{name}"] = s[f"oracle_loss_under_{name}"] / tokens
            metrics[f"kl_to_oracle_under_{name}"] = s[f"kl_under_{name}"] / tokens
        if with_ngrams:
            metrics |= {
                "unigram_loss": s["unigram_loss"] / tokens,
                "bigram_loss": s["bigram_loss"] / tokens,
                "unigram_accuracy": s["unigram_correct"] / tokens,
                "gain_over_unigram": (s["unigram_loss"] - s["loss"]) / tokens,
            }
        return metrics


class LabelSums(MetricSums):
    """Sums over labelled rows, with a confusion matrix behind them: the rows of class i that were taken for class j."""

    def __init__(self, device: torch.device | str = "cpu", further_oracles: Iterable[str] = (), num_classes: int = 2) -> None:
        super().__init__(device, further_oracles)
        self.num_classes = num_classes
        self.vector = torch.cat([self.vector, self.vector.new_zeros(num_classes**2)])

    @property
    def confusion_CC(self) -> Tensor:
        return self.vector[len(self.sums) :].view(self.num_classes, self.num_classes)

    def update(self, logits_BKV: Tensor, batch: MLMBatch | LabelledBatch, *args: Any, **kwargs: Any) -> None:
        super().update(logits_BKV, batch, *args, **kwargs)
        labels, guesses = batch.labels_BK.flatten(), logits_BKV.argmax(-1).flatten()
        cells = (labels * self.num_classes + guesses)[labels != IGNORE_INDEX]
        self.confusion_CC.view(-1).add_(torch.bincount(cells, minlength=self.num_classes**2))

    def compute(self, with_oracle: bool, with_ngrams: bool = False) -> dict[str, float]:
        """Those of MetricSums, with `macro_f1` in place of the perplexity: the mean over classes, of those that occur or were
        guessed, of 2 · true positives / (2 · true positives + false positives + false negatives)."""
        metrics = super().compute(with_oracle, with_ngrams)
        del metrics["perplexity"]
        found_C, both_C = self.confusion_CC.diagonal(), self.confusion_CC.sum(0) + self.confusion_CC.sum(1)
        f1_C = (2 * found_C / both_C)[both_C > 0]
        return metrics | {"macro_f1": f1_C.mean().item()}


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else (math.inf if loss == loss else math.nan)

"""Masked cross-entropy, and sums of it that are divided once.

    token losses ─► sums over tokens, batches, ranks ─► one division ─► loss, perplexity, accuracy, excess over the oracle,
                                                                        gain over counting words

A mean of means weighs tokens of rows with few masks more; sums do not care how rows were cut into batches.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch


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

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # float64 sums of up to 1e9 token losses; MPS has none
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.vector = torch.zeros(len(self.SUMS), dtype=dtype, device=device)

    def update(
        self,
        logits_BKV: Tensor,
        batch: MLMBatch,
        oracle_probs_BKV: Tensor | None = None,
        ngram_losses: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Adds a batch. `oracle_probs_BKV` is the oracle's posterior at the predicted positions, and `ngram_losses` (BK each)
        are what counts give there."""
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
        if oracle_probs_BKV is not None:
            log_oracle_BKV = oracle_probs_BKV.to(torch.float64 if self.vector.dtype == torch.float64 else torch.float32).log()
            oracle_loss_BK = -log_oracle_BKV.gather(-1, target_BK1).squeeze(-1).masked_fill(~predicted_BK, 0.0)
            log_ratio_BKV = log_oracle_BKV - F.pad(log_probs_BKV, (0, log_oracle_BKV.shape[-1] - log_probs_BKV.shape[-1]))
            kl_BK = (oracle_probs_BKV * log_ratio_BKV).masked_fill(oracle_probs_BKV == 0, 0.0).sum(-1)
            excess_B = ((loss_BK - oracle_loss_BK) * predicted_BK).sum(-1, dtype=self.vector.dtype)
            tokens_B = predicted_BK.sum(-1).to(self.vector.dtype)
            sums |= {
                "oracle_loss": oracle_loss_BK,
                "oracle_correct": (oracle_probs_BKV.argmax(-1) == labels_BK) & predicted_BK,
                "kl": kl_BK * predicted_BK,
                "dd": excess_B.square(),
                "dn": excess_B * tokens_B,
                "nn": tokens_B.square(),
            }
        for name, value_BK in (ngram_losses or {}).items():
            sums[name] = value_BK.to(self.vector.dtype).to(self.vector.device)
        zero = self.vector.new_zeros(())
        self.vector += torch.stack([sums[n].sum(dtype=self.vector.dtype) if n in sums else zero for n in self.SUMS])

    @classmethod
    def names(cls, with_oracle: bool, with_ngrams: bool = False) -> tuple[str, ...]:
        """Of the metrics that `compute` returns."""
        return tuple(cls().compute(with_oracle, with_ngrams))

    @property
    def nothing_predicted(self) -> bool:
        return not self.vector[self.SUMS.index("tokens")]

    def compute(self, with_oracle: bool, with_ngrams: bool = False) -> dict[str, float]:
        """The token-weighted means; NaN where nothing was predicted at all."""
        s = dict(zip(self.SUMS, self.vector.tolist(), strict=True))
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
        if with_ngrams:
            metrics |= {
                "unigram_loss": s["unigram_loss"] / tokens,
                "bigram_loss": s["bigram_loss"] / tokens,
                "unigram_accuracy": s["unigram_correct"] / tokens,
                "gain_over_unigram": (s["unigram_loss"] - s["loss"]) / tokens,
            }
        return metrics


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else (math.inf if loss == loss else math.nan)

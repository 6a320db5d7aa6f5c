"""From a model and a batch to losses: through all logits, or, where a vocabulary makes them large, in pieces."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.cross_entropy import WORTH_IT, linear_cross_entropy, logits_at_once, product_dtype
from mlm_lightning.metrics import MetricSums, masked_cross_entropy
from mlm_lightning.models.protocol import HasLinearHead
from mlm_lightning.tasks import Batch


def training_loss(model: nn.Module, batch: Batch, z_loss: float) -> tuple[Tensor, list[Tensor]]:
    """What is minimised, Σ -log p + `z_loss` · Σ (log Σ exp logits)² over the predicted tokens; and for the log the first sum,
    the number of tokens and, with a `z_loss`, the second sum."""
    labels_BK = batch.labels_BK
    if (layer := _large_output_layer(model, labels_BK)) is not None:
        loss, loss_sum, squares = linear_cross_entropy(_hidden_states(model, batch), layer, labels_BK, z_loss)
        return loss, [loss_sum, (labels_BK != IGNORE_INDEX).sum(), *([squares] if z_loss else [])]
    logits_BKV = batch.logits(model)
    loss_sum, predicted = masked_cross_entropy(logits_BKV, labels_BK)
    if not z_loss:
        return loss_sum, [loss_sum, predicted]
    squares_BK = logits_BKV.float().logsumexp(-1).square()
    squares = (squares_BK * (labels_BK != IGNORE_INDEX)).sum()
    return loss_sum + z_loss * squares, [loss_sum, predicted, squares]


def add_metrics(
    sums: MetricSums,
    model: nn.Module,
    batch: Batch,
    oracle_BKV: Tensor | None,
    ngram_losses: Mapping[str, Tensor] | None = None,
    further: Mapping[str, Tensor] | None = None,
) -> None:
    """`sums.update` with the model's logits."""
    if (layer := _large_output_layer(model, batch.labels_BK)) is None:
        logits_BKV = batch.logits(model)
        sums.update(logits_BKV, batch, oracle_BKV, ngram_losses, further)
        return
    hidden_BKD = _hidden_states(model, batch)
    size = max(1, logits_at_once(hidden_BKD.device) // (layer.out_features * hidden_BKD.shape[1]))
    for start in range(0, len(hidden_BKD), size):
        rows = slice(start, start + size)
        part: Batch = type(batch)(*(None if each is None else each[rows] for each in batch))  # type: ignore[arg-type]
        oracle = None if oracle_BKV is None else oracle_BKV[rows]
        ngrams, others = ({name: each[rows] for name, each in (given or {}).items()} for given in (ngram_losses, further))
        sums.update(layer(hidden_BKD[rows]), part, oracle, ngrams, others)


def _large_output_layer(model: nn.Module, labels_BK: Tensor) -> nn.Linear | None:
    """The model's last layer, where its logits are better made in pieces; not in float16, whose gradients are scaled by what
    must not be rounded on the way."""
    if not issubclass(type(model), HasLinearHead):  # not its instance: that may have been compiled, as a whole
        return None
    layer = cast(HasLinearHead, model).output_layer()
    if layer is None or labels_BK.numel() * layer.out_features < WORTH_IT:
        return None
    return None if product_dtype(layer.weight) == torch.float16 else layer


def _hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    return cast(HasLinearHead, model).hidden_states(*batch.inputs)

"""The cross-entropy of a linear layer's logits, which are never there as a whole.

    hidden_MD ─┬─ chunk ─► logits ─► -log p(label) ─► Σ
               │             └─────► p - 1 at the label ─► gradients of hidden, weight, bias
               └─ chunk …

With a vocabulary of tens of thousands, logits and what a softmax keeps of them are most of the memory of a small model. Here
the gradients of a chunk are computed beside its losses, and its logits forgotten: the same work, in less memory (as in Wijmans
et al. 2024, "Cut your losses in large-vocabulary language models", arXiv 2411.09009).

Shapes: M predicted positions, C of a chunk, D width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX

_CHUNK_ON_CPU, _CHUNK = 2**23, 2**26
WORTH_IT = 2**20
"""Logits from which on it pays."""


def linear_cross_entropy(
    hidden: Tensor, layer: nn.Linear, labels: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """What training minimises, Σ -log p(label) + `z_loss` · Σ (log Σ exp logits)², over the positions whose label is not
    IGNORE_INDEX; and the two sums themselves, without gradients (the second is 0 without a `z_loss`).

    `layer` makes logits of `hidden`, which has one dimension more than `labels`. Matrix products are in the dtype that autocast
    asks for, softmax and sums in float32.
    """
    hidden_MD, labels_M = hidden.flatten(0, -2), labels.flatten()
    if _is_compact(hidden):
        (predicted_M,) = (labels_M != IGNORE_INDEX).nonzero(as_tuple=True)
        hidden_MD, labels_M = hidden_MD.index_select(0, predicted_M), labels_M.index_select(0, predicted_M)
    dtype = product_dtype(hidden)
    bias_V = None if layer.bias is None else layer.bias.to(dtype)
    return _LinearCrossEntropy.apply(hidden_MD.to(dtype), layer.weight.to(dtype), bias_V, labels_M, z_loss)


def _is_compact(hidden: Tensor) -> bool:
    """Whether places without a prediction are left out: an accelerator would have to be asked how many they are."""
    return hidden.device.type == "cpu"


def logits_at_once(device: torch.device) -> int:
    """How many logits are there at a time."""
    return _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK


def product_dtype(hidden: Tensor) -> torch.dtype:
    """In which `linear_cross_entropy` multiplies."""
    kind = hidden.device.type
    is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_cast else hidden.dtype


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_M: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss_sum, squares = hidden_MD.new_zeros((), dtype=torch.float32), hidden_MD.new_zeros((), dtype=torch.float32)
        hidden_grad_MD = torch.empty_like(hidden_MD)
        # in float32: the sums over chunks need the precision
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        bias_grad_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        compact = _is_compact(hidden_MD)
        size = max(1, logits_at_once(hidden_MD.device) // len(weight_VD))
        for start in range(0, len(hidden_MD), size):
            part = slice(start, start + size)
            hidden_CD, labels_C1 = hidden_MD[part], labels_M[part].unsqueeze(1)
            is_predicted_C1, target_C1 = labels_C1 != IGNORE_INDEX, labels_C1.clamp(min=0)
            logits_CV = F.linear(hidden_CD, weight_VD, bias_V).float()
            log_probs_CV = logits_CV.log_softmax(-1)
            loss_C1 = -log_probs_CV.gather(1, target_C1)
            loss_sum += (loss_C1 * is_predicted_C1).sum()
            gradient_CV = log_probs_CV.exp_()
            gradient_of_target_C1 = gradient_CV.gather(1, target_C1) - 1
            if z_loss:
                normaliser_C1 = logits_CV.gather(1, target_C1) + loss_C1
                squares += (normaliser_C1.square() * is_predicted_C1).sum()
                gradient_of_target_C1 += 2 * z_loss * normaliser_C1 * gradient_CV.gather(1, target_C1)
                gradient_CV *= 1 + 2 * z_loss * normaliser_C1
            gradient_CV.scatter_(1, target_C1, gradient_of_target_C1)
            if not compact:
                gradient_CV *= is_predicted_C1
            if bias_grad_V is not None:
                bias_grad_V += gradient_CV.sum(0)
            gradient_CV = gradient_CV.to(hidden_MD.dtype)
            torch.mm(gradient_CV, weight_VD, out=hidden_grad_MD[part])
            if weight_VD.dtype == torch.float32:
                weight_grad_VD.addmm_(gradient_CV.T, hidden_CD)
            else:
                weight_grad_VD += gradient_CV.T @ hidden_CD
        ctx.save_for_backward(hidden_grad_MD, weight_grad_VD, bias_grad_V)
        ctx.dtype = weight_VD.dtype
        ctx.mark_non_differentiable(loss_sum, squares)
        return loss_sum + z_loss * squares, loss_sum, squares

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        def scaled(gradient: Tensor | None) -> Tensor | None:
            if gradient is None:
                return None
            is_one = scale.device.type == "cpu" and scale == 1  # the matrix is as large as the layer
            return gradient.to(ctx.dtype) if is_one else (gradient * scale).to(ctx.dtype)

        hidden_grad_MD, weight_grad_VD, bias_grad_V = map(scaled, ctx.saved_tensors)
        return hidden_grad_MD, weight_grad_VD, bias_grad_V, None, None

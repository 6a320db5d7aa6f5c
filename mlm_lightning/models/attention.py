"""Scaled dot-product attention: torch's fused kernel, or written out where that is the faster one.

On a CPU that is where attention is dropped out, for which the kernel falls back to slow steps, and in bfloat16 on short rows,
on which the kernel takes up to ten times as long.

`listening` hands over what each attention looks at, whatever model it is part of:

    with listening(heard.append):    ─►  heard: weights_BHQL of the first layer, of the second …
        model(input_ids_BL)

Shapes: B rows, L positions, H heads, E width of a head, Q queries.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_lightning.models.layers import drop

_SHORT = 256

_listener: Callable[[Tensor], object] | None = None


@contextmanager
def listening(listener: Callable[[Tensor], object]) -> Iterator[None]:
    """Inside, `listener` is called with the weights of each attention, BHQL in float32, in the order in which they are computed
    (layers that are compiled tell nothing). What `attend` returns stays the same, bit for bit."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def attend(
    query_BHQE: Tensor,
    key_BHLE: Tensor,
    value_BHLE: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(query · key · scale + mask) · value, BHQE. A mask of booleans is True where a query may look, any other is added;
    a query that may look nowhere, by booleans, gets zeros. `scale` is 1/√E where it is None."""
    if not torch.compiler.is_compiling() and _listener is not None:
        with torch.no_grad():
            added = mask if mask is None or mask.dtype == torch.bool else mask.float()
            _listener(_weights(query_BHQE.float(), key_BHLE.float(), added, scale))
    in_bfloat16 = query_BHQE.dtype == torch.bfloat16 and key_BHLE.shape[-2] <= _SHORT
    on_cpu = query_BHQE.device.type == "cpu"
    if not on_cpu or torch.compiler.is_compiling() or not (dropout > 0 or in_bfloat16):
        if on_cpu or mask is None or mask.dtype != torch.bool:
            return F.scaled_dot_product_attention(query_BHQE, key_BHLE, value_BHLE, mask, dropout, scale=scale)
        # kernels of accelerators don't all give zeros where a query may look nowhere
        looks_BHQ1 = mask.any(-1, keepdim=True)
        attended_BHQE = F.scaled_dot_product_attention(
            query_BHQE, key_BHLE, value_BHLE, mask | ~looks_BHQ1, dropout, scale=scale
        )
        return attended_BHQE * looks_BHQ1
    return drop(_weights(query_BHQE, key_BHLE, mask, scale), dropout) @ value_BHLE


def _weights(query_BHQE: Tensor, key_BHLE: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """How much each query looks at each key, BHQL."""
    scale = query_BHQE.shape[-1] ** -0.5 if scale is None else scale
    scores_BHQL = (query_BHQE * scale) @ key_BHLE.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        scores_BHQL = scores_BHQL.masked_fill(~mask, torch.finfo(scores_BHQL.dtype).min)
    elif mask is not None:
        scores_BHQL = scores_BHQL + mask
    weights_BHQL = scores_BHQL.softmax(-1)
    if mask is not None and mask.dtype == torch.bool and not mask.any(-1).all():
        weights_BHQL = weights_BHQL.masked_fill(~mask, 0.0)
    return weights_BHQL

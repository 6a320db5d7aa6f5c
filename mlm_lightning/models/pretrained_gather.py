"""The hidden states that reach a library's head are gathered at the predicted positions, with no architecture written anew.

    input_ids_BL ─► encoder ─► hidden_BLD ─► gather ─► hidden_BKD ─► head ─► logits_BKV
                                               ▲
                                          positions_BK

The head is the larger part of a small model's work: L × V logits a row, of which the loss looks at 15 %. A hook on the
library's encoder gathers before the library's own head, so the numbers are the same. In DistilBERT the gather happens one layer
earlier: of its last layer only keys and values are needed everywhere.

Shapes: B rows, L positions, K predicted positions a row, D width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from mlm_lightning.models.transformer import take


class Predicted:
    """The positions of the forward pass under way, handed past the library's signatures to where they are gathered; and
    whether queries at different positions see different masks."""

    positions_BK: Tensor | None = None
    separate_documents: bool = False


def gather_at(model: PreTrainedModel, predicted: Predicted) -> None:
    """Makes the hidden states that reach the head those of the predicted positions."""
    encoder: Any = model.base_model
    if model.config.model_type == "distilbert" and model.config._attn_implementation in ("sdpa", "eager"):
        layers = encoder.transformer.layer
        layers[-1] = _DistilBertLastBlock(layers[-1], predicted)
    else:
        encoder.register_forward_hook(_GatherHook(predicted))


class _GatherHook:
    def __init__(self, predicted: Predicted) -> None:
        self.predicted = predicted

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        positions_BK = self.predicted.positions_BK
        if positions_BK is None:
            return output
        if isinstance(output, tuple):
            return take(output[0], positions_BK), *output[1:]
        output["last_hidden_state"] = take(output["last_hidden_state"], positions_BK)
        return output


class _DistilBertLastBlock(TransformerBlock):
    """DistilBERT's last block, the same weights under the same names, with outputs at the predicted positions only."""

    def __init__(self, block: Any, predicted: Predicted) -> None:
        nn.Module.__init__(self)  # the block's own would draw new weights
        self.attention, self.sa_layer_norm = block.attention, block.sa_layer_norm
        self.ffn, self.output_layer_norm = block.ffn, block.output_layer_norm
        self.predicted = predicted
        self.train(block.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # read here, outside of gradient checkpointing: by the time that runs `forward` again, `predicted` has moved on
        return super().__call__(*args, positions_BK=self.predicted.positions_BK, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        positions_BK: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        x_BKD = take(hidden_states, positions_BK)
        x_BKD = self.sa_layer_norm(x_BKD + self._attend(x_BKD, positions_BK, hidden_states, attention_mask))
        return self.output_layer_norm(x_BKD + self.ffn(x_BKD))

    def _attend(self, x_BKD: Tensor, positions_BK: Tensor, x_BLD: Tensor, mask: Tensor | None) -> Tensor:
        attention = self.attention
        query, key, value = (
            x.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for x in (attention.q_lin(x_BKD), attention.k_lin(x_BLD), attention.v_lin(x_BLD))
        )
        attended_BHKD = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else self._mask_of_queries(mask, positions_BK),
            dropout_p=attention.dropout.p if self.training else 0.0,
        )
        return attention.out_lin(attended_BHKD.transpose(1, 2).flatten(2))

    def _mask_of_queries(self, mask_B1LL: Tensor, positions_BK: Tensor) -> Tensor:
        if not self.predicted.separate_documents:
            # padding is hidden from every query alike: the first query's row of the mask serves them all
            return mask_B1LL[:, :, :1]
        return mask_B1LL.gather(2, positions_BK[:, None, :, None].expand(-1, -1, -1, mask_B1LL.shape[-1]))

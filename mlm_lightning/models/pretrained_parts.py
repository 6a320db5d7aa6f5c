"""Parts of the library's models, with the same weights under the same names, that do less for the same results.

Last layers have outputs at the predicted positions alone; of the others they need keys and values only. Attention and dropout
are ours, and the last linear layer can be left to the loss.

Shapes: B rows, L positions, K predicted positions a row, D width, H heads, E width of a head.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.distilbert.modeling_distilbert import TransformerBlock
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer, apply_rotary_pos_emb

from mlm_lightning.models.attention import attend
from mlm_lightning.models.layers import Dropout, take


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attend` in the place of the library's own function, which keeps what few encoders ask for: fewer keys than queries, a
    bias, looking back alone."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal or key.shape[1] != query.shape[1] or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    return attend(query, key, value, attention_mask, dropout, scaling).transpose(1, 2).contiguous(), None


ATTENTION = "mlm_lightning"
AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def replace_dropout(model: nn.Module) -> None:
    """By ours, which is the same and faster; what was computed in place need not be."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


class Predicted:
    """What is asked of the forward pass under way, handed past the library's signatures: positions, to where they are gathered,
    and whether the last layer passes on what it is given."""

    positions_BK: Tensor | None = None
    without_logits: bool = False


class OutputLayer(nn.Linear):
    """The library's last layer, the same weights under the same names."""

    predicted: Predicted

    def forward(self, input: Tensor) -> Tensor:
        return input if self.predicted.without_logits else super().forward(input)


def gather_predicted(predicted: Predicted, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook: the hidden states that reach the head become those of the predicted positions."""
    if predicted.positions_BK is None:
        return output
    if isinstance(output, tuple):
        return take(output[0], predicted.positions_BK), *output[1:]
    output["last_hidden_state"] = take(output["last_hidden_state"], predicted.positions_BK)
    return output


class _AtPredicted(nn.Module):
    """What a last layer, once its class is one of these, is called with: `positions_BK` are read here, outside of gradient
    checkpointing, since by the time that runs `forward` again `predicted` has moved on."""

    predicted: Predicted

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, positions_BK=self.predicted.positions_BK, **kwargs)


class DistilBertLastLayer(_AtPredicted, TransformerBlock):
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, positions_BK: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention, x_BKD = self.attention, take(hidden_states, positions_BK)
        projected = attention.q_lin(x_BKD), attention.k_lin(hidden_states), attention.v_lin(hidden_states)
        query, key, value = (_heads(each, attention.n_heads) for each in projected)
        dropout = attention.dropout.p if self.training else 0.0
        attended_BKD = _attended(query, key, value, attention_mask, positions_BK, dropout)
        x_BKD = self.sa_layer_norm(x_BKD + attention.out_lin(attended_BKD))
        return self.output_layer_norm(x_BKD + self.ffn(x_BKD))


class BertLastLayer(_AtPredicted, BertLayer):
    """Of BERT, and of those architectures whose layers are its, by other names."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        positions_BK: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        attention, x_BKD = self.attention.self, take(hidden_states, positions_BK)
        projected = attention.query(x_BKD), attention.key(hidden_states), attention.value(hidden_states)
        query, key, value = (_heads(each, attention.num_attention_heads) for each in projected)
        dropout = attention.dropout.p if self.training else 0.0
        attended_BKD = _attended(query, key, value, attention_mask, positions_BK, dropout)
        x_BKD = self.attention.output(attended_BKD, x_BKD)
        return self.output(self.intermediate(x_BKD), x_BKD)


class ModernBertLastLayer(_AtPredicted, ModernBertEncoderLayer):
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Any = None,
        positions_BK: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, position_embeddings, **kwargs)
        attention, normed_BLD = self.attn, self.attn_norm(hidden_states)
        query_weight, key_value_weight = attention.Wqkv.weight.tensor_split([hidden_states.shape[-1]])
        biases = (None, None) if attention.Wqkv.bias is None else attention.Wqkv.bias.tensor_split([hidden_states.shape[-1]])
        heads = self.config.num_attention_heads
        query = _heads(F.linear(take(normed_BLD, positions_BK), query_weight, biases[0]), heads)
        key, value = (_heads(x, heads) for x in F.linear(normed_BLD, key_value_weight, biases[1]).chunk(2, dim=-1))
        cos, sin = (each.expand(len(positions_BK), -1, -1) for each in position_embeddings)
        turned, _ = apply_rotary_pos_emb(query, query, take(cos, positions_BK), take(sin, positions_BK))
        _, key = apply_rotary_pos_emb(key, key, cos, sin)
        dropout = attention.attention_dropout if self.training else 0.0
        attended_BKD = _attended(turned, key, value, attention_mask, positions_BK, dropout)
        x_BKD = take(hidden_states, positions_BK) + attention.out_drop(attention.Wo(attended_BKD))
        return x_BKD + self.mlp(self.mlp_norm(x_BKD))


def _heads(x_BLD: Tensor, number: int) -> Tensor:
    return x_BLD.unflatten(-1, (number, -1)).transpose(1, 2)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, positions_BK: Tensor, dropout: float) -> Tensor:
    """What queries at `positions_BK` attend to, BKD. The mask, (B or 1, 1, L or 1, L), is the library's, of all queries."""
    if mask is not None and mask.shape[2] > 1:
        mask = mask.expand(len(positions_BK), -1, -1, -1)
        mask = mask.gather(2, positions_BK[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
    return attend(query, key, value, mask, dropout).transpose(1, 2).flatten(2)

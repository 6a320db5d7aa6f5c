"""The encoder: layers of self-attention, of which the last one works at the predicted positions alone.

The loss looks at the K predicted positions alone, and only the keys and values of the last layer connect them to the others:

    position              0  1  2  3  4  5
    layers before         #  #  #  #  #  #
    last layer: keys      #  #  #  #  #  #
    queries … logits         #        #         positions_BK = 1 4

Shapes: B rows, L positions, K predicted positions a row, D width, H heads, E width of a head; Q queries that differ in what
they may attend to: K, or 1 where all may attend to the same positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_lightning.models.attention import attend
from mlm_lightning.models.layers import ACTIVATIONS, GATED, Dropout, NormKind, Rotary, make_norm, take, turn
from mlm_lightning.models.packing import attendable


@dataclass(frozen=True)
class LayerSettings:
    """What all layers share."""

    d_model: int
    nhead: int
    dim_feedforward: int
    dropout: float = 0.0
    activation: str = "gelu"
    norm: NormKind = "layer"
    norm_first: bool = True
    norm_eps: float = 1e-5
    bias: bool = True
    qk_norm: bool = False

    def make_norm(self, size: int | None = None) -> nn.Module:
        return make_norm(self.norm, size or self.d_model, self.norm_eps, self.bias)


@dataclass(frozen=True)
class View:
    """Where a layer's queries look: what each may attend to (None: everything), and by which turns rotary positions turn
    queries and keys."""

    attendable_B1QL: Tensor | None = None
    query_turns: Tensor | None = None
    key_turns: Tensor | None = None


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, names of weights included: its state dict loads here. Pre-norm ends with a norm, `norm`.

    `rotary` are the turns of global and of local layers; a layer is local, with an `attention_window`, unless it is the first
    or another `global_every_n_layers`-th. `normed`: the input has been normed, and the first layer of pre-norm need not.
    """

    def __init__(
        self,
        num_layers: int,
        layer: LayerSettings,
        rotary: Sequence[Rotary] = (),
        attention_window: int | None = None,
        global_every_n_layers: int = 1,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(layer) for _ in range(num_layers))
        if normed and layer.norm_first:
            self.layers[0].norm1 = nn.Identity()
        self.norm = layer.make_norm() if layer.norm_first else None
        self.settings, self.rotary, self.attention_window = layer, nn.ModuleList(rotary), attention_window
        self.is_local = [attention_window is not None and i % global_every_n_layers > 0 for i in range(num_layers)]

    def forward(
        self,
        x_BLD: Tensor,
        is_token_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        document_BL: Tensor | None = None,
        position_BL: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """With `document_BL`, positions attend to those of the same number alone, and `is_token_BL` says nothing new;
        `position_BL` are then those within each document. None attends to those of `hidden_BL`."""
        visible_B11L = None if hidden_BL is None else ~hidden_BL[:, None, None]
        attendable_B1QL = None
        if document_BL is not None:
            attendable_B1QL = attendable(document_BL)
        elif is_token_BL is not None:
            # a row without any token (it only fills up a batch) attends everywhere: no softmax over nothing
            attendable_B1QL = (is_token_BL | ~is_token_BL.any(1, keepdim=True)).unsqueeze(1).unsqueeze(1)
        (*layers, last), (*are_local, is_local) = self.layers, self.is_local
        attendable_B1QL = _and(attendable_B1QL, visible_B11L)
        views = {local: self._view(x_BLD, attendable_B1QL, local, position_BL) for local in set(are_local)}
        for layer, local in zip(layers, are_local, strict=True):
            x_BLD = layer(x_BLD, views[local])
        if document_BL is not None:
            attendable_B1QL = _and(attendable(document_BL, positions_BK), visible_B11L)
        view = self._view(x_BLD, attendable_B1QL, is_local, position_BL, positions_BK)
        x_BKD = last(x_BLD, view, positions_BK)
        return x_BKD if self.norm is None else self.norm(x_BKD)

    def _view(
        self,
        x_BLD: Tensor,
        attendable_B1QL: Tensor | None,
        local: bool,
        position_BL: Tensor | None,
        positions_BK: Tensor | None = None,
    ) -> View:
        """That of a layer, local or not; of its queries at `positions_BK`."""
        length = x_BLD.shape[1]
        if local:
            assert self.attention_window is not None
            place_L = torch.arange(length, device=x_BLD.device)
            place_1Q = place_L.unsqueeze(0) if positions_BK is None else positions_BK
            distance_1QL = (place_1Q.unsqueeze(-1) - place_L).abs()
            near_11QL = (distance_1QL <= self.attention_window // 2).unsqueeze(1)
            attendable_B1QL = _and(near_11QL, attendable_B1QL)
        if not self.rotary:
            return View(attendable_B1QL)
        rotary = self.rotary[int(local)]
        assert isinstance(rotary, Rotary)
        keys = rotary.at(length, position_BL, None)
        queries = keys if positions_BK is None else rotary.at(length, position_BL, positions_BK)
        return View(attendable_B1QL, queries, keys)


def _and(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Where both masks let queries look; None is a mask that lets them look everywhere."""
    return other if one is None else one if other is None else one & other


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, whose outputs can be asked for at some positions only (K = L without `positions_BK`)."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__()
        self.norm_first = settings.norm_first
        self.self_attn = SelfAttention(settings)
        self.gate = ACTIVATIONS[GATED[settings.activation]] if settings.activation in GATED else None
        self.activation = ACTIVATIONS["identity" if self.gate else settings.activation]
        width = settings.dim_feedforward
        self.linear1 = nn.Linear(settings.d_model, 2 * width if self.gate else width, settings.bias)
        self.linear2 = nn.Linear(width, settings.d_model, settings.bias)
        self.norm1, self.norm2 = settings.make_norm(), settings.make_norm()
        self.dropout = Dropout(settings.dropout)

    def forward(self, x_BLD: Tensor, view: View, positions_BK: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x_BKD = take(x_BLD, positions_BK) + self._attention(self.norm1(x_BLD), view, positions_BK)
            return x_BKD + self._feed_forward(self.norm2(x_BKD))
        x_BKD = self.norm1(take(x_BLD, positions_BK) + self._attention(x_BLD, view, positions_BK))
        return self.norm2(x_BKD + self._feed_forward(x_BKD))

    def _attention(self, x_BLD: Tensor, view: View, positions_BK: Tensor | None) -> Tensor:
        return self.dropout(self.self_attn(x_BLD, view, positions_BK))

    def _feed_forward(self, x_BKD: Tensor) -> Tensor:
        inner = self.linear1(x_BKD)
        if self.gate is None:
            inner = self.activation(inner)
        else:
            gates, values = inner.chunk(2, dim=-1)
            inner = self.gate(gates) * values
        return self.dropout(self.linear2(self.dropout(inner)))


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries at `positions_BK`, keys and values everywhere."""

    def __init__(self, settings: LayerSettings) -> None:
        super().__init__()
        d_model, self.nhead = settings.d_model, settings.nhead
        self.dropout = Dropout(settings.dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * d_model)) if settings.bias else None
        self.out_proj = nn.Linear(d_model, d_model, settings.bias)
        self.query_norm = settings.make_norm(d_model // self.nhead) if settings.qk_norm else None
        self.key_norm = settings.make_norm(d_model // self.nhead) if settings.qk_norm else None

    def forward(self, x_BLD: Tensor, view: View, positions_BK: Tensor | None = None) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.nhead, -1)).transpose(1, 2) for x in self._project(x_BLD, positions_BK))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        if view.query_turns is not None and view.key_turns is not None:
            query, key = turn(query, view.query_turns), turn(key, view.key_turns)
        dropout = self.dropout.p if self.training else 0.0
        attended_BHKE = attend(query, key, value, view.attendable_B1QL, dropout)
        return self.out_proj(attended_BHKE.transpose(1, 2).flatten(2))

    def _project(self, x_BLD: Tensor, positions_BK: Tensor | None) -> tuple[Tensor, ...]:
        if positions_BK is None:
            return F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        sizes = [x_BLD.shape[-1], 2 * x_BLD.shape[-1]]
        query_weight, key_value_weight = self.in_proj_weight.split(sizes)
        query_bias, key_value_bias = (None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        query_BKD = F.linear(take(x_BLD, positions_BK), query_weight, query_bias)
        return query_BKD, *F.linear(x_BLD, key_value_weight, key_value_bias).chunk(2, dim=-1)

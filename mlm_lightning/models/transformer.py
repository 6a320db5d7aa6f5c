"""A transformer encoder that predicts masked tokens, or labels a whole sequence, and computes nothing that is not asked for.

    x_BLD = embedding(input_ids_BL) + positions      (rotary positions turn queries and keys instead)
    x_BLD = x_BLD + attention(norm1(x_BLD))          num_layers times (pre-norm; post-norm puts the norms after the sums)
    x_BLD = x_BLD + feed_forward(norm2(x_BLD))
    logits_BLV = decoder(norm(x_BLD))

The loss looks at the K predicted positions alone, and only the keys and values of the last layer connect them to the others:

    position              0  1  2  3  4  5
    layers before         #  #  #  #  #  #
    last layer: keys      #  #  #  #  #  #
    queries … logits         #        #         positions_BK = 1 4

The questions that a first look at masking raises, answered:

- *Original tokens with a mask, or masked tokens?* Masked tokens: `[MASK]` is a token with an embedding of its own, which learns
  like any other. It is what tells the model where to predict.
- *Would an attention mask on the original tokens do?* No. It stops the *other* positions from looking at a token, but its own
  embedding passes through `x + …` to its own logits: the label leaks. `attention_mask_BL` is for padding only.
- *All masked tokens at once?* Yes: each predicted position has its own logits, and they are predicted independently.

Rows that pack several documents, numbered by `attention_mask_BL`, are read as if each document had a row of its own where
`separate_documents` is set (packing.py).

Its keys span the published encoders; tests prove that it gives their logits from their weights:

| key                  | today's default | BERT (2018)  | ModernBERT (2024)     | EuroBERT (2025) |
|----------------------|-----------------|--------------|-----------------------|-----------------|
| positional_encoding  | learned         | learned      | rotary                | rotary          |
| norm, norm_first     | layer, pre      | layer, post  | layer, pre            | rms, pre        |
| activation           | gelu            | gelu         | geglu                 | swiglu          |
| embedding_norm       | no              | yes          | yes                   | no              |
| attention_window     | none            | none         | 128, 2 layers of 3    | none            |
| bias, decoder_bias   | yes, yes        | yes, yes     | no, yes               | no, no          |
| decoder              | linear          | D, gelu, norm, tied | D, gelu, norm, tied | linear     |

Shapes: B rows, L positions, K predicted positions a row, V vocabulary, D width, H heads, E width of a head; Q queries that
differ in what they may attend to: K, or 1 where all may attend to the same positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval, Lt
from torch import Tensor, nn

from mlm_lightning.errors import ConfigError
from mlm_lightning.models.layers import (
    ACTIVATIONS,
    EMBEDDING_STD,
    FFNN,
    GATED,
    Dropout,
    NormKind,
    Positions,
    Rotary,
    make_norm,
    take,
    turn,
)
from mlm_lightning.models.packing import attendable, positions_within
from mlm_lightning.values import checked

Size = Annotated[int, Ge(1)]

SIZES: dict[str | None, dict[str, int]] = {
    None: {"d_model": 64, "num_layers": 4, "nhead": 4, "dim_feedforward": 256},
    "nano": {"d_model": 128, "num_layers": 3, "nhead": 2, "dim_feedforward": 256},
    "mini": {"d_model": 256, "num_layers": 4, "nhead": 4, "dim_feedforward": 512},
    "small": {"d_model": 384, "num_layers": 8, "nhead": 6, "dim_feedforward": 768},
    "base": {"d_model": 768, "num_layers": 12, "nhead": 12, "dim_feedforward": 1536},
}
"""By name; None: where neither a size nor the key is given."""

_SHORT = 256  # up to this many positions, attention written out is the faster one in bfloat16 on a CPU
_LOGIT_STD = 0.2  # of the first logits, where the decoder's input is normalised: a first loss of log V + 0.02


class TransformerClassifier(nn.Module):
    """The encoder, with a decoder (an FFNN) on top of each position or, with `embedding_agg`, of the whole sequence.

    `forward` returns BLV logits, BKV with `positions_BK`, and (B, num_classes) with `embedding_agg`. `num_classes` is the
    number of outputs, None for the vocabulary's size. `vocab_size`, `seq_len`, the longest row, and `separate_documents` come
    from the data.

    - `size` names those of `d_model`, `num_layers`, `nhead` and `dim_feedforward` that are None (SIZES).
    - `norm_first` is pre-norm: unlike post-norm it trains without a warm-up, and at any depth. `embedding_norm` norms the
      embeddings; in pre-norm the first layer does not norm them again.
    - `activation`: with `swiglu` and `geglu`, `dim_feedforward` values are multiplied by as many gates.
    - `attention_window`: a layer looks at the `attention_window // 2` positions before and after each, but for every
      `global_every_n_layers`-th, the first among them, which looks at all.
    - `rope_theta` is the longest wavelength / 2π of `positional_encoding=rotary`; `local_rope_theta` that of the layers with a
      window (None: the same). `qk_norm` norms the queries and keys of each head, which bounds the attention's logits
      (Dehghani et al. 2023, arXiv 2302.05442).
    - `tie_embeddings`: the decoder's last matrix is that of the embeddings. `bias` is that of all norms and linear layers but
      the decoder's last, which has `decoder_bias`. `decoder_norm` norms after each hidden layer of the decoder.

    Raises ConfigError naming each setting that is impossible.
    """

    @checked("model")
    def __init__(
        self,
        vocab_size: Size,
        seq_len: Size,
        size: Literal["nano", "mini", "small", "base"] | None = None,
        d_model: Size | None = None,
        num_layers: Annotated[int, Interval(ge=1, le=1000)] | None = None,
        nhead: Size | None = None,
        dim_feedforward: Size | None = None,
        dropout: Annotated[float, Ge(0), Lt(1), "it is a probability"] = 0.0,
        activation: Literal["relu", "gelu", "swiglu", "geglu"] = "gelu",
        norm: NormKind = "layer",
        norm_first: bool = True,
        norm_eps: Annotated[float, Gt(0)] = 1e-5,
        embedding_norm: bool = False,
        bias: bool = True,
        positional_encoding: Literal["learned", "sinusoidal", "rotary", "none"] | None = "learned",
        rope_theta: Annotated[float, Gt(0)] = 10_000.0,
        local_rope_theta: Annotated[float, Gt(0)] | None = None,
        attention_window: Annotated[int, Ge(2), "null: every layer looks at all positions"] | None = None,
        global_every_n_layers: Size = 3,
        qk_norm: bool = False,
        tie_embeddings: bool = False,
        embedding_agg: Literal["mean", "flatten"] | None = None,
        decoder_hidden_sizes: Sequence[Size] | Literal["d_model"] = (),
        decoder_activation: Literal["relu", "gelu", "tanh", "identity"] = "relu",
        decoder_norm: bool = False,
        decoder_bias: bool = True,
        decoder_output_activation: Literal["identity", "softmax", "log_softmax", "sigmoid"] | None = None,
        num_classes: Size | None = None,
        separate_documents: bool = False,
    ) -> None:
        super().__init__()
        given = {"d_model": d_model, "num_layers": num_layers, "nhead": nhead, "dim_feedforward": dim_feedforward}
        shape = {name: SIZES[size][name] if value is None else value for name, value in given.items()}
        d_model, nhead = shape["d_model"], shape["nhead"]
        hidden_sizes = (d_model,) if decoder_hidden_sizes == "d_model" else tuple(decoder_hidden_sizes)
        if d_model % nhead != 0:
            divisors = ", ".join(str(n) for n in range(1, min(d_model, 64) + 1) if d_model % n == 0)
            raise ConfigError("model.nhead", nhead, f"does not divide model.d_model={d_model}", f"heads that do: {divisors}")
        if positional_encoding == "rotary" and d_model // nhead % 2:
            problem = f"gives heads an odd width ({d_model // nhead}), whose entries rotary positions can't turn in pairs"
            raise ConfigError("model.nhead", nhead, problem, f"half of it, or another model.d_model than {d_model}")
        if separate_documents and embedding_agg is not None:
            problem = f"model.embedding_agg={embedding_agg} merges all positions of a row and cannot keep documents apart"
            remedy = "choose data.packing=chunk or document, or model.embedding_agg=null"
            raise ConfigError("data.packing", "sentence_pack", problem, remedy)
        self.seq_len = seq_len
        self.separate_documents = separate_documents
        self.embedding_agg = embedding_agg
        self.decoder_output_activation = decoder_output_activation
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = positional_encoding or "none"
        added: Any = positional_encoding if positional_encoding in ("learned", "sinusoidal") else "none"
        self.positional_encoding = Positions(added, seq_len, d_model)
        self.embedding_norm = make_norm(norm, d_model, norm_eps, bias) if embedding_norm else None
        self.dropout = Dropout(dropout)
        layer = LayerSettings(
            d_model, nhead, shape["dim_feedforward"], dropout, activation, norm, norm_first, norm_eps, bias, qk_norm
        )
        rotary = None
        if positional_encoding == "rotary":
            thetas = rope_theta, rope_theta if local_rope_theta is None else local_rope_theta
            rotary = nn.ModuleList(Rotary(seq_len, d_model // nhead, theta) for theta in thetas)
        self.encoder = Encoder(shape["num_layers"], layer, rotary, attention_window, global_every_n_layers, embedding_norm)
        in_size = d_model * seq_len if embedding_agg == "flatten" else d_model
        out_size = vocab_size if num_classes is None else num_classes
        self.decoder = FFNN(
            in_size,
            hidden_sizes,
            out_size,
            decoder_activation,
            decoder_output_activation,
            partial(make_norm, norm, eps=norm_eps, bias=bias) if decoder_norm else None,
            hidden_bias=bias,
            bias=decoder_bias,
        )
        self.decoder_activation, self.decoder_norm = decoder_activation, decoder_norm
        self.tie_embeddings = tie_embeddings
        if tie_embeddings:
            if (head := self.decoder.head.weight.shape) != self.embedding.weight.shape:
                problem = f"the decoder's last matrix has {head[0]} rows of {head[1]} and cannot be that of the embeddings"
                remedy = f"end model.decoder_hidden_sizes with model.d_model={d_model}, or set model.tie_embeddings=false"
                raise ConfigError("model.tie_embeddings", True, problem, remedy)
            self.decoder.head.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every weight anew from torch's global generator, each layer for itself:

        | weight                             | initialisation                                                      |
        |------------------------------------|---------------------------------------------------------------------|
        | token and learned position vectors | normal, std 0.02                                                    |
        | queries, keys, values              | Xavier uniform, each of the three a matrix of its own                |
        | out_proj, linear2                  | Xavier uniform / sqrt(2 num_layers): 2 num_layers terms sum to one   |
        | linear1, hidden layers of decoder  | Xavier uniform                                                      |
        | last layer of the decoder          | normal, std 0.2 / sqrt(inputs): the first loss is close to log V     |
        | … unless it is that of the tokens  | as theirs                                                           |
        | norms; biases                      | 1; 0                                                                |
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_STD)
            elif isinstance(module, Positions) and module.kind == "learned":
                nn.init.normal_(module.weight_LD, std=EMBEDDING_STD)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
            elif isinstance(module, SelfAttention):
                # three matrices in one: Xavier must see each of its own shape
                for weight_DD in module.in_proj_weight.chunk(3):
                    nn.init.xavier_uniform_(weight_DD)
                if module.in_proj_bias is not None:
                    nn.init.zeros_(module.in_proj_bias)
        layers = [module for module in self.modules() if isinstance(module, EncoderLayer)]
        with torch.no_grad():
            for layer in layers:
                layer.self_attn.out_proj.weight.mul_((2 * len(layers)) ** -0.5)
                layer.linear2.weight.mul_((2 * len(layers)) ** -0.5)
        head = self.decoder.head
        std = EMBEDDING_STD if self.tie_embeddings else _LOGIT_STD / math.sqrt(head.in_features)
        nn.init.normal_(head.weight, std=std)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """`attention_mask_BL` is 1 (or True) at tokens and 0 at padding; None where nothing is padded. With
        `separate_documents` it may number a row's documents."""
        self._check_inputs(input_ids_BL, positions_BK)
        document_BL = attention_mask_BL if self.separate_documents else None
        position_BL = None if document_BL is None else positions_within(document_BL)
        is_token_BL = None if attention_mask_BL is None else attention_mask_BL.bool()
        x_BLD = self.positional_encoding(self.embedding(input_ids_BL), position_BL)
        x_BLD = self.dropout(x_BLD if self.embedding_norm is None else self.embedding_norm(x_BLD))
        x_BKD = self.encoder(x_BLD, is_token_BL, positions_BK, document_BL, position_BL)
        return self.decoder(self._aggregate(x_BKD, is_token_BL))

    @property
    def decodes_tokens(self) -> bool:
        """Whether its outputs are logits of the vocabulary's tokens at each position."""
        is_logits = self.decoder_output_activation in (None, "identity")
        return self.embedding_agg is None and is_logits and self.decoder.head.out_features == self.embedding.num_embeddings

    def check_masked_lm(self) -> None:
        """Raises ConfigError if it cannot be trained on masked tokens: cross-entropy wants logits, one row a position."""
        if self.embedding_agg is not None:
            problem = (
                "merges all positions into one prediction a sequence; a masked language model predicts at masked positions"
            )
            raise ConfigError("model.embedding_agg", self.embedding_agg, problem, "set model.embedding_agg=null")
        if (activation := self.decoder_output_activation) not in (None, "identity"):
            problem = (
                "cannot go with a cross-entropy: the loss takes logits and applies the softmax itself, and a second one on top "
                "flattens probabilities and gradients"
            )
            remedy = "set model.decoder_output_activation=null"
            raise ConfigError("model.decoder_output_activation", activation, problem, remedy)

    def _aggregate(self, x_BLD: Tensor, is_token_BL: Tensor | None) -> Tensor:
        if self.embedding_agg is None:
            return x_BLD
        if is_token_BL is not None:
            x_BLD = x_BLD * is_token_BL.unsqueeze(-1)
        if self.embedding_agg == "flatten":
            return x_BLD.flatten(1)
        if is_token_BL is None:
            return x_BLD.mean(1)
        return x_BLD.sum(1) / is_token_BL.sum(1, keepdim=True).clamp(min=1)

    def _check_inputs(self, input_ids_BL: Tensor, positions_BK: Tensor | None) -> None:
        length = input_ids_BL.shape[1]
        if self.embedding_agg == "flatten" and length != self.seq_len:
            raise ValueError(f"model.embedding_agg=flatten needs rows of exactly {self.seq_len} positions, these have {length}")
        if length > self.seq_len and self.positions != "none":
            raise ValueError(f"rows of {length} positions, and the model is built for at most {self.seq_len} (its seq_len)")
        if positions_BK is not None and self.embedding_agg is not None:
            raise ValueError(f"model.embedding_agg={self.embedding_agg} has one output a sequence, none at given positions")


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
        rotary: nn.ModuleList | None = None,
        attention_window: int | None = None,
        global_every_n_layers: int = 1,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(layer) for _ in range(num_layers))
        if normed and layer.norm_first:
            self.layers[0].norm1 = nn.Identity()
        self.norm = layer.make_norm() if layer.norm_first else None
        self.settings, self.rotary, self.attention_window = layer, rotary, attention_window
        self.is_local = [attention_window is not None and i % global_every_n_layers > 0 for i in range(num_layers)]

    def forward(
        self,
        x_BLD: Tensor,
        is_token_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        document_BL: Tensor | None = None,
        position_BL: Tensor | None = None,
    ) -> Tensor:
        """With `document_BL`, positions attend to those of the same number alone, and `is_token_BL` says nothing new;
        `position_BL` are then those within each document."""
        attendable_B1QL = None
        if document_BL is not None:
            attendable_B1QL = attendable(document_BL)
        elif is_token_BL is not None:
            # a row without any token (it only fills up a batch) attends everywhere: no softmax over nothing
            attendable_B1QL = (is_token_BL | ~is_token_BL.any(1, keepdim=True)).unsqueeze(1).unsqueeze(1)
        (*layers, last), (*are_local, is_local) = self.layers, self.is_local
        views = {local: self._view(x_BLD, attendable_B1QL, local, position_BL) for local in set(are_local)}
        for layer, local in zip(layers, are_local, strict=True):
            x_BLD = layer(x_BLD, views[local])
        if document_BL is not None:
            attendable_B1QL = attendable(document_BL, positions_BK)
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
            if attendable_B1QL is None:
                attendable_B1QL = near_11QL
            else:  # padding far from any token looks at itself: no softmax over nothing
                attendable_B1QL = (attendable_B1QL & near_11QL) | (distance_1QL == 0).unsqueeze(1)
        if self.rotary is None:
            return View(attendable_B1QL)
        rotary = self.rotary[int(local)]
        assert isinstance(rotary, Rotary)
        keys = rotary.at(length, position_BL, None)
        queries = keys if positions_BK is None else rotary.at(length, position_BL, positions_BK)
        return View(attendable_B1QL, queries, keys)


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
        attendable_B1QL = view.attendable_B1QL
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= _SHORT:
            # the same, written out: torch's fused kernel for CPUs takes up to ten times as long in bfloat16 on short rows
            scores_BHKL = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if attendable_B1QL is not None:
                scores_BHKL = scores_BHKL.masked_fill(~attendable_B1QL, float("-inf"))
            attended_BHKE = self.dropout(scores_BHKL.softmax(-1)) @ value
        else:
            attended_BHKE = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attendable_B1QL, dropout_p=self.dropout.p if self.training else 0.0
            )
        return self.out_proj(attended_BHKE.transpose(1, 2).flatten(2))

    def _project(self, x_BLD: Tensor, positions_BK: Tensor | None) -> tuple[Tensor, ...]:
        if positions_BK is None:
            return F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        sizes = [x_BLD.shape[-1], 2 * x_BLD.shape[-1]]
        query_weight, key_value_weight = self.in_proj_weight.split(sizes)
        query_bias, key_value_bias = (None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        query_BKD = F.linear(take(x_BLD, positions_BK), query_weight, query_bias)
        return query_BKD, *F.linear(x_BLD, key_value_weight, key_value_bias).chunk(2, dim=-1)

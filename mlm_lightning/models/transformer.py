"""A transformer encoder that predicts masked tokens, or labels a whole sequence, and computes nothing that is not asked for.

    x_BLD = embedding(input_ids_BL) + positions
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

Shapes: B rows, L positions, K predicted positions a row, V vocabulary, D width, H heads; Q queries that differ in what they may
attend to: K, or 1 where all may attend to the same positions.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval, Lt
from torch import Tensor, nn

from mlm_lightning.errors import ConfigError
from mlm_lightning.models.packing import attendable, positions_within
from mlm_lightning.values import checked

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "identity": lambda x: x,
}
Size = Annotated[int, Ge(1)]

_EMBEDDING_STD = 0.02
_SHORT = 256  # up to this many positions, attention written out is the faster one in bfloat16 on a CPU
_LOGIT_STD = 0.2  # of the first logits, where the decoder's input is normalised: a first loss of log V + 0.02


class TransformerClassifier(nn.Module):
    """The encoder, with a decoder (an FFNN) on top of each position or, with `embedding_agg`, of the whole sequence.

    `forward` returns BLV logits, BKV with `positions_BK`, and (B, num_classes) with `embedding_agg`. `num_classes` is the
    number of outputs, None for the vocabulary's size. `vocab_size`, `seq_len`, the longest row, and `separate_documents` come
    from the data.
    `norm_first` is pre-norm: unlike post-norm it trains without a warm-up, and at any depth.

    Raises ConfigError naming each setting that is impossible.
    """

    @checked("model")
    def __init__(
        self,
        vocab_size: Size,
        seq_len: Size,
        d_model: Size = 64,
        num_layers: Annotated[int, Interval(ge=1, le=1000)] = 4,
        nhead: Size = 4,
        dim_feedforward: Size = 256,
        dropout: Annotated[float, Ge(0), Lt(1), "it is a probability"] = 0.0,
        activation: Literal["relu", "gelu"] = "gelu",
        norm_first: bool = True,
        positional_encoding: Literal["learned", "sinusoidal", "none"] | None = "learned",
        embedding_agg: Literal["mean", "flatten"] | None = None,
        decoder_hidden_sizes: Sequence[Size] = (),
        decoder_activation: Literal["relu", "gelu", "tanh", "identity"] = "relu",
        decoder_output_activation: Literal["identity", "softmax", "log_softmax", "sigmoid"] | None = None,
        num_classes: Size | None = None,
        separate_documents: bool = False,
    ) -> None:
        super().__init__()
        if d_model % nhead != 0:
            divisors = ", ".join(str(n) for n in range(1, min(d_model, 64) + 1) if d_model % n == 0)
            raise ConfigError("model.nhead", nhead, f"does not divide model.d_model={d_model}", f"heads that do: {divisors}")
        if separate_documents and embedding_agg is not None:
            problem = f"model.embedding_agg={embedding_agg} merges all positions of a row and cannot keep documents apart"
            remedy = "choose data.packing=chunk or document, or model.embedding_agg=null"
            raise ConfigError("data.packing", "sentence_pack", problem, remedy)
        self.seq_len = seq_len
        self.separate_documents = separate_documents
        self.embedding_agg = embedding_agg
        self.decoder_output_activation = decoder_output_activation
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positional_encoding = Positions(positional_encoding or "none", seq_len, d_model)
        self.dropout = Dropout(dropout)
        self.encoder = Encoder(num_layers, d_model, nhead, dim_feedforward, dropout, activation, norm_first)
        in_size = d_model * seq_len if embedding_agg == "flatten" else d_model
        out_size = vocab_size if num_classes is None else num_classes
        self.decoder = FFNN(in_size, decoder_hidden_sizes, out_size, decoder_activation, decoder_output_activation)
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
        | norms; biases                      | 1; 0                                                                |
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_EMBEDDING_STD)
            elif isinstance(module, Positions) and module.kind == "learned":
                nn.init.normal_(module.weight_LD, std=_EMBEDDING_STD)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, SelfAttention):
                # three matrices in one: Xavier must see each of its own shape
                for weight_DD in module.in_proj_weight.chunk(3):
                    nn.init.xavier_uniform_(weight_DD)
                nn.init.zeros_(module.in_proj_bias)
        layers = [module for module in self.modules() if isinstance(module, EncoderLayer)]
        with torch.no_grad():
            for layer in layers:
                layer.self_attn.out_proj.weight.mul_((2 * len(layers)) ** -0.5)
                layer.linear2.weight.mul_((2 * len(layers)) ** -0.5)
        head = self.decoder.head
        nn.init.normal_(head.weight, std=_LOGIT_STD / math.sqrt(head.in_features))

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """`attention_mask_BL` is 1 (or True) at tokens and 0 at padding; None where nothing is padded. With
        `separate_documents` it may number a row's documents."""
        self._check_inputs(input_ids_BL, positions_BK)
        document_BL = attention_mask_BL if self.separate_documents else None
        position_BL = None if document_BL is None else positions_within(document_BL)
        is_token_BL = None if attention_mask_BL is None else attention_mask_BL.bool()
        x_BLD = self.dropout(self.positional_encoding(self.embedding(input_ids_BL), position_BL))
        x_BKD = self.encoder(x_BLD, is_token_BL, positions_BK, document_BL)
        return self.decoder(self._aggregate(x_BKD, is_token_BL))

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
        if length > self.seq_len and self.positional_encoding.kind != "none":
            raise ValueError(f"rows of {length} positions, and the model is built for at most {self.seq_len} (its seq_len)")
        if positions_BK is not None and self.embedding_agg is not None:
            raise ValueError(f"model.embedding_agg={self.embedding_agg} has one output a sequence, none at given positions")


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, names of weights included: its state dict loads here. Pre-norm ends with a norm, `norm`."""

    def __init__(
        self, num_layers: int, d_model: int, nhead: int, dim_feedforward: int, dropout: float, activation: str, norm_first: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, nhead, dim_feedforward, dropout, activation, norm_first) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model) if norm_first else None

    def forward(
        self,
        x_BLD: Tensor,
        is_token_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        document_BL: Tensor | None = None,
    ) -> Tensor:
        """With `document_BL`, positions attend to those of the same number alone, and `is_token_BL` says nothing new."""
        attendable_B1QL = None
        if document_BL is not None:
            attendable_B1QL = attendable(document_BL)
        elif is_token_BL is not None:
            # a row without any token (it only fills up a batch) attends everywhere: no softmax over nothing
            attendable_B1QL = (is_token_BL | ~is_token_BL.any(1, keepdim=True)).unsqueeze(1).unsqueeze(1)
        *layers, last = self.layers
        for layer in layers:
            x_BLD = layer(x_BLD, attendable_B1QL)
        if document_BL is not None:
            attendable_B1QL = attendable(document_BL, positions_BK)
        x_BKD = last(x_BLD, attendable_B1QL, positions_BK)
        return x_BKD if self.norm is None else self.norm(x_BKD)


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer`, whose outputs can be asked for at some positions only (K = L without `positions_BK`)."""

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int, dropout: float, activation: str, norm_first: bool
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = SelfAttention(d_model, nhead, dropout)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.activation = _ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, attendable_B1QL: Tensor | None = None, positions_BK: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x_BKD = take(x_BLD, positions_BK) + self._attention(self.norm1(x_BLD), attendable_B1QL, positions_BK)
            return x_BKD + self._feed_forward(self.norm2(x_BKD))
        x_BKD = self.norm1(take(x_BLD, positions_BK) + self._attention(x_BLD, attendable_B1QL, positions_BK))
        return self.norm2(x_BKD + self._feed_forward(x_BKD))

    def _attention(self, x_BLD: Tensor, attendable_B1QL: Tensor | None, positions_BK: Tensor | None) -> Tensor:
        return self.dropout(self.self_attn(x_BLD, attendable_B1QL, positions_BK))

    def _feed_forward(self, x_BKD: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x_BKD)))))


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries at `positions_BK`, keys and values everywhere."""

    def __init__(self, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.dropout = Dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x_BLD: Tensor, attendable_B1QL: Tensor | None = None, positions_BK: Tensor | None = None) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.nhead, -1)).transpose(1, 2) for x in self._project(x_BLD, positions_BK))
        if query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= _SHORT:
            # the same, written out: torch's fused kernel for CPUs takes up to ten times as long in bfloat16 on short rows
            scores_BHKL = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if attendable_B1QL is not None:
                scores_BHKL = scores_BHKL.masked_fill(~attendable_B1QL, float("-inf"))
            attended_BHKD = self.dropout(scores_BHKL.softmax(-1)) @ value
        else:
            attended_BHKD = F.scaled_dot_product_attention(
                query, key, value, attn_mask=attendable_B1QL, dropout_p=self.dropout.p if self.training else 0.0
            )
        return self.out_proj(attended_BHKD.transpose(1, 2).flatten(2))

    def _project(self, x_BLD: Tensor, positions_BK: Tensor | None) -> tuple[Tensor, ...]:
        if positions_BK is None:
            return F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        d_model = x_BLD.shape[-1]
        query_weight, key_value_weight = self.in_proj_weight.split([d_model, 2 * d_model])
        query_bias, key_value_bias = self.in_proj_bias.split([d_model, 2 * d_model])
        query_BKD = F.linear(take(x_BLD, positions_BK), query_weight, query_bias)
        return query_BKD, *F.linear(x_BLD, key_value_weight, key_value_bias).chunk(2, dim=-1)


class FFNN(nn.Module):
    """A feed-forward network on the last dimension: linear layers with an activation between them and one after the last."""

    def __init__(
        self, in_size: int, hidden_sizes: Sequence[int], out_size: int, activation: str, output_activation: str | None = None
    ) -> None:
        super().__init__()
        sizes = (in_size, *hidden_sizes, out_size)
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes[:-1]))
        self.head = nn.Linear(sizes[-2], out_size)
        self.activation = _ACTIVATIONS[activation]
        self.output_activation = _ACTIVATIONS[output_activation or "identity"]

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.hidden:
            x = self.activation(linear(x))
        return self.output_activation(self.head(x))


class Positions(nn.Module):
    """Adds a vector to each token, by its position: 0, 1, 2 … or `position_BL`.

    learned      parameters, `weight_LD`
    sinusoidal   sines and cosines of geometrically spaced wavelengths, 2π … 10000·2π (Vaswani et al. 2017, section 3.5), scaled
                 to the size of the token vectors at the start of training, which they would drown otherwise
    none         nothing: tokens know their company, not their order
    """

    def __init__(self, kind: Literal["learned", "sinusoidal", "none"], seq_len: int, d_model: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.weight_LD = nn.Parameter(torch.empty(seq_len, d_model))
        elif kind == "sinusoidal":
            frequencies = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
            angles = torch.arange(seq_len).unsqueeze(1) * frequencies
            # sine and cosine take turns; an odd width has one sine more
            table_LD = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model]
            self.register_buffer("table_LD", table_LD * (_EMBEDDING_STD * math.sqrt(2)), persistent=False)

    def forward(self, x_BLD: Tensor, position_BL: Tensor | None = None) -> Tensor:
        if self.kind == "none":
            return x_BLD
        vectors_LD = self.weight_LD if self.kind == "learned" else self.get_buffer("table_LD")
        return x_BLD + (vectors_LD[: x_BLD.shape[1]] if position_BL is None else F.embedding(position_BL, vectors_LD))


class Dropout(nn.Module):
    """`nn.Dropout`, several times faster on a CPU: 16 random bits an element, four elements from each 64-bit number of torch's
    global generator.

    An element is kept with probability q, 1 - p rounded to a multiple of 2^-16, and scaled by 1 / q: the mean is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        num_dropped = min(round(self.p * 2**16), 2**16 - 1)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        # a comparison that writes floats: a mask of booleans would have to be converted, which takes as long
        scale = torch.ge(bits, num_dropped - 2**15, out=torch.empty_like(bits, dtype=x.dtype))
        return x * scale.mul_(2**16 / (2**16 - num_dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def take(x_BLD: Tensor, positions_BK: Tensor | None) -> Tensor:
    """The vectors at some positions of each row, BKD; all of them where `positions_BK` is None."""
    if positions_BK is None:
        return x_BLD
    return x_BLD.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, x_BLD.shape[-1]))

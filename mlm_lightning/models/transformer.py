"""A transformer encoder that predicts masked tokens, or labels a whole sequence, and computes nothing that is not asked for.

    x_BLD = embedding(input_ids_BL) + positions      (rotary positions turn queries and keys instead)
    x_BLD = x_BLD + attention(norm1(x_BLD))          num_layers times (pre-norm; post-norm puts the norms after the sums)
    x_BLD = x_BLD + feed_forward(norm2(x_BLD))
    logits_BLV = decoder(norm(x_BLD))

The questions that a first look at masking raises, answered:

- *Original tokens with a mask, or masked tokens?* Masked tokens: `[MASK]` is a token with an embedding of its own, which learns
  like any other. It is what tells the model where to predict.
- *Would an attention mask on the original tokens do?* No. It stops the *other* positions from looking at a token, but its own
  embedding passes through `x + …` to its own logits: the label leaks. `hidden_BL` shows it; `attention_mask_BL` is for padding.
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

Shapes: B rows, L positions, K predicted positions a row, V vocabulary, D width.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval, Lt
from torch import Tensor, nn

from mlm_lightning.errors import ConfigError
from mlm_lightning.models.encoder import Encoder, EncoderLayer, LayerSettings, SelfAttention
from mlm_lightning.models.layers import EMBEDDING_STD, FFNN, Dropout, NormKind, Positions, Rotary
from mlm_lightning.models.packing import positions_within
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
        _check_heads(d_model, nhead, positional_encoding == "rotary")
        if separate_documents:
            _check_separable(embedding_agg)
        self.seq_len, self.separate_documents, self.positions = seq_len, separate_documents, positional_encoding or "none"
        self.embedding_agg, self.tie_embeddings = embedding_agg, tie_embeddings
        self.decoder_activation, self.decoder_norm = decoder_activation, decoder_norm
        self.decoder_output_activation = decoder_output_activation
        layer = LayerSettings(
            d_model, nhead, shape["dim_feedforward"], dropout, activation, norm, norm_first, norm_eps, bias, qk_norm
        )
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positional_encoding = Positions(self.positions, seq_len, d_model)
        self.embedding_norm = layer.make_norm() if embedding_norm else None
        self.dropout = Dropout(dropout)
        thetas = (rope_theta, local_rope_theta or rope_theta) if self.positions == "rotary" else ()
        rotary = [Rotary(seq_len, d_model // nhead, theta) for theta in thetas]
        self.encoder = Encoder(shape["num_layers"], layer, rotary, attention_window, global_every_n_layers, embedding_norm)
        self.decoder = FFNN(
            d_model * seq_len if embedding_agg == "flatten" else d_model,
            [d_model] if decoder_hidden_sizes == "d_model" else decoder_hidden_sizes,
            vocab_size if num_classes is None else num_classes,
            decoder_activation,
            decoder_output_activation,
            norm=layer.make_norm if decoder_norm else None,
            hidden_bias=bias,
            bias=decoder_bias,
        )
        if tie_embeddings:
            self._tie()
        self.reset_parameters()

    def _tie(self) -> None:
        ours, head = self.embedding.weight, self.decoder.head.weight
        if head.shape != ours.shape:
            problem = (
                f"the decoder's last matrix, {tuple(head.shape)}, is not as large as that of the tokens, {tuple(ours.shape)}"
            )
            remedy = f"end model.decoder_hidden_sizes with {ours.shape[1]}, or set model.tie_embeddings=false"
            raise ConfigError("model.tie_embeddings", True, problem, remedy)
        self.decoder.head.weight = ours

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
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """`attention_mask_BL` is 1 (or True) at tokens and 0 at padding; None where nothing is padded. With
        `separate_documents` it may number a row's documents. No position attends to those of `hidden_BL`."""
        return self.decoder(self._encode(input_ids_BL, attention_mask_BL, positions_BK, hidden_BL))

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """What the decoder's last layer makes the logits of."""
        return self.decoder.last_hidden(self._encode(input_ids_BL, attention_mask_BL, positions_BK, hidden_BL))

    def is_head(self, name: str) -> bool:
        return name.startswith("decoder.")

    def check_hiding(self) -> None:
        """It can."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def output_layer(self) -> nn.Linear | None:
        return self.decoder.head if self.decodes_tokens else None

    def _encode(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None,
        positions_BK: Tensor | None,
        hidden_BL: Tensor | None,
    ) -> Tensor:
        self._check_inputs(input_ids_BL, positions_BK)
        document_BL = attention_mask_BL if self.separate_documents else None
        position_BL = None if document_BL is None else positions_within(document_BL)
        is_token_BL = None if attention_mask_BL is None else attention_mask_BL.bool()
        x_BLD = self.positional_encoding(self.embedding(input_ids_BL), position_BL)
        x_BLD = self.dropout(x_BLD if self.embedding_norm is None else self.embedding_norm(x_BLD))
        x_BKD = self.encoder(x_BLD, is_token_BL, positions_BK, document_BL, position_BL, hidden_BL)
        return self._aggregate(x_BKD, is_token_BL)

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
        self.check_classifier()

    def check_classifier(self) -> None:
        """Raises ConfigError where a cross-entropy can't go on top."""
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


def _check_separable(embedding_agg: str | None) -> None:
    """Raises ConfigError where documents of a row can't be kept apart."""
    if embedding_agg is not None:
        problem = f"model.embedding_agg={embedding_agg} merges all positions of a row and cannot keep documents apart"
        remedy = "choose data.packing=chunk or document, or model.embedding_agg=null"
        raise ConfigError("data.packing", "sentence_pack", problem, remedy)


def _check_heads(d_model: int, nhead: int, rotary: bool) -> None:
    """Raises ConfigError where heads can't share the width, or rotary positions can't turn their entries in pairs."""
    if d_model % nhead == 0 and not (rotary and d_model // nhead % 2):
        return
    problem = f"does not divide model.d_model={d_model}"
    if d_model % nhead == 0:
        problem = f"gives heads of an odd width, {d_model // nhead}, and rotary positions turn their entries in pairs"
    fitting = [n for n in range(1, min(d_model, 64) + 1) if d_model % n == 0 and not (rotary and d_model // n % 2)]
    remedy = f"heads that do: {', '.join(map(str, fitting))}" if fitting else "choose an even model.d_model"
    raise ConfigError("model.nhead", nhead, problem, remedy)

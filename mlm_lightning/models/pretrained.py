"""Any masked language model of Hugging Face transformers, from published weights or from scratch, that computes its vocabulary
head at the predicted positions only, with no architecture written anew.

    checkpoint or architecture ─► pretrained_build ─► hf_model:

    input_ids_BL ─► encoder ─► hidden_BLD ─► gather ─► hidden_BKD ─► head ─► logits_BKV
                                               ▲
                                          positions_BK

The head is the larger part of a small model's work: L × V logits a row, of which the loss looks at 15 %. A hook on the
library's encoder gathers before the library's own head, so the numbers are the same. In DistilBERT the gather happens one layer
earlier: of its last layer only keys and values are needed everywhere.

Rows that pack several documents, numbered by `attention_mask_BL`, are read as if each document had a row of its own where
`separate_documents` is set (packing.py): by the library's own masks and positions, in those architectures that were proven to
obey them.

Shapes: B rows, L positions, K predicted positions a row, D width, H heads, V vocabulary.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.distilbert.modeling_distilbert import TransformerBlock
from transformers.utils.logging import disable_progress_bar

from mlm_lightning.batch import Vocab
from mlm_lightning.errors import ConfigError
from mlm_lightning.models.attention import attend
from mlm_lightning.models.layers import Dropout, take
from mlm_lightning.models.packing import attendable, positions_within
from mlm_lightning.models.pretrained_build import build, first_position, read_model, settings_of
from mlm_lightning.values import Located, checked

SEPARATE_DOCUMENTS = (
    *("albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "gte"),
    *("jina_embeddings_v3", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
)
"""Architectures whose every layer and position obeys the masks and positions that it is given: tests prove it of each of them.
Others convolve, mix or bucket positions across a row, or take no such masks."""


LINEAR_HEADS = (*SEPARATE_DOCUMENTS, "convbert", "deberta", "deberta-v2", "roformer")
"""Architectures whose logits are what their last linear layer gives: tests prove it of each of them."""


class PretrainedMLM(nn.Module):
    """A masked LM from weights (`checkpoint`) or from scratch (`architecture`).

    `checkpoint` is a name on the hub, at `revision`, or a folder. `architecture` is a `model_type` of transformers
    ("distilbert", "bert", "roberta" …); next to a checkpoint it only asserts the checkpoint's type. `config` overrides settings
    of the checkpoint (its dropout, say) or of the architecture (its sizes); unknown keys are errors. `vocab_size`, `seq_len`,
    `pad_token_id` and `separate_documents` come from the data. From scratch, `max_position_embeddings` grows with `seq_len`
    unless `config` sets it. `hf_model` is the library's model as it is.

    Under `torch.device("meta")` no weights are read, only the checkpoint's configuration, and a vocabulary smaller than the
    checkpoint's or without padding is no mistake: settings can be checked before the data is known. New weights are drawn from
    torch's global generator, which the caller seeds. Raises ConfigError naming the setting and the remedy.
    """

    @checked("model")
    def __init__(
        self,
        vocab_size: Annotated[int, Ge(1)],
        seq_len: Annotated[int, Ge(1)],
        checkpoint: Annotated[str, Located(or_name=True)] | None = None,
        architecture: str | None = None,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        pad_token_id: int | None = None,
        gradient_checkpointing: bool = False,
        separate_documents: bool = False,
    ) -> None:
        super().__init__()
        self.seq_len, self.checkpoint = seq_len, checkpoint
        self.separate_documents = separate_documents
        self.hf_model = build(checkpoint, revision, architecture, dict(config or {}), vocab_size, seq_len, pad_token_id)
        hf_config, encoder = self.hf_model.config, cast(Any, self.hf_model.base_model)
        has_plain_attention = hf_config._attn_implementation in ("sdpa", "eager")
        if separate_documents and not (hf_config.model_type in SEPARATE_DOCUMENTS and has_plain_attention):
            problem = f"{hf_config.model_type} models cannot keep documents apart"
            remedy = "choose data.packing=chunk or document, or model=transformer, or an architecture that can"
            raise ConfigError("data.packing", "sentence_pack", problem, f"{remedy}: {', '.join(SEPARATE_DOCUMENTS)}")
        if hf_config._attn_implementation == "sdpa":
            hf_config._attn_implementation = _ATTENTION
        _replace_dropout(self.hf_model)
        self._first_position = first_position(self.hf_model)
        self._predicted = Predicted()
        if hf_config.model_type == "distilbert" and has_plain_attention:
            layers = encoder.transformer.layer
            layers[-1] = _DistilBertLastBlock(layers[-1], self._predicted, separate_documents)
        else:
            encoder.register_forward_hook(partial(_gather, self._predicted))
        output_layer = self.hf_model.get_output_embeddings()
        if type(output_layer) is nn.Linear and hf_config.model_type in LINEAR_HEADS:
            output_layer.__class__ = _OutputLayer
            cast(_OutputLayer, output_layer).predicted = self._predicted
        if gradient_checkpointing:
            try:
                self.hf_model.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                problem = f"{hf_config.model_type} does not support it"
                raise ConfigError("model.gradient_checkpointing", True, problem) from error

    def check_tokens(self, vocab: Vocab) -> None:
        tokens = self.hf_model.config.vocab_size
        if self.checkpoint is not None and vocab.tokens is None and vocab.size != tokens:
            problem = (
                f"was trained on the {tokens:,} tokens of its tokenizer, and the data has {vocab.size - 1} symbols and no text"
            )
            remedy = (
                "choose data=text with the checkpoint's tokenizer, or train from scratch: model=transformer or model=distilbert"
            )
            raise ConfigError("model.checkpoint", self.checkpoint, problem, remedy)

    def rebuild_config(self) -> dict[str, Any]:
        """The YAML that builds this architecture again, without a checkpoint and without the hub."""
        config = self.hf_model.config
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "vocab_size": config.vocab_size,
            "seq_len": self.seq_len,
            "pad_token_id": config.pad_token_id,
            "architecture": config.model_type,
            "config": settings_of(config),
            **({"separate_documents": True} if self.separate_documents else {}),
        }

    def save_pretrained(self, folder: Path) -> None:
        """Writes a folder that transformers opens."""
        disable_progress_bar()
        self.hf_model.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Takes the weights of such a folder."""
        disable_progress_bar()
        self.hf_model.load_state_dict(read_model(str(folder), None, self.hf_model.config).state_dict())

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """`attention_mask_BL` is 1 at tokens and 0 at padding; None where nothing is padded. With `separate_documents` it
        may number a row's documents."""
        attention: dict[str, Any] = {"attention_mask": attention_mask_BL}
        if self.separate_documents and attention_mask_BL is not None:
            position_ids_BL = positions_within(attention_mask_BL) + self._first_position
            attention = {"attention_mask": self._documents_apart(attention_mask_BL), "position_ids": position_ids_BL}
        self._predicted.positions_BK = positions_BK
        try:
            return self.hf_model(input_ids=input_ids_BL, **attention, return_dict=True).logits
        finally:
            self._predicted.positions_BK = None

    def hidden_states(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """What the library's last layer makes the logits of."""
        self._predicted.without_logits = True
        try:
            return self(input_ids_BL, attention_mask_BL, positions_BK)
        finally:
            self._predicted.without_logits = False

    def output_layer(self) -> nn.Linear | None:
        layer = self.hf_model.get_output_embeddings()
        return layer if isinstance(layer, _OutputLayer) else None

    def _documents_apart(self, document_BL: Tensor) -> Any:
        """The library's masks for rows that pack documents: 4-D, which it passes on to each layer as they are."""
        config, dtype, mask_B1LL = self.hf_model.config, self.hf_model.dtype, attendable(document_BL)
        if config._attn_implementation == "eager":  # adds it to the scores
            return torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill(~mask_B1LL, torch.finfo(dtype).min)
        if config.model_type != "modernbert":
            return mask_B1LL
        # some of its layers look at neighbours only
        position_L = torch.arange(document_BL.shape[1], device=document_BL.device)
        is_near_LL = (position_L.unsqueeze(1) - position_L).abs() <= config.sliding_window
        return {"full_attention": mask_B1LL, "sliding_attention": mask_B1LL & is_near_LL}


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


_ATTENTION = "mlm_lightning"
AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _replace_dropout(model: nn.Module) -> None:
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


class _OutputLayer(nn.Linear):
    """The library's last layer, the same weights under the same names."""

    predicted: Predicted

    def forward(self, input: Tensor) -> Tensor:
        return input if self.predicted.without_logits else super().forward(input)


def _gather(predicted: Predicted, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """A forward hook: the hidden states that reach the head become those of the predicted positions."""
    if predicted.positions_BK is None:
        return output
    if isinstance(output, tuple):
        return take(output[0], predicted.positions_BK), *output[1:]
    output["last_hidden_state"] = take(output["last_hidden_state"], predicted.positions_BK)
    return output


class _DistilBertLastBlock(TransformerBlock):
    """DistilBERT's last block, the same weights under the same names, with outputs at the predicted positions only."""

    def __init__(self, block: Any, predicted: Predicted, separate_documents: bool) -> None:
        nn.Module.__init__(self)  # the block's own would draw new weights
        self.attention, self.sa_layer_norm = block.attention, block.sa_layer_norm
        self.ffn, self.output_layer_norm = block.ffn, block.output_layer_norm
        self.predicted, self.separate_documents = predicted, separate_documents
        self.train(block.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        # read here, outside of gradient checkpointing: by the time that runs `forward` again, `predicted` has moved on
        return super().__call__(*args, positions_BK=self.predicted.positions_BK, **kwargs)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, positions_BK: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if positions_BK is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention, mask = self.attention, attention_mask
        if mask is not None and self.separate_documents:
            mask = mask.gather(2, positions_BK[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
        elif mask is not None:  # padding is hidden from every query alike: the first query's row of the mask serves them all
            mask = mask[:, :, :1]
        x_BKD = take(hidden_states, positions_BK)
        query, key, value = (
            x.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for x in (attention.q_lin(x_BKD), attention.k_lin(hidden_states), attention.v_lin(hidden_states))
        )
        dropout = attention.dropout.p if self.training else 0.0
        attended_BHKE = attend(query, key, value, mask, dropout)
        x_BKD = self.sa_layer_norm(x_BKD + attention.out_lin(attended_BHKE.transpose(1, 2).flatten(2)))
        return self.output_layer_norm(x_BKD + self.ffn(x_BKD))

"""Any masked language model of Hugging Face transformers, from published weights or from scratch, that computes its vocabulary
head at the predicted positions only, with no architecture written anew.

    checkpoint or architecture ─► pretrained_build ─► hf_model:

    input_ids_BL ─► encoder ─► hidden_BLD ─► gather ─► hidden_BKD ─► head ─► logits_BKV
                                               ▲
                                          positions_BK

The head is the larger part of a small model's work: L × V logits a row, of which the loss looks at 15 %. A hook on the
library's encoder gathers before the library's own head, so the numbers are the same. In the usual architectures (LAST_LAYERS)
the gather happens one layer earlier: of the last layer only keys and values are needed everywhere.

Rows that pack several documents, numbered by `attention_mask_BL`, are read as if each document had a row of its own where
`separate_documents` is set (packing.py): by the library's own masks and positions, in those architectures that were proven to
obey them.

Shapes: B rows, L positions, K predicted positions a row, D width, H heads, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from mlm_lightning.batch import Vocab
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.models.packing import attendable, positions_within
from mlm_lightning.models.pretrained_build import build, first_position, read_model, settings_of
from mlm_lightning.models.pretrained_parts import (
    ATTENTION,
    BertLastLayer,
    DistilBertLastLayer,
    ModernBertLastLayer,
    OutputLayer,
    Predicted,
    gather_predicted,
    replace_dropout,
)
from mlm_lightning.values import Located, checked

SEPARATE_DOCUMENTS = (
    *("albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "gte"),
    *("jina_embeddings_v3", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
)
"""Architectures whose every layer and position obeys the masks and positions that it is given: tests prove it of each of them.
Others convolve, mix or bucket positions across a row, or take no such masks."""


LAST_LAYERS = {
    "distilbert": ("transformer.layer", DistilBertLastLayer),
    "modernbert": ("layers", ModernBertLastLayer),
    **dict.fromkeys(
        ("bert", "camembert", "data2vec-text", "electra", "ernie", "roberta", "xlm-roberta"), ("encoder.layer", BertLastLayer)
    ),
}
"""Architectures whose last layer does no more than is asked for: where the layers are, and what takes the place of the last."""
LINEAR_HEADS = (*SEPARATE_DOCUMENTS, "convbert", "deberta", "deberta-v2", "roformer")
"""Architectures whose logits are what their last linear layer gives: tests prove it of each of them."""


class PretrainedMLM(nn.Module):
    """A masked LM, or with `class_names` the library's own classifier of rows (logits BC), from weights (`checkpoint`) or from
    scratch (`architecture`).

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
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.seq_len, self.checkpoint = seq_len, checkpoint
        self.separate_documents = separate_documents
        self.class_names = class_names
        sizes = vocab_size, seq_len, pad_token_id
        self.hf_model = build(checkpoint, revision, architecture, dict(config or {}), *sizes, class_names)
        hf_config, encoder = self.hf_model.config, cast(Any, self.hf_model.base_model)
        has_plain_attention = hf_config._attn_implementation in ("sdpa", "eager")
        if separate_documents and not (hf_config.model_type in SEPARATE_DOCUMENTS and has_plain_attention):
            problem = f"{hf_config.model_type} models cannot keep documents apart"
            remedy = "choose data.packing=chunk or document, or model=transformer, or an architecture that can"
            raise ConfigError("data.packing", "sentence_pack", problem, f"{remedy}: {', '.join(SEPARATE_DOCUMENTS)}")
        if hf_config._attn_implementation == "sdpa":
            hf_config._attn_implementation = ATTENTION
        replace_dropout(self.hf_model)
        self._first_position = first_position(self.hf_model)
        self._predicted = Predicted()
        last_layer = LAST_LAYERS.get(hf_config.model_type) if has_plain_attention else None
        if last_layer is not None:
            path, cls = last_layer
            layer = encoder.get_submodule(path)[-1]
            layer.__class__, layer.predicted = cls, self._predicted
        else:
            encoder.register_forward_hook(partial(gather_predicted, self._predicted))
        output_layer = self.hf_model.get_output_embeddings()
        if type(output_layer) is nn.Linear and hf_config.model_type in LINEAR_HEADS:
            output_layer.__class__ = OutputLayer
            cast(OutputLayer, output_layer).predicted = self._predicted
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
            **({"class_names": list(self.class_names)} if self.class_names else {}),
        }

    def save_pretrained(self, folder: Path) -> None:
        """Writes a folder that transformers opens."""
        disable_progress_bar()
        self.hf_model.save_pretrained(folder)

    def load_pretrained(self, folder: Path) -> None:
        """Takes the weights of such a folder."""
        disable_progress_bar()
        self.hf_model.load_state_dict(
            read_model(str(folder), None, self.hf_model.config, self.class_names is not None).state_dict()
        )

    def is_head(self, name: str) -> bool:
        # a pooler is trained with what stands on it
        return not name.startswith(f"hf_model.{self.hf_model.base_model_prefix}.") or ".pooler." in name

    def check_hiding(self) -> None:
        config = self.hf_model.config
        if config.model_type not in SEPARATE_DOCUMENTS or config._attn_implementation != ATTENTION:
            problem = f"{config.model_type} models can't keep positions from being attended to"
            remedy = "choose masking.hiding=token, or model=transformer, or an architecture that can"
            remedy += f": {', '.join(SEPARATE_DOCUMENTS)}"
            raise ConfigError("masking.hiding", NO_VALUE, problem, remedy)

    def get_input_embeddings(self) -> nn.Module:
        return self.hf_model.get_input_embeddings()

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """`attention_mask_BL` is 1 at tokens and 0 at padding; None where nothing is padded. With `separate_documents` it
        may number a row's documents. No position attends to those of `hidden_BL`."""
        attention: dict[str, Any] = {"attention_mask": attention_mask_BL}
        if self.separate_documents and attention_mask_BL is not None:
            position_ids_BL = positions_within(attention_mask_BL) + self._first_position
            attendable_B1LL = attendable(attention_mask_BL)
            if hidden_BL is not None:
                attendable_B1LL = attendable_B1LL & ~hidden_BL[:, None, None]
            attention = {"attention_mask": self._for_each_layer(attendable_B1LL), "position_ids": position_ids_BL}
        elif hidden_BL is not None:
            visible_BL = (~hidden_BL).to(torch.int64)
            attention = {"attention_mask": visible_BL if attention_mask_BL is None else visible_BL * attention_mask_BL}
        self._predicted.positions_BK = positions_BK
        try:
            return self.hf_model(input_ids=input_ids_BL, **attention, return_dict=True).logits
        finally:
            self._predicted.positions_BK = None

    def hidden_states(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        positions_BK: Tensor | None = None,
        hidden_BL: Tensor | None = None,
    ) -> Tensor:
        """What the library's last layer makes the logits of."""
        self._predicted.without_logits = True
        try:
            return self(input_ids_BL, attention_mask_BL, positions_BK, hidden_BL)
        finally:
            self._predicted.without_logits = False

    def output_layer(self) -> nn.Linear | None:
        layer = self.hf_model.get_output_embeddings()
        return layer if isinstance(layer, OutputLayer) else None

    def _for_each_layer(self, mask_B1LL: Tensor) -> Any:
        """A mask as the library passes it on to each layer as it is: 4-D."""
        config, dtype = self.hf_model.config, self.hf_model.dtype
        if config._attn_implementation == "eager":  # adds it to the scores
            return torch.zeros_like(mask_B1LL, dtype=dtype).masked_fill(~mask_B1LL, torch.finfo(dtype).min)
        if config.model_type != "modernbert":
            return mask_B1LL
        # some of its layers look at neighbours only
        position_L = torch.arange(mask_B1LL.shape[-1], device=mask_B1LL.device)
        is_near_LL = (position_L.unsqueeze(1) - position_L).abs() <= config.sliding_window
        return {"full_attention": mask_B1LL, "sliding_attention": mask_B1LL & is_near_LL}

"""Any masked language model of Hugging Face transformers, from published weights or from scratch, that computes its vocabulary
head at the predicted positions only.

    checkpoint or architecture ─► configuration (pretrained_config) ─► hf_model (pretrained_weights)
    forward: documents of a row kept apart (pretrained_documents), hidden states gathered before the head (pretrained_gather)

Rows that pack several documents, numbered by `attention_mask_BL`, are read as if each document had a row of its own where
`separate_documents` is set, with those architectures that were proven to do so.

`PretrainedMLM.hf_model` is the library's model as it is, for `save_pretrained`.

Shapes: B rows, L positions, K predicted positions a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn

from mlm_lightning.errors import ConfigError
from mlm_lightning.values import checked

try:
    from mlm_lightning.models.pretrained_config import checkpoint_config, fit_positions, scratch_config, settings_of
    from mlm_lightning.models.pretrained_documents import check_keeps_documents_apart, within_documents
    from mlm_lightning.models.pretrained_gather import Predicted, gather_at
    from mlm_lightning.models.pretrained_weights import first_position, new_model, on_meta, read_model
except ImportError as error:
    raise ImportError(f"pretrained models need transformers: pip install 'mlm-lightning[text]' ({error})") from error


class PretrainedMLM(nn.Module):
    """A masked LM from weights (`checkpoint`) or from scratch (`architecture`).

    `checkpoint` is a name on the hub, at `revision`, or a folder. `architecture` is a `model_type` of transformers
    ("distilbert", "bert", "roberta" …); next to a checkpoint it only asserts the checkpoint's type. `config` overrides settings
    of the checkpoint (its dropout, say) or of the architecture (its sizes); unknown keys are errors. `vocab_size`, `seq_len`,
    `pad_token_id` and `separate_documents` come from the data. From scratch, `max_position_embeddings` grows with `seq_len`
    unless `config` sets it.

    Under `torch.device("meta")` no weights are read, only the checkpoint's configuration, and a vocabulary smaller than the
    checkpoint's or without padding is no mistake: settings can be checked before the data is known. New weights are drawn from
    torch's global generator, which the caller seeds. Raises ConfigError naming the setting and the remedy.
    """

    @checked("model")
    def __init__(
        self,
        vocab_size: Annotated[int, Ge(1)],
        seq_len: Annotated[int, Ge(1)],
        checkpoint: str | None = None,
        architecture: str | None = None,
        config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        pad_token_id: int | None = None,
        gradient_checkpointing: bool = False,
        separate_documents: bool = False,
    ) -> None:
        super().__init__()
        self.seq_len = seq_len
        settings = dict(config or {})
        if checkpoint is not None:
            hf_config = checkpoint_config(checkpoint, revision, architecture, settings, vocab_size)
        elif architecture is None:
            remedy = "set one: a hub name or a folder, or, to start from scratch, an architecture (distilbert, bert …)"
            raise ConfigError("model.checkpoint", None, "model.architecture is null, too", remedy)
        elif revision is not None:
            raise ConfigError("model.revision", revision, "belongs to a model.checkpoint, and there is none")
        else:
            hf_config = scratch_config(architecture, settings, vocab_size, pad_token_id)
        fit_positions(hf_config, seq_len, may_grow=checkpoint is None and "max_position_embeddings" not in settings)
        if checkpoint is None or on_meta():
            self.hf_model = new_model(hf_config)
        else:
            self.hf_model = read_model(checkpoint, revision, hf_config)
        if separate_documents:
            check_keeps_documents_apart(self.hf_model.config)
        self._first_position = first_position(self.hf_model)
        self._predicted = Predicted()
        self._predicted.separate_documents = separate_documents
        gather_at(self.hf_model, self._predicted)
        if gradient_checkpointing:
            try:
                self.hf_model.gradient_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                problem = f"{hf_config.model_type} does not support it"
                raise ConfigError("model.gradient_checkpointing", True, problem) from error

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
        self.hf_model.save_pretrained(folder)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """`attention_mask_BL` is 1 at tokens and 0 at padding; None where nothing is padded. With `separate_documents` it
        may number a row's documents."""
        self._predicted.positions_BK = positions_BK
        if self.separate_documents and attention_mask_BL is not None:
            attention = within_documents(self.hf_model, attention_mask_BL, self._first_position)
        else:
            attention = {"attention_mask": attention_mask_BL}
        try:
            output = self.hf_model(input_ids=input_ids_BL, **attention, return_dict=True)
        finally:
            self._predicted.positions_BK = None
        return output.logits

    @property
    def separate_documents(self) -> bool:
        return self._predicted.separate_documents

"""What a model must offer, and what it may offer beyond that. None of these needs to be inherited from.

Model(vocab_size=, seq_len=, **its YAML)     its constructor; it may also take, from the data and never from a YAML:
    pad_token_id: int | None                     the id of padding, None where the data has none
    separate_documents: bool = False             rows may pack several documents, numbered in attention_mask_BL: no token
                                                 sees another document. Without this parameter, such rows are refused
MaskedLM          forward                    every model
HasLinearHead     hidden_states, output_layer  a model whose logits are a linear layer's: training never holds all of them
Rebuildable       rebuild_config()           a model whose YAML alone does not build it again
Exportable        save_pretrained(folder)    a model that `transformers` opens once `mlm export` has written it
Loadable          load_pretrained(folder)    such a model that can be opened from there again by `mlm predict`, too
MayBeAnotherTask  check_masked_lm()          a model that some of its settings make unfit for a masked LM
MayClassify       check_classifier()         a model that can label whole rows, which some of its settings make impossible
HasOwnTokens      check_tokens(vocab)        a model that was pretrained on the tokens of its own tokenizer
CanHide           check_hiding()             a model whose `forward` (and `hidden_states`) take hidden_BL: masking.hiding
HasHead           is_head(name)              a model whose encoder may be taken from another run, or frozen: init
HasEmbeddings     get_input_embeddings()     a model whose [MASK] may be left as it was drawn: masking.hiding=token_detached
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mlm_lightning.batch import Vocab


class MaskedLM(Protocol):
    """A `torch.nn.Module` that predicts tokens at every position, or at some."""

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """Logits: BLV, or with `positions_BK` BKV, for which no work is done that does not reach them.

        `attention_mask_BL` is 0 at padding and 1 at tokens (None: nothing is padded), or the number of each token's document.
        """
        ...


@runtime_checkable
class HasLinearHead(Protocol):
    def output_layer(self) -> nn.Linear | None:
        """The last layer; None where something comes after it."""
        ...

    def hidden_states(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        """What the last layer makes the logits of: those that `forward` gives."""
        ...


@runtime_checkable
class Rebuildable(Protocol):
    def rebuild_config(self) -> dict[str, Any]:
        """The `_target_` and all arguments that build this model again, plain enough for JSON: without its data, and without a
        download. Without this method, a run keeps the model's YAML and what came from the data."""
        ...


@runtime_checkable
class Exportable(Protocol):
    # a method, since an attribute that is a submodule is found by `isinstance` in some versions of Python only
    def save_pretrained(self, folder: Path) -> None:
        """Writes the weights and the configuration as a folder that `AutoModelForMaskedLM` opens."""
        ...


@runtime_checkable
class Loadable(Protocol):
    def load_pretrained(self, folder: Path) -> None:
        """Takes the weights that `save_pretrained` has written."""
        ...


@runtime_checkable
class MayBeAnotherTask(Protocol):
    def check_masked_lm(self) -> None:
        """Raises ConfigError where the model is a good one, such as a classifier of rows, but no masked LM: its constructor
        cannot refuse that. Called when a config is checked, on the meta device."""
        ...


@runtime_checkable
class MayClassify(Protocol):
    """Its constructor takes `num_outputs` or `num_classes`, the number of classes, or `class_names`, and `forward` gives BC."""

    def check_classifier(self) -> None:
        """As `check_masked_lm`, where rows are to be labelled."""
        ...


@runtime_checkable
class HasOwnTokens(Protocol):
    def check_tokens(self, vocab: Vocab) -> None:
        """Raises ConfigError where data of this vocabulary can't be what the model was pretrained on. Called when a config is
        checked, on the meta device, if the vocabulary is known by then."""
        ...


@runtime_checkable
class CanHide(Protocol):
    def check_hiding(self) -> None:
        """`forward` and `hidden_states` take `hidden_BL`, True at positions that none attends to (None: all are seen); where
        nothing is left to attend to, attention gives zeros. Raises ConfigError where some settings rule that out."""
        ...


@runtime_checkable
class HasEmbeddings(Protocol):
    def get_input_embeddings(self) -> nn.Module:
        """What makes vectors of token ids."""
        ...


@runtime_checkable
class HasHead(Protocol):
    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to what makes the predictions of the hidden states, and not to the encoder."""
        ...

"""The words that all other modules speak.

A row of tokens becomes a row of a batch like this (M is `[MASK]`, `-` is IGNORE_INDEX):

    tokens      7  3  3  1  0  5
    mask        .  x  .  .  x  .
    input_ids   7  M  3  1  M  5
    labels      -  3  -  -  0  -
    positions   1  4  0               K = 3 places for the predicted positions; the third is unused: its label is `-`

Tensor names carry their shape:

    B  rows of a batch      K  predicted positions of a row      V  vocabulary
    L  positions of a row   N  rows of a split                   D  width of the model
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

IGNORE_INDEX = -100
"""The label of a position that nothing is predicted at; the value that `torch.nn.functional.cross_entropy` skips."""

UNNAMED = "<unnamed {}>"
"""In the place of a token that a tokenizer has none of, by its id."""

PADDING_ROW = -1
"""The id of a row that only fills up a batch, so that every rank has as many rows; it has no labels."""


@dataclass(frozen=True)
class Vocab:
    """The token ids of a source, `0 … size - 1`, and which of them are special.

    `special_ids` (always with `mask_id`) are never predicted and never drawn as a random replacement. `tokens` names the ids
    where they have names. `continues_word` marks, by id, the tokens that continue the word before them ("##ing"); it is None
    where every token is a word of its own.
    """

    size: int
    mask_id: int
    special_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    tokens: tuple[str, ...] | None = None
    continues_word: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.mask_id < self.size:
            raise ValueError(f"mask_id={self.mask_id} is no id of a vocabulary of {self.size} tokens")
        pad_ids = () if self.pad_id is None else (self.pad_id,)
        object.__setattr__(self, "special_ids", tuple(sorted({*self.special_ids, self.mask_id, *pad_ids})))

    @cached_property
    def regular_ids(self) -> Tensor:
        """The ids that are not special, ascending."""
        return torch.arange(self.size)[self.is_regular_V]

    @cached_property
    def is_regular_V(self) -> Tensor:
        return ~self.is_special_V

    # views for code that works on whole batches in numpy: asking a tensor for one takes as long as using it
    @cached_property
    def is_regular_array_V(self) -> np.ndarray:
        return self.is_regular_V.numpy()

    @cached_property
    def regular_ids_array(self) -> np.ndarray:
        return self.regular_ids.numpy()

    @cached_property
    def is_special_V(self) -> Tensor:
        is_special_V = torch.zeros(self.size, dtype=torch.bool)
        is_special_V[list(self.special_ids)] = True
        return is_special_V

    @cached_property
    def continues_word_V(self) -> Tensor | None:
        return None if self.continues_word is None else torch.tensor(self.continues_word, dtype=torch.bool)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Vocab":
        """That of `to_json`, which JSON has made lists of the tuples of."""
        tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | tuples))

    def has_tokens_of(self, other: "Vocab") -> bool:
        """Whether ids mean the same in both."""
        return (self.size, self.mask_id, self.tokens) == (other.size, other.mask_id, other.tokens)

    def difference_from(self, other: "Vocab") -> str:
        """What ids mean in another vocabulary, and in this one: the sizes, and the first tokens that differ, where they have
        names."""
        pairs = enumerate(zip_longest(other.tokens or (), self.tokens or (), fillvalue="no token"))
        found = [f"id {token_id}: {theirs} → {ours}" for token_id, (theirs, ours) in pairs if theirs != ours]
        return "; ".join([f"{other.size:,} tokens → {self.size:,} tokens", *found[:3], *["…"] * (len(found) > 3)])

    @cached_property
    def named_ids(self) -> Tensor:
        """The ids that have a token, ascending: a tokenizer may leave numbers out, and a model may have more embeddings."""
        return torch.tensor([i for i in range(self.size) if self.token(i) != UNNAMED.format(i)])

    def best(self, probs_V: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The largest of a model's probabilities, and the ids of their tokens; an id that has no token is never among them. Of
        any number of positions."""
        best = probs_V[..., self.named_ids].topk(number)
        return best.values, self.named_ids[best.indices]

    def token(self, token_id: int) -> str:
        """A readable name of a token."""
        if self.tokens is not None:
            return self.tokens[token_id]
        return "[MASK]" if token_id == self.mask_id else str(token_id)


class MLMBatch(NamedTuple):
    """A masked batch.

    `positions_BK` lists the predicted positions of each row; its unused places point to positions whose label is IGNORE_INDEX.
    `attention_mask_BL` is None where no row is padded, else 0 at padding and 1 at tokens; in rows that pack several documents
    it numbers them, 1, 2, 3 … in each row: `!= 0` is the padding mask in any case, and a model that keeps documents apart lets
    no token attend to one of another number. `row_ids_B` are the rows' indices in their split (PADDING_ROW for rows that only
    fill up the batch). `hidden_BL` is True at positions that none attends to, themselves included; None where there are none.
    """

    input_ids_BL: Tensor
    labels_BL: Tensor
    attention_mask_BL: Tensor | None
    positions_BK: Tensor
    row_ids_B: Tensor
    hidden_BL: Tensor | None = None

    @property
    def labels_BK(self) -> Tensor:
        return self.labels_BL.gather(1, self.positions_BK)

    def logits(self, model: nn.Module) -> Tensor:
        """The model's, at the predicted positions, BKV."""
        return model(*self.inputs)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """A model's arguments; one that cannot hide positions is not told of any."""
        given = self.input_ids_BL, self.attention_mask_BL, self.positions_BK
        return given if self.hidden_BL is None else (*given, self.hidden_BL)

    def trimmed(self) -> "MLMBatch":
        """The same batch without the places for predicted positions that no row uses; at least one place stays."""
        used_K = (self.labels_BK != IGNORE_INDEX).any(0)
        num_places = max(1, int(used_K.sum()))  # the used ones come first
        return self._replace(positions_BK=self.positions_BK[:, :num_places])


class LabelledBatch(NamedTuple):
    """Whole rows, with a label each: IGNORE_INDEX for rows that only fill up the batch. The rest is as in `MLMBatch`, where a
    row has one prediction (K = 1)."""

    input_ids_BL: Tensor
    labels_B: Tensor
    attention_mask_BL: Tensor | None
    row_ids_B: Tensor

    @property
    def labels_BK(self) -> Tensor:
        return self.labels_B.unsqueeze(1)

    def logits(self, model: nn.Module) -> Tensor:
        """The model's, B1C for C classes."""
        return model(*self.inputs).unsqueeze(1)

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.input_ids_BL, self.attention_mask_BL

    def trimmed(self) -> "LabelledBatch":
        return self

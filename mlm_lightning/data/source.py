"""What a dataset must offer: a `Source` that knows its vocabulary, and `Rows` that hand out whole batches.

    Source(**its YAML) ─ prepare() ─ rows("train") ─►  rows[index_B]  ─►  tokens_BL
                       └ vocab, seq_len            └ len(rows), unless they have no end
                       └ oracle()  ─►  posterior(tokens_BL, observed_BL)  ─►  probs_BLV
                       └ ngrams()  ─►  losses(batch)  ─►  what counting the words of a text gives

A new dataset is one subclass and one YAML whose `_target_` names it; nothing else is touched.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mlm_lightning.batch import MLMBatch, Vocab
from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.errors import ConfigError
from mlm_lightning.processes import Workers

__all__ = ["SPLITS", "Split"]  # imported for those who import the rest from here


class Rows(Protocol):
    """The rows of a split. Row i is the same whenever and wherever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The rows `index_B` (int64): `tokens_BL` (int64), or `(tokens_BL, attention_mask_BL)` where rows are padded or packed.

        The mask (int64) is 0 at padding and 1 at tokens; where rows pack several documents, it is the number of the token's
        document within its row, 1, 2, 3 …
        """
        ...


@runtime_checkable
class EndlessRows(Protocol):
    """Rows that are numbered for ever, of a source that is `endless`. Training takes them block by block, each block of
    `shuffle_buffer` consecutive rows in an order of its own."""

    shuffle_buffer: int

    def __getitem__(self, index_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """As of `Rows`."""
        ...

    def read_ahead(self, stop: int) -> None:
        """Told with each batch that the rows before `stop` come next, to read them a few at a time."""
        ...


def check_read(read: Any, num_rows: int, source: "Source") -> None:
    """Raises ValueError where this is not what `Rows` give for so many indices."""
    if not num_rows:
        raise ValueError("there are none")
    tokens_BL = read[0] if isinstance(read, tuple) else read
    given = f"{tokens_BL.dtype} {tuple(tokens_BL.shape)}" if isinstance(tokens_BL, Tensor) else type(tokens_BL).__name__
    if given != (right := f"torch.int64 {(num_rows, source.seq_len)}"):
        raise ValueError(f"the tokens of {num_rows} are {given}, not {right}")
    outside = (tokens_BL < 0) | (tokens_BL >= source.vocab.size)
    if outside.any():
        raise ValueError(f"token {int(tokens_BL[outside][0])} is outside of the vocabulary, 0 to {source.vocab.size - 1}")


class Oracle(Protocol):
    """The exact posterior of a synthetic source: no model can have a lower expected loss. A function of its arguments: what it
    answers about frozen masks is kept."""

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """The probability of each token at each position given the tokens where `observed_BL` is True: `probs_BLV`.

        Raises ValueError where the observed tokens are impossible under the source's distribution.
        """
        ...


@runtime_checkable
class LatentOracle(Oracle, Protocol):
    """An oracle that also knows what lies behind the tokens."""

    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        """The posterior of latent variables, `probs_BNS` by name: N nodes of that name, S states; empty without any."""
        ...


@runtime_checkable
class ExactOracle(LatentOracle, Protocol):
    """An oracle that answers every question about the hidden tokens."""

    def log_likelihood(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`log_prob_B` (nats): of the tokens that are observed, the others summed out; -inf where they are impossible."""
        ...

    def sample(self, tokens_BL: Tensor, observed_BL: Tensor, keys_B: Tensor) -> Tensor:
        """`tokens_BL`: the observed tokens, and the others drawn jointly from their posterior, each row a function of its
        key."""
        ...


@runtime_checkable
class LatentRows(Rows, Protocol):
    """Rows of which one knows how they came about."""

    def latents(self, index_B: Tensor) -> dict[str, Tensor]:
        """The true values of the variables of `LatentOracle`, `values_BN` (int64) by name."""
        ...


MAX_JOINT = 4096
Joint = tuple[Tensor, dict[str, Tensor], Tensor]
"""`sequences_SL`, their latent variables `values_SN` by name, and `log_prob_S`; a sequence comes as often as its latents
differ."""


class NGrams(Protocol):
    """What counting the tokens of the training rows gives, for a model to be seen beside."""

    def losses(self, batch: MLMBatch) -> dict[str, Tensor]:
        """On the CPU, of each predicted position, 0 where there is none: `unigram_loss`, `bigram_loss` (where the left
        neighbour is visible, else the unigram's) in nats, and `unigram_correct`, 1 where the most frequent token is right."""
        ...


class Source(ABC):
    """A dataset. The constructor takes exactly the keys of its YAML (without `batch_size`, `num_workers` and `length_schedule`,
    which belong to the loader) and raises ValueError for values that cannot be; it reads and downloads nothing.

    A subclass has `rows`, `seq_len` and `vocab`; the last two are attributes that its constructor sets (`vocab` perhaps only
    `prepare`), attributes of the class, or properties."""

    # a cached property yields to all three, where a plain one could not be set, and an abstract one would ask for another one
    @cached_property
    def vocab(self) -> Vocab:
        raise self._lacks("vocab", "such as self.vocab = Vocab(size=5, mask_id=4)")

    @cached_property
    def seq_len(self) -> int:
        """L, the number of positions of every row."""
        raise self._lacks("seq_len", "the number of tokens of a row, such as self.seq_len = 16")

    def _lacks(self, attribute: str, example: str) -> ConfigError:
        name, remedy = f"{type(self).__module__}.{type(self).__qualname__}", f"set it in __init__: {example}"
        return ConfigError("data._target_", name, f"has no {attribute}", remedy)

    def check(self, prepared: bool = False) -> None:
        """Raises ConfigError where the subclass lacks `seq_len` or `vocab`, as far as that is known before it is `prepared`."""
        if not isinstance(self.seq_len, int):
            raise self._lacks("whole number as its seq_len", "the number of tokens of a row, such as self.seq_len = 16")
        if (prepared or type(self).prepare is Source.prepare) and not isinstance(self.vocab, Vocab):
            raise self._lacks("Vocab as its vocab", "such as self.vocab = Vocab(size=5, mask_id=4)")

    @property
    def packs_documents(self) -> bool:
        """Whether a row may hold several documents, numbered in its attention mask: the model must keep them apart then."""
        return False

    @property
    def endless(self) -> bool:
        """Whether the rows for training have no end: they are then `EndlessRows`, and a run has no epochs."""
        return False

    @abstractmethod
    def rows(self, split: Split) -> Rows | EndlessRows:
        """The rows of a split, `EndlessRows` for train alone, and where `endless`; a ValueError if the split has none."""

    def num_rows(self) -> int | None:
        """The number of rows for training; None where they have no end."""
        if self.endless:
            return None
        rows = self.rows("train")
        assert not isinstance(rows, EndlessRows)
        return len(rows)

    def prepare(self, workers: Workers | None = None) -> None:  # noqa: B027  (most sources need no preparation)
        """Downloads and builds caches, by `workers` where there is much to do: called once, on one process, before `vocab` and
        `rows`."""

    def oracle(self) -> Oracle | None:
        """The exact posterior, where it is known."""
        return None

    def entropy_rate(self) -> float | None:
        """Nats a token of endless rows, where it has a closed form."""
        return None

    def joint(self) -> Joint | None:
        """Every row that there is, of a small language, by a plain loop over what it is by definition, that shares nothing with
        the oracle; None where nobody wrote one. ValueError where there are more than `MAX_JOINT` sequences."""
        return None

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        """The names of the values of a label of the rows, for `task=classify`; ConfigError where there is no such label."""
        problem = f"{type(self).__name__} has no labels"
        raise ConfigError("task", "classify", problem, "choose data=tree and task.label=root, or text and task.label_column")

    def labels(self, split: Split, label: str, node: int) -> Callable[[Tensor], Tensor]:
        """Gives the labels of rows of a split, `labels_B` (int64, indices into `classes`) for `index_B`."""
        raise NotImplementedError

    def ngrams(self, fingerprint: str | None = None) -> NGrams | None:
        """The counts of the rows for training, or of those that had another `fingerprint`; None where there are none, or
        nothing is prepared."""
        return None

    def fingerprint(self) -> str | None:
        """Identifies the content of the data beyond the config, for a run's manifest; None where the config says it all."""
        return None

    def expected_fingerprint(self) -> str | None:
        """What `fingerprint` begins with, as far as it is known without preparing anything. Raises as `prepare` does where
        files are gone."""
        return None

    def mended_since(self, fingerprints: Collection[str]) -> bool:
        """Whether one of these is what an earlier version called this very data, of which it made other rows."""
        return False

    def summary(self) -> list[dict[str, Any]] | None:
        """What was prepared, a dict a split, for `mlm prepare` to show; None where there is nothing to prepare."""
        return None

    def chosen(self) -> dict[str, Any]:
        """What it has chosen by itself where the config says `auto`, by the config's keys; known once it is prepared."""
        return {}

    @property
    def cache_folder(self) -> Path | None:
        """Where what was prepared lies; None where nothing is prepared."""
        return None

    def note_run(self, folder: Path) -> None:  # noqa: B027
        """Notes where what was prepared lies that the run in a folder needs it."""

    def tokenizer_keys(self) -> dict[str, Any]:
        """The keys of a config that give another source of text these very tokens; empty where there is no tokenizer."""
        return {}

    def save_tokenizer(self, folder: Path) -> None:  # noqa: B027
        """Writes the tokenizer, where there is one, for those who open the run later."""

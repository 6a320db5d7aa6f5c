"""What a dataset must offer: a `Source` that knows its vocabulary, and `Rows` that hand out whole batches.

    Source(**its YAML) ─ prepare() ─ rows("train") ─►  rows[index_B]  ─►  tokens_BL
                       └ vocab, seq_len            └ len(rows)
                       └ oracle()  ─►  posterior(tokens_BL, observed_BL)  ─►  probs_BLV

A new dataset is one subclass and one YAML whose `_target_` names it; nothing else is touched.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data.splits import SPLITS, Split

__all__ = ["SPLITS", "Oracle", "Rows", "Source", "Sources", "Split"]


class Rows(Protocol):
    """The rows of a split. Row i is the same whenever and wherever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index_B: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The rows `index_B` (int64): `tokens_BL` (int64), or `(tokens_BL, attention_mask_BL)` where rows are padded or packed.

        The mask (int64) is 0 at padding and 1 at tokens; where rows pack several documents, it is the number of the token's
        document within its row, 1, 2, 3 …
        """
        ...


class Oracle(Protocol):
    """The exact posterior of a synthetic source: no model can have a lower expected loss."""

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """The probability of each token at each position given the tokens where `observed_BL` is True: `probs_BLV`.

        Raises ValueError where the observed tokens are impossible under the source's distribution.
        """
        ...


class Source(ABC):
    """A dataset. The constructor takes exactly the keys of its YAML (without `batch_size` and `num_workers`, which belong to
    the loader) and raises ValueError for values that cannot be; it reads and downloads nothing."""

    @property
    @abstractmethod
    def vocab(self) -> Vocab: ...

    @property
    @abstractmethod
    def seq_len(self) -> int:
        """L, the number of positions of every row."""

    @property
    def packs_documents(self) -> bool:
        """Whether a row may hold several documents, numbered in its attention mask: the model must keep them apart then."""
        return False

    @abstractmethod
    def rows(self, split: Split) -> Rows:
        """The rows of a split; a ValueError if the split has none."""

    def prepare(self) -> None:  # noqa: B027  (a source that needs no preparation overrides nothing)
        """Downloads and builds caches: called once, on one process, before `vocab` and `rows`."""

    def oracle(self) -> Oracle | None:
        """The exact posterior, where it is known."""
        return None

    def fingerprint(self) -> str | None:
        """Identifies the content of the data beyond the config, for a run's manifest; None where the config says it all."""
        return None


@dataclass(frozen=True)
class Sources:
    """A run's own source, and the further ones that it is evaluated on, by the endings of their metrics' names."""

    own: Source
    further: dict[tuple[str, ...], Source] = field(default_factory=dict)

    def oracles(self) -> dict[tuple[str, ...], Oracle | None]:
        """Those of the further sources."""
        return {endings: source.oracle() for endings, source in self.further.items()}

    @property
    def packs_documents(self) -> bool:
        """Whether any of them does."""
        return any(source.packs_documents for source in (self.own, *self.further.values()))

    def fingerprint(self) -> str | None:
        """Of all of them; that of the run's own alone where no other has one."""
        found = [source.fingerprint() for source in (self.own, *self.further.values())]
        return "+".join(filter(None, found)) or None

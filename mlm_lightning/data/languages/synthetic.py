"""What all synthetic languages share: rows that are made when they are asked for, each a pure function of (seed, split, i).

    key(seed, ROWS, split) ─ i ─►  the row's key  ─►  draw(keys_B)  ─►  tokens_BL

A language is one subclass: `draw` says how rows come from their keys, and `oracle` gives the exact posterior.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, TypeVar, dataclass_transform

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.ngrams import NGramCounts
from mlm_lightning.data.source import SPLITS, Source, Split
from mlm_lightning.errors import ConfigError, refuse
from mlm_lightning.randomness import Stream, key, row_keys
from mlm_lightning.values import check_fields, checked

_Language = TypeVar("_Language")
MAX_SYMBOLS = 256
MAX_SEQ_LEN = 2**16
_COUNTED = 2**17  # tokens: the unigram's loss is right to 1e-5 nats with 8 symbols, to 8e-4 with 256
_DRAWN = 2**23  # numbers of rows that are drawn at once

NumSymbols = Annotated[int, Interval(ge=2, le=MAX_SYMBOLS), "it is the number of different tokens"]
SeqLen = Annotated[int, Interval(ge=1, le=MAX_SEQ_LEN), "it is the number of tokens in a row"]
NumRows = Annotated[int, Ge(1), "synthetic data has no natural end to take all or a share of: give a number of rows"]


class SyntheticSource(Source):
    """Rows without a natural end, over the symbols `0 … num_symbols - 1` with `[MASK]` = `num_symbols`.

    A subclass says how rows come from their keys: `draw(keys_B) -> tokens_BL`, row by row a pure function of its key.
    """

    @checked("data")
    def __init__(self, num_symbols: NumSymbols, seed: int, train_size: NumRows, val_size: NumRows, test_size: NumRows) -> None:
        self.num_symbols, self.seed = num_symbols, seed
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self._refuse_sizes()

    def _refuse_sizes(self) -> None:
        for name in ("train_size", "val_size", "test_size"):
            if getattr(self, name) > sys.maxsize:  # the longest that len() can say
                raise ConfigError(f"data.{name}", getattr(self, name), f"must be at most {sys.maxsize}")

    @property
    def row_elements(self) -> int:
        """How many numbers are kept for one row while it is drawn."""
        return self.seq_len * self.num_symbols

    @property
    def vocab(self) -> Vocab:
        return Vocab(size=self.num_symbols + 1, mask_id=self.num_symbols)

    def rows(self, split: Split) -> "SyntheticRows":
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: there is no such split; use one of {', '.join(SPLITS)}")
        split_key = key(self.seed, Stream.ROWS, SPLITS.index(split))
        return SyntheticRows(self, split_key, getattr(self, f"{split}_size"))

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        sizes = self.latent_sizes()
        if label not in sizes:
            there = f"it has {', '.join(sizes)}" if sizes else "it has none"
            raise ConfigError("task.label", label, f"is no latent variable of {type(self).__name__}", there)
        num_nodes, num_states = sizes[label]
        if node >= num_nodes:
            remedy = f"give a number from 0 to {num_nodes - 1}"
            raise ConfigError("task.node", node, f"{label} has {num_nodes} node(s)", remedy)
        return tuple(map(str, range(num_states)))

    def labels(self, split: Split, label: str, node: int) -> Callable[[Tensor], Tensor]:
        return partial(_values, self.rows(split), label, node)

    def ngrams(self, fingerprint: str | None = None) -> NGramCounts:
        return self._counts

    @cached_property
    @exactly()
    def _counts(self) -> NGramCounts:
        """The counts of the first rows for training; the config says all of them."""
        num_rows = min(self.train_size, max(1, _COUNTED // self.seq_len))
        tokens_BL = self.rows("train")[torch.arange(num_rows)]
        # [MASK] is no context: no token is the neighbour of another row's
        return NGramCounts.count(F.pad(tokens_BL, (0, 1), value=self.vocab.mask_id).flatten().numpy(), self.vocab)

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        """The numbers of nodes and of states of each latent variable, by its name."""
        return {}

    @abstractmethod
    def draw(self, keys_B: Tensor) -> Tensor:
        """The rows, `tokens_BL` (int64), whose random numbers are those of `keys_B`."""

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """The latent variables of those rows, `values_BN` (int64) by name; none, where a language has none."""
        return {}


Errors = Iterable[ConfigError]
Sizes = dict[str, tuple[int, int]]
"""The numbers of nodes and of states of each latent variable."""


@dataclass_transform(frozen_default=True, eq_default=False)
def language(cls: type[_Language]) -> type[_Language]:
    """Makes a language a frozen dataclass; each instance is equal to itself alone."""
    return dataclass(frozen=True, eq=False)(cls)


@dataclass(frozen=True, eq=False, kw_only=True)
class Language(SyntheticSource):
    """A language of this package: a frozen dataclass whose fields are the keys of its YAML, their ranges beside them."""

    seed: int = 0
    train_size: NumRows = 1_048_576
    val_size: NumRows = 4096
    test_size: NumRows = 4096

    def __post_init__(self) -> None:
        check_fields(self, "data")
        self._refuse_sizes()
        refuse(self.errors())

    def errors(self) -> Errors:
        """The rules between keys that are broken, each value being within its own range."""
        return ()

    def error(self, key: str, problem: str, remedy: str) -> ConfigError:
        return ConfigError(f"data.{key}", getattr(self, key), problem, remedy)


class SyntheticRows:
    """The rows of a split, made when they are asked for."""

    def __init__(self, source: SyntheticSource, split_key: int, size: int) -> None:
        self._source, self._split_key, self._size = source, split_key, size

    def __len__(self) -> int:
        return self._size

    @exactly()
    def __getitem__(self, index_B: Tensor) -> Tensor:
        parts = [self._source.draw(keys_B) for keys_B in self._keys(index_B)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @exactly()
    def latents(self, index_B: Tensor) -> dict[str, Tensor]:
        """The true values of the latent variables of the rows, `values_BN` (int64) by name."""
        parts = [self._source.draw_latents(keys_B) for keys_B in self._keys(index_B)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _keys(self, index_B: Tensor) -> tuple[Tensor, ...]:
        """The keys of the rows, in blocks that fit the memory."""
        outside_B = (index_B < 0) | (index_B >= self._size)
        if outside_B.any():
            raise IndexError(f"row {int(index_B[outside_B][0])} of a split whose rows are 0 … {self._size - 1}")
        return row_keys(self._split_key, index_B).split(max(1, _DRAWN // self._source.row_elements))


def _values(rows: SyntheticRows, label: str, node: int, index_B: Tensor) -> Tensor:
    return rows.latents(index_B)[label][:, node]

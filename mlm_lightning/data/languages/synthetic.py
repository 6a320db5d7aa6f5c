"""What all synthetic languages share: rows that are made when they are asked for, each a pure function of (seed, split, i).

    key(seed, ROWS, split) ─ i ─►  the row's key  ─►  draw(keys_B)  ─►  tokens_BL

A language is one subclass: `draw` says how rows come from their keys, and `oracle` gives the exact posterior.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.ngrams import NGramCounts
from mlm_lightning.data.source import SPLITS, Source, Split
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import Stream, key, row_keys
from mlm_lightning.values import checked

MAX_SYMBOLS = 256
MAX_SEQ_LEN = 2**16
_COUNTED = 2**17  # tokens: they tell the unigram's loss within 1e-5 nats

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
        self._counted: NGramCounts | None = None
        self._sizes = {"train": train_size, "val": val_size, "test": test_size}
        for split, size in self._sizes.items():
            if size > sys.maxsize:  # the longest that len() can say
                raise ConfigError(f"data.{split}_size", size, f"must be at most {sys.maxsize}")

    @property
    def vocab(self) -> Vocab:
        return Vocab(size=self.num_symbols + 1, mask_id=self.num_symbols)

    def rows(self, split: Split) -> "SyntheticRows":
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: there is no such split; use one of {', '.join(SPLITS)}")
        return SyntheticRows(self.draw, self.draw_latents, key(self.seed, Stream.ROWS, SPLITS.index(split)), self._sizes[split])

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

    @exactly()
    def ngrams(self, fingerprint: str | None = None) -> NGramCounts:
        """The counts of the first rows for training; the config says all of them."""
        if self._counted is None:
            num_rows = min(self._sizes["train"], max(1, _COUNTED // self.seq_len))
            tokens_BL = self.rows("train")[torch.arange(num_rows)]
            # [MASK] is no context: no token is the neighbour of another row's
            self._counted = NGramCounts.count(F.pad(tokens_BL, (0, 1), value=self.vocab.mask_id).flatten().numpy(), self.vocab)
        return self._counted

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        """The numbers of nodes and of states of each latent variable."""
        return {}

    @abstractmethod
    def draw(self, keys_B: Tensor) -> Tensor:
        """The rows, `tokens_BL` (int64), whose random numbers are those of `keys_B`."""

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """The latent variables of those rows, `values_BN` (int64) by name; none, where a language has none."""
        return {}


class SyntheticRows:
    """The rows of a split, made when they are asked for."""

    def __init__(
        self,
        draw: Callable[[Tensor], Tensor],
        draw_latents: Callable[[Tensor], dict[str, Tensor]],
        split_key: int,
        size: int,
    ) -> None:
        self._draw, self._draw_latents, self._split_key, self._size = draw, draw_latents, split_key, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return self._draw(self._keys(index_B))

    def latents(self, index_B: Tensor) -> dict[str, Tensor]:
        """The true values of the latent variables of the rows, `values_BN` (int64) by name."""
        return self._draw_latents(self._keys(index_B))

    def _keys(self, index_B: Tensor) -> Tensor:
        outside_B = (index_B < 0) | (index_B >= self._size)
        if outside_B.any():
            raise IndexError(f"row {int(index_B[outside_B][0])} of a split whose rows are 0 … {self._size - 1}")
        return row_keys(self._split_key, index_B)


def _values(rows: SyntheticRows, label: str, node: int, index_B: Tensor) -> Tensor:
    return rows.latents(index_B)[label][:, node]


def observed_tokens(tokens_BL: Tensor, observed_BL: Tensor, num_symbols: int) -> Tensor:
    """The tokens with `num_symbols` (that is, `[MASK]`) wherever they are not observed; a ValueError if what is observed is
    no symbol, since no row holds it."""
    if tokens_BL.shape != observed_BL.shape:
        raise ValueError(f"tokens_BL and observed_BL differ in shape: {tuple(tokens_BL.shape)} and {tuple(observed_BL.shape)}")
    if tokens_BL.numel():
        least, most = torch.stack(tokens_BL.aminmax()).tolist()
        if least < 0 or most >= num_symbols:  # perhaps only where nothing is observed
            _refuse_no_symbol(tokens_BL, observed_BL, num_symbols)
    # as `where`, in a third of its time: all bits of (token - q), or none
    return (tokens_BL - num_symbols).bitwise_and_(observed_BL.long().neg_()).add_(num_symbols)


def _refuse_no_symbol(tokens_BL: Tensor, observed_BL: Tensor, num_symbols: int) -> None:
    wrong_BL = observed_BL & ((tokens_BL < 0) | (tokens_BL >= num_symbols))
    if wrong_BL.any():
        row, position = wrong_BL.nonzero()[0].tolist()
        token = int(tokens_BL[row, position])
        raise ValueError(
            f"row {row} of the batch: the token {token} observed at position {position} is no symbol (0 … {num_symbols - 1}); "
            "observe only positions that hold a symbol"
        )

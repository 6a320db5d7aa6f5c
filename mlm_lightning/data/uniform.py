"""Independent uniform tokens: nothing can be learned, so the best possible loss is log q: a model below it leaks labels.

    tokens      5  0  7  7  2  1  4 …     each of 0 … q-1 alike, whatever the others are
    posterior   1/q on every symbol where a token is not observed

It is the simplest synthetic source, so what all synthetic sources share lives here too: rows that are made when they are asked
for, each a pure function of (seed, split, i), and the checks of their sizes.
"""

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data.source import SPLITS, Source, Split
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import Stream, key, row_keys, uniform
from mlm_lightning.values import checked

MAX_SYMBOLS = 256
MAX_SEQ_LEN = 2**16

NumSymbols = Annotated[int, Interval(ge=2, le=MAX_SYMBOLS), "it is the number of different tokens"]
NumRows = Annotated[int, Ge(1), "synthetic data has no natural end to take all or a share of: give a number of rows"]


class SyntheticSource(Source):
    """Rows without a natural end, over the symbols `0 … num_symbols - 1` with `[MASK]` = `num_symbols`.

    A subclass says how rows come from their keys: `draw(keys_B) -> tokens_BL`, row by row a pure function of its key.
    """

    @checked("data")
    def __init__(self, num_symbols: NumSymbols, seed: int, train_size: NumRows, val_size: NumRows, test_size: NumRows) -> None:
        self.num_symbols, self.seed = num_symbols, seed
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
        return SyntheticRows(self.draw, key(self.seed, Stream.ROWS, SPLITS.index(split)), self._sizes[split])

    @abstractmethod
    def draw(self, keys_B: Tensor) -> Tensor:
        """The rows, `tokens_BL` (int64), whose random numbers are those of `keys_B`."""


class SyntheticRows:
    """The rows of a split, made when they are asked for."""

    def __init__(self, draw: Callable[[Tensor], Tensor], split_key: int, size: int) -> None:
        self._draw, self._split_key, self._size = draw, split_key, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index_B: Tensor) -> Tensor:
        outside_B = (index_B < 0) | (index_B >= self._size)
        if outside_B.any():
            raise IndexError(f"row {int(index_B[outside_B][0])} of a split whose rows are 0 … {self._size - 1}")
        return self._draw(row_keys(self._split_key, index_B))


class UniformSource(SyntheticSource):
    """Rows of `seq_len` independent tokens, each of the `num_symbols` symbols equally likely."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        seq_len: Annotated[int, Interval(ge=1, le=MAX_SEQ_LEN), "it is the number of tokens in a row"] = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        self._seq_len = seq_len

    @property
    def seq_len(self) -> int:
        return self._seq_len

    def draw(self, keys_B: Tensor) -> Tensor:
        return uniform(keys_B[:, None], torch.arange(self._seq_len)).mul_(self.num_symbols).long()

    def oracle(self) -> "UniformOracle":
        return UniformOracle(self.num_symbols)


class UniformOracle:
    """The posterior of independent uniform tokens: what is observed says nothing about the rest."""

    def __init__(self, num_symbols: int) -> None:
        self.num_symbols = num_symbols

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV` (float64): 1/q on each symbol where a token is not observed, else all of it on the token."""
        probs_V = torch.full((self.num_symbols + 1,), 1 / self.num_symbols, dtype=torch.float64, device=tokens_BL.device)
        probs_V[-1] = 0.0  # nothing is ever drawn as [MASK]
        tokens_BL = observed_tokens(tokens_BL, observed_BL, self.num_symbols)
        one_hot_BLV = torch.nn.functional.one_hot(tokens_BL, self.num_symbols + 1)
        return torch.where(observed_BL[..., None], one_hot_BLV.to(probs_V), probs_V)


def observed_tokens(tokens_BL: Tensor, observed_BL: Tensor, num_symbols: int) -> Tensor:
    """The tokens with `num_symbols` (that is, `[MASK]`) wherever they are not observed; a ValueError if what is observed is
    no symbol, since no row holds it."""
    if tokens_BL.shape != observed_BL.shape:
        raise ValueError(f"tokens_BL and observed_BL differ in shape: {tuple(tokens_BL.shape)} and {tuple(observed_BL.shape)}")
    wrong_BL = observed_BL & ((tokens_BL < 0) | (tokens_BL >= num_symbols))
    if wrong_BL.any():
        row, position = wrong_BL.nonzero()[0].tolist()
        token = int(tokens_BL[row, position])
        raise ValueError(
            f"row {row} of the batch: the token {token} observed at position {position} is no symbol (0 … {num_symbols - 1}); "
            "observe only positions that hold a symbol"
        )
    return tokens_BL.masked_fill(~observed_BL, num_symbols)

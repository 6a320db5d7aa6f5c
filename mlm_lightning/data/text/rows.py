"""Token files become rows: documents are cut, padded or packed by arithmetic on their ends, and nothing is written.

    tokens   a0 a1 a2 a3 a4 b0 b1 c0 c1 c2        one file: the documents a, b, c one after the other, special tokens included
    ends                 5     7        10        another one: where each of them ends (exclusive)

                    rows of 4 positions ("." is padding)                             attention mask
    ChunkRows       a0 a1 a2 a3 | a4 b0 b1 c0                                        none: no row is padded
      stride=2      a0 a1 a2 a3 | a2 a3 a4 b0 | a4 b0 b1 c0 | b1 c0 c1 c2
    DocumentRows    a0 a1 a2 $  | b0 b1 .  .  | c0 c1 c2 .                           1111 1100 1110
      stride=2      a0 a1 a2 a3 | a2 a3 a4 .  | b0 b1 .  .  | c0 c1 c2 .             1111 1110 1100 1110
    PackedRows      (of 6)  a0 a1 a2 a3 a4 . | b0 b1 c0 c1 c2 .                      111110 112220

A document that is too long for a row is truncated, and ends there as it would have ended: in `suffix` ($), its closing special
tokens. Both files stay on disk, memory-mapped; a batch is gathered at once, and rows travel to a loader's worker as file names.

Shapes: B rows of a batch, L positions of a row, N documents, M of them too long for a row, R rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.text.prepare.shards import ENDS_DTYPE

_BLOCK = 2**18
"""Documents whose lengths are in memory at a time."""


class FromFiles:
    """A dataclass that travels to a loader's worker as its settings: names of files, not what is in them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


@dataclass(eq=False)
class ChunkRows(FromFiles):
    """Row i is `tokens[i * stride : i * stride + chunk_size]`, whatever documents it crosses: `rows[index_B] -> tokens_BL`.

    With `stride` = `chunk_size` each token is in one row, below it in several, above it in one or none. Tokens at the end that
    fill no row are dropped.
    """

    tokens_file: Path
    dtype: np.dtype
    chunk_size: int
    stride: int
    num_tokens: int
    num_truncated = 0  # documents: what does not fit in a row goes on in the next

    def __post_init__(self) -> None:
        tokens = _mapped(self.tokens_file, self.dtype, self.num_tokens)
        shape = max(0, (self.num_tokens - self.chunk_size) // self.stride + 1), self.chunk_size
        steps = self.stride * self.dtype.itemsize, self.dtype.itemsize
        self._tokens_RL = np.lib.stride_tricks.as_strided(tokens, shape, steps, writeable=False)

    def __len__(self) -> int:
        return len(self._tokens_RL)

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return torch.from_numpy(self._tokens_RL[index_B.numpy()].astype(np.int64))

    @property
    def num_cut_tokens(self) -> int:
        """The number of tokens that are in no row."""
        further = (len(self) - 1) * min(self.stride, self.chunk_size)
        return self.num_tokens - (self.chunk_size + further if len(self) else 0)


@dataclass(eq=False)
class _PaddedRows(FromFiles):
    """Rows that begin where a document does, or a window of one: `rows[index_B] -> (tokens_BL, attention_mask_BL)`.

    `suffix`, shorter than a row, are the ids that documents end in and that a truncated one keeps. No document is empty.
    """

    tokens_file: Path
    ends_file: Path
    dtype: np.dtype
    chunk_size: int
    pad_id: int
    suffix: Sequence[int] = ()

    def __post_init__(self) -> None:
        assert len(self.suffix) < self.chunk_size
        self._tokens, self._ends_N = _mapped(self.tokens_file, self.dtype), _mapped(self.ends_file, ENDS_DTYPE)

    @property
    def num_truncated(self) -> int:
        """The number of documents that lose tokens."""
        return self._truncated[0]

    @property
    def num_cut_tokens(self) -> int:
        """The number of tokens that the truncated documents lose."""
        return self._truncated[1]

    @cached_property
    def _truncated(self) -> tuple[int, int]:
        documents = tokens = 0
        for _, length_N in self._lengths():
            excess_M = length_N[length_N > self.chunk_size] - self.chunk_size
            documents, tokens = documents + len(excess_M), tokens + int(excess_M.sum())
        return documents, tokens

    def _lengths(self) -> Iterator[tuple[int, np.ndarray]]:
        """The documents' lengths, a block of them at a time, with the number of its first."""
        for first in range(0, len(self._ends_N), _BLOCK):
            yield first, np.diff(self._ends_N[first : first + _BLOCK], prepend=self._starts(first))

    def _starts(self, document: Any) -> Any:
        """Where documents start; `document` is a number or an array of them."""
        return np.where(document > 0, self._ends_N[np.maximum(document - 1, 0)], 0)

    def _gather(self, start_B: np.ndarray, length_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `length_B` tokens from `start_B` on, truncated or padded, and which of their positions hold tokens."""
        position_L = np.arange(self.chunk_size)
        is_token_BL = position_L < length_B[:, None]
        tokens_BL = self._tokens.take(start_B[:, None] + position_L, mode="clip").astype(np.int64)
        tokens_BL[~is_token_BL] = self.pad_id
        if self.suffix:
            tokens_BL[length_B > self.chunk_size, -len(self.suffix) :] = self.suffix
        return tokens_BL, is_token_BL


@dataclass(eq=False)
class DocumentRows(_PaddedRows):
    """A document a row, 1 in its mask. One that is too long is truncated or, with a `stride` of at most a row, gives a row for
    each of its windows, which start `stride` tokens apart until one reaches its end; nothing is cut then."""

    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None:
            assert 1 <= self.stride <= self.chunk_size
            self._truncated = 0, 0
            self._long_M, self._first_row_M = self._long_documents(self.stride)

    def __len__(self) -> int:
        return len(self._ends_N) if self.stride is None else int(self._first_row_M[-1])

    def __getitem__(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        if self.stride is None:
            document_B = index_B.numpy()
            start_B = self._starts(document_B)
            length_B = self._ends_N[document_B] - start_B
        else:
            document_B, window_B = self._windows(index_B.numpy())
            start_B = self._starts(document_B) + window_B * self.stride
            # a window that ends inside of its document is not truncated: the next one goes on
            length_B = np.minimum(self._ends_N[document_B] - start_B, self.chunk_size)
        tokens_BL, is_token_BL = self._gather(start_B, length_B)
        return torch.from_numpy(tokens_BL), torch.from_numpy(is_token_BL.astype(np.int64))

    def _windows(self, index_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The document of each row, and the number of the window within it."""
        # the rows from one long document on, up to the next: its first window, its further ones, then a document a row
        long_B = np.searchsorted(self._first_row_M, index_B, side="right") - 1
        past_B = index_B - self._first_row_M[long_B]
        rows_B = self._first_row_M[long_B + 1] - self._first_row_M[long_B]
        further_B = rows_B - (self._long_M[long_B + 1] - self._long_M[long_B])
        window_B = np.where(past_B <= further_B, past_B, 0)
        return self._long_M[long_B] + np.maximum(past_B - further_B, 0), window_B

    def _long_documents(self, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of several windows and the first row of each, with the very first document in front and, behind, one
        past the last."""
        long, further = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        for first, length_N in self._lengths():
            long_M = np.flatnonzero(length_N > self.chunk_size)
            long.append(long_M + first)
            further.append(-(-(length_N[long_M] - self.chunk_size) // stride))
        long_M = np.concatenate([*long, [len(self._ends_N)]])
        return long_M, long_M + np.concatenate([[0], np.cumsum(np.concatenate(further))])


class PackedRows(_PaddedRows):
    """As many whole documents a row as follow each other and fit: one that does not fit in what is left starts the next row
    ("next-fit"), and one that is too long for a row of its own is truncated there.

    The attention mask holds the number of each token's document within its row, 1, 2, 3 …, and 0 at padding.
    """

    def __len__(self) -> int:
        return len(self._first_R) - 1

    def __getitem__(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        # neighbours in a row are neighbours in the file: its tokens are one slice
        first_B, stop_B = (self._first_R[index_B.numpy() + i].astype(np.int64) for i in (0, 1))
        start_B = self._starts(first_B)
        tokens_BL, is_token_BL = self._gather(start_B, self._ends_N[stop_B - 1] - start_B)
        number_BL = self._numbers(first_B, stop_B, start_B)
        number_BL[~is_token_BL] = 0
        return torch.from_numpy(tokens_BL), torch.from_numpy(number_BL)

    def _numbers(self, first_B: np.ndarray, stop_B: np.ndarray, start_B: np.ndarray) -> np.ndarray:
        """The number of the document at each position of the row: 1, and 1 more from each end of a document on."""
        count_B = stop_B - first_B
        row = np.repeat(np.arange(len(count_B)), count_B)
        document = np.arange(len(row)) + np.repeat(first_B - np.cumsum(count_B) + count_B, count_B)
        end = self._ends_N[document] - start_B[row]
        inside = end < self.chunk_size
        number_BL = np.zeros((len(count_B), self.chunk_size), np.int64)
        number_BL[row[inside], end[inside]] = 1
        return np.cumsum(number_BL, axis=1, out=number_BL) + 1

    @cached_property
    def _first_R(self) -> np.ndarray:
        """The first document of each row, and the number of documents at last, (R+1)."""
        num_documents = len(self._ends_N)
        dtype = np.uint32 if num_documents < 2**32 else np.int64
        first, blocks = 0, []
        for block, length_N in self._lengths():
            # if a row began at this document, where would the next begin? Asked of all at once; then only links are followed
            document_N = np.arange(block, block + len(length_N))
            limit_N = self._ends_N[document_N] - length_N + self.chunk_size
            reached_N = block + np.searchsorted(self._ends_N[block:], limit_N, side="right")
            following = np.maximum(reached_N, document_N + 1).tolist()
            of_block = []
            while first < block + len(following):
                of_block.append(first)
                first = following[first - block]
            blocks.append(np.array(of_block, dtype))
        return np.concatenate([*blocks, np.array([num_documents], dtype)])


def _mapped(file: Path, dtype: np.dtype, length: int | None = None) -> np.ndarray:
    """All of a file, or its first `length` numbers; a ValueError where it has fewer."""
    mapped = np.memmap(file, dtype=dtype, mode="r", shape=length)
    return np.asarray(mapped)  # a plain view: np.memmap's own indexing is slow

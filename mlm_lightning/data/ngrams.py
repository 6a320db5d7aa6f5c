"""What counting tokens gives: the unigram and the bigram of the training rows, as models of the masked tokens.

    the quick [MASK] fox        unigram   p(w) = (c(w) + 1) / (N + R)                        R regular tokens, N of them counted
         l      w               bigram    p(w | l) = λ c(l, w) / c(l) + (1 - λ) p(w)         where l is visible, else p(w)

A masked model whose loss is not below the unigram's has learned how often tokens are; one not below the bigram's has made no
use of context worth the name. c(l) counts the regular tokens that follow l, so that p(w | l) sums to one; special tokens such
as [CLS] are contexts, and are never predicted. λ is the likeliest weight of each training token under the counts of all others
(leave-one-out; Jelinek & Mercer 1980). Tokens are neighbours as they are in the text, whatever rows are cut of it.

The file, of arrays one after the other as np.save writes them, to be memory-mapped: λ, c(w), c(l), the pairs that occur as
ascending keys l · V + w, how often each does.

Shapes: V vocabulary, P distinct pairs, T tokens of the text, M predicted tokens of a batch.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch, Vocab
from mlm_lightning.files import UNWRITABLE, write_atomically

log = logging.getLogger(__name__)

BLOCK, SPAN = 2**22, 2**25
"""Tokens that are read at a time, and pairs that are sorted at a time: memory grows with the distinct pairs alone."""
_MANY = 2**26
"""So many tokens take a while to count."""
_TOLERANCE = 1e-5

VERSION = 2
"""Version 1 stopped on its way to λ, and took what stands between the rows of a language for a context."""


@dataclass(frozen=True, eq=False)
class NGramCounts:
    """The counts of a text, and the losses that they give at the predicted positions of a batch."""

    vocab: Vocab
    bigram_weight: float
    """λ."""
    count_V: np.ndarray
    context_V: np.ndarray
    key_P: np.ndarray
    pair_count_P: np.ndarray

    @classmethod
    def count(cls, token_T: np.ndarray, vocab: Vocab, block: int = BLOCK, span: int = SPAN) -> "NGramCounts":
        """Reads `token_T`, which may be memory-mapped, `block` tokens at a time, and sorts about `span` pairs at a time."""
        if len(token_T) > _MANY:
            log.info("counting the pairs of %s tokens", f"{len(token_T):,}")
        is_regular_V = vocab.is_regular_array_V
        count_V, context_V = np.zeros(vocab.size, np.int64), np.zeros(vocab.size, np.int64)
        for start in range(0, len(token_T), block):
            count_V += np.bincount(token_T[start : start + block], minlength=vocab.size)
        for left, _ in _neighbours(token_T, vocab, block):
            context_V += np.bincount(left, minlength=vocab.size)
        count_V[~is_regular_V] = 0
        pairs = [*_sorted_pairs(token_T, vocab, context_V, block, span)]
        key_P, pair_count_P = (np.concatenate(each) for each in zip(*pairs, strict=True))
        counted = cls(vocab, 0.0, count_V, context_V, key_P, pair_count_P)
        return cls(vocab, counted._likeliest_weight(), count_V, context_V, key_P, pair_count_P)

    @classmethod
    def of_file(cls, file: Path, token_T: np.ndarray, vocab: Vocab) -> "NGramCounts":
        """Those of the file; made first, of `token_T`, where it is missing or damaged, and held in memory alone where the file
        can't be written."""
        if (found := cls._open(file, vocab)) is not None:
            return found
        counted = cls.count(token_T, vocab)
        try:
            write_atomically(file, counted._write)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            return counted
        return cls._open(file, vocab) or counted

    def _write(self, file: BinaryIO) -> None:
        # in an order that leaves each array aligned: 8 bytes an item, then perhaps 4
        for array in (np.array([self.bigram_weight]), self.count_V, self.context_V, self.key_P, self.pair_count_P):
            np.save(file, array, allow_pickle=False)

    @classmethod
    def _open(cls, file: Path, vocab: Vocab) -> "NGramCounts | None":
        try:
            with file.open("rb") as opened:
                weight, count_V, context_V, key_P, pair_count_P = (_mapped(opened) for _ in range(5))
        except (OSError, ValueError):
            return None
        if not len(count_V) == len(context_V) == vocab.size or len(key_P) != len(pair_count_P):
            return None
        return cls(vocab, float(weight[0]), count_V, context_V, key_P, pair_count_P)

    # -- probabilities ---------------------------------------------------------------------------------------------------

    def unigram(self, word_M: np.ndarray) -> np.ndarray:
        """p(w), smoothed by one of each regular token."""
        return (self.count_V[word_M] + 1) / self._total

    def bigram(self, left_M: np.ndarray, word_M: np.ndarray) -> np.ndarray:
        """p(w | l); p(w) where no regular token follows l in the text."""
        context_M, unigram_M = self.context_V[left_M], self.unigram(word_M)
        mixed_M = self.bigram_weight * self.pair_counts(left_M, word_M) / np.maximum(context_M, 1)
        return np.where(context_M > 0, mixed_M + (1 - self.bigram_weight) * unigram_M, unigram_M)

    def pair_counts(self, left_M: np.ndarray, word_M: np.ndarray) -> np.ndarray:
        """c(l, w)."""
        if not len(self.key_P):
            return np.zeros(len(left_M), np.int64)
        # of the array's own type: searchsorted would convert a whole memory-mapped one
        key_M = (left_M.astype(np.int64) * self.vocab.size + word_M).astype(self.key_P.dtype)
        place_M = np.minimum(np.searchsorted(self.key_P, key_M), len(self.key_P) - 1)
        return np.where(self.key_P[place_M] == key_M, self.pair_count_P[place_M], 0)

    @property
    def _total(self) -> int:
        return int(self.count_V.sum()) + int(self.vocab.is_regular_array_V.sum())

    def losses(self, batch: MLMBatch) -> dict[str, Tensor]:
        """-log p of each predicted token, and whether the most frequent token is right; 0 in places that predict nothing."""
        input_ids_BL, labels_BL, positions_BK = (
            each.cpu().numpy() for each in (batch.input_ids_BL, batch.labels_BL, batch.positions_BK)
        )
        labels_BK = np.take_along_axis(labels_BL, positions_BK, axis=1)
        row_M, place_M = np.nonzero(labels_BK != IGNORE_INDEX)
        word_M, position_M = labels_BK[row_M, place_M], positions_BK[row_M, place_M]
        before_M = np.maximum(position_M - 1, 0)
        left_M = input_ids_BL[row_M, before_M]
        is_visible_M = (position_M > 0) & (left_M != self.vocab.mask_id) & (labels_BL[row_M, before_M] == IGNORE_INDEX)
        if batch.attention_mask_BL is not None:  # neither padding nor a document that is kept apart
            number_BL = batch.attention_mask_BL.cpu().numpy()
            is_visible_M &= number_BL[row_M, before_M] == number_BL[row_M, position_M]
        unigram_M = self.unigram(word_M)
        bigram_M = np.where(is_visible_M, self.bigram(left_M, word_M), unigram_M)
        found = {
            "unigram_loss": -np.log(unigram_M),
            "bigram_loss": -np.log(bigram_M),
            "unigram_correct": (word_M == self.count_V.argmax()).astype(np.float64),
        }
        losses = {}
        for name, value_M in found.items():
            value_BK = np.zeros(labels_BK.shape)
            value_BK[row_M, place_M] = value_M
            losses[name] = torch.from_numpy(value_BK)
        return losses

    # -- the weight ------------------------------------------------------------------------------------------------------

    def _likeliest_weight(self) -> float:
        """λ, by bisection: the likelihood is concave, and a step of EM goes towards its maximum. EM itself takes thousands of
        steps. It stays below 1, so that a new pair is possible."""
        num_tokens = int(self.context_V[self.context_V > 1].sum())
        low, high = 0.0, 1 - _TOLERANCE
        while high - low > _TOLERANCE:
            weight = (low + high) / 2
            explained = 0.0  # tokens, as far as the other pairs of their context explain them
            for count_M, bigram_M, unigram_M in self._left_out():
                from_pairs_M = weight * bigram_M
                explained += float((count_M * from_pairs_M / (from_pairs_M + (1 - weight) * unigram_M)).sum())
            if explained > weight * num_tokens:
                low = weight
            else:
                high = weight
        return low

    def _left_out(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of the pairs that occur more than once, how often, and what the counts without one of them give: bigram, unigram.
        Pairs that occur once get nothing from the bigram, whatever its weight, and a context that occurs once has none."""
        for start in range(0, len(self.key_P), BLOCK):
            key_M, count_M = self.key_P[start : start + BLOCK], self.pair_count_P[start : start + BLOCK].astype(np.int64)
            key_M, count_M = key_M[count_M > 1], count_M[count_M > 1]
            left_M, word_M = np.divmod(key_M, self.vocab.size)
            yield count_M, (count_M - 1) / (self.context_V[left_M] - 1), self.count_V[word_M] / (self._total - 1)


def _neighbours(token_T: np.ndarray, vocab: Vocab, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs: each regular token, and before it its left neighbour. [MASK] is none: it stands between rows of a language,
    and left of a predicted token it hides the neighbour."""
    for start in range(0, len(token_T) - 1, block):
        tokens = token_T[start : start + block + 1]
        left, word = tokens[:-1], tokens[1:]
        is_pair = vocab.is_regular_array_V[word] & (left != vocab.mask_id)
        yield left[is_pair], word[is_pair]


def _sorted_pairs(
    token_T: np.ndarray, vocab: Vocab, context_V: np.ndarray, block: int, span: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The keys of the pairs that occur, ascending, and how often each does: of some contexts at a time, which have about `span`
    pairs together, in one pass over the text."""
    key_type = np.uint32 if vocab.size**2 <= 2**32 else np.int64
    count_type = np.uint32 if len(token_T) < 2**32 else np.int64
    part_V = np.maximum(np.cumsum(context_V) - 1, 0) // span
    for part in np.unique(part_V[context_V > 0]):
        key_M, count_M, pending = np.empty(0, key_type), np.empty(0, count_type), [np.empty(0, key_type)]
        for left, word in _neighbours(token_T, vocab, block):
            is_wanted = part_V[left] == part
            pending.append(left[is_wanted].astype(key_type) * key_type(vocab.size) + word[is_wanted].astype(key_type))
            if sum(map(len, pending)) >= span:
                key_M, count_M = _merged(key_M, count_M, pending)
                pending = []
        yield _merged(key_M, count_M, pending)
    yield np.empty(0, key_type), np.empty(0, count_type)  # a text of one token has no pair


def _merged(key_M: np.ndarray, count_M: np.ndarray, pending: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of sorted keys' counts and of keys that stand there as often as they occur."""
    if not pending:
        return key_M, count_M
    new_M, occurs_M = np.unique(np.concatenate(pending), return_counts=True)
    if not len(key_M):
        return new_M, occurs_M.astype(count_M.dtype)
    both, inverse = np.unique(np.concatenate([key_M, new_M]), return_inverse=True)
    counts = np.zeros(len(both), count_M.dtype)
    np.add.at(counts, inverse, np.concatenate([count_M, occurs_M.astype(count_M.dtype)]))
    return both, counts


def _mapped(file: BinaryIO) -> np.ndarray:
    """The array at a file's position, memory-mapped; the position moves behind it. ValueError where it is not whole."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
    size = int(np.prod(shape)) * dtype.itemsize
    array = np.asarray(np.memmap(file, dtype, "r", start, shape)) if size else np.empty(shape, dtype)
    file.seek(start + size)
    return array

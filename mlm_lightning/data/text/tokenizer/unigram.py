"""Training of a unigram model: every word is a sum over its segmentations, computed for all words at once.

    word "▁sees", nodes between its characters, an edge for every piece of the vocabulary:

        0 ──▁── 1 ──s── 2 ──e── 3 ──e── 4 ──s── 5          p(word) = Σ over paths Π p(piece)
        └────▁s────┘     └────ees───────────────┘

EM alternates between the expected count of every piece (forward–backward over all words' lattices) and new probabilities.
Between two rounds, the pieces that the likelihood misses least are dropped, until as many are left as were asked for. The
library's own trainer sums in the order of a hash table, so its scores, and which of nearly equal pieces stay, differ from run
to run; here the order is that of the sorted words, and the same words always give the same pieces.

Source: Kudo, "Subword Regularization", ACL 2018, section 3.2; the M step with digamma as in SentencePiece.

    C  characters of all words, one after the other      S  all substrings that may become pieces      E  edges
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

MAX_PIECE_CHARS = 16

_MAX_WORD_CHARS = 32  # longer ones are cut: with _SCALE a character, products of so many probabilities stay within a float
_SCALE = 1e5
_MAX_CHARS = 2_000_000  # of all different words together; beyond them, the rarest are left out
_SEEDS_PER_PIECE = 16
_KEPT_SHARE = 0.75
_EM_STEPS = 2
_DECIMALS = 6  # of a score: no tokenizer needs more, and the last digits may differ from one processor to another


def train_unigram(counts: Mapping[str, int], num_pieces: int) -> list[tuple[str, float]]:
    """At most `num_pieces` pieces with their log-probabilities, the most probable first; all characters are among them.

    The caller sees to it that there are no more characters than that. `counts` says how often each word occurs.
    """
    corpus = _Corpus.of(counts)
    substrings = _Substrings.of(corpus, num_pieces)
    words = _Lattice.of(corpus.starts, corpus.lengths, substrings, whole=True)
    longer = np.flatnonzero(substrings.lengths > 1)
    # the lattices of the longer pieces themselves, without the edge of the whole: what is left when a piece is dropped
    alternatives = _Lattice.of(substrings.places[longer], substrings.lengths[longer], substrings, whole=False)

    is_piece_S = np.ones(len(substrings.lengths), dtype=bool)
    expected_S = substrings.counts
    scale_S = _SCALE**substrings.lengths
    while True:
        for _ in range(_EM_STEPS):
            expected_S = words.expected_counts(scale_S * _probabilities(expected_S, is_piece_S), corpus.weights)
        p_S = _probabilities(expected_S, is_piece_S)
        surplus = int(is_piece_S.sum()) - num_pieces
        if surplus <= 0:
            return _scored(corpus, substrings, p_S, is_piece_S)
        gain_S = np.full(len(is_piece_S), np.inf)  # in log-likelihood, from having the piece; characters stay
        with np.errstate(divide="ignore", invalid="ignore"):
            gain_S[longer] = expected_S[longer] * np.log((scale_S * p_S)[longer] / alternatives.totals(scale_S * p_S))
        gain_S[~is_piece_S] = np.inf
        dropped = min(surplus, max(1, int((1 - _KEPT_SHARE) * is_piece_S.sum())))
        is_piece_S[np.argsort(gain_S, kind="stable")[:dropped]] = False


def _probabilities(expected_S: np.ndarray, is_piece_S: np.ndarray) -> np.ndarray:
    """The M step. digamma instead of log is a Dirichlet prior that favours few pieces: it takes 0.5 off a large count."""
    counts_S = np.maximum(expected_S, 0.5)
    return np.where(is_piece_S, np.exp(_digamma(counts_S) - _digamma(counts_S[is_piece_S].sum())), 0.0)


def _digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of log Γ, to 1e-8 and better for x > 0: shifted by 6, then the asymptotic series."""
    shift = sum(1 / (x + k) for k in range(6))
    y = x + 6
    return np.log(y) - 1 / (2 * y) - 1 / (12 * y**2) + 1 / (120 * y**4) - 1 / (252 * y**6) - shift


def _scored(corpus: "_Corpus", substrings: "_Substrings", p_S: np.ndarray, is_piece_S: np.ndarray) -> list[tuple[str, float]]:
    scored = []
    for number in np.flatnonzero(is_piece_S):
        place = substrings.places[number]
        piece = corpus.text[place : place + substrings.lengths[number]]
        scored.append((piece, round(float(np.log(p_S[number])), _DECIMALS)))
    return sorted(scored, key=lambda item: (-item[1], item[0]))


# -- words and their substrings --------------------------------------------------------------------------------------------


class _Corpus(NamedTuple):
    """All different words, one after the other, and how often each occurs."""

    text: str
    starts: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "_Corpus":
        parts: dict[str, int] = {}
        for word, count in counts.items():
            for start in range(0, len(word), _MAX_WORD_CHARS):
                part = word[start : start + _MAX_WORD_CHARS]
                parts[part] = parts.get(part, 0) + count
        words = sorted(parts, key=lambda word: (-parts[word], word))
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        num_words = max(1, int(np.searchsorted(np.cumsum(lengths), _MAX_CHARS, side="right")))
        words, lengths = words[:num_words], lengths[:num_words]
        return cls("".join(words), np.cumsum(lengths) - lengths, lengths, np.array([float(parts[word]) for word in words]))


class _Substrings(NamedTuple):
    """The characters, and the longer substrings that occur more than once: those of the highest count times length.

    `number_NC[n - 1, c]` is the number of the one of n characters that begins at character c, or -1.
    """

    lengths: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    number_NC: np.ndarray

    @classmethod
    def of(cls, corpus: _Corpus, num_pieces: int) -> "_Substrings":
        codes_C = np.frombuffer(corpus.text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
        weights_C = np.repeat(corpus.weights, corpus.lengths)
        left_C = np.repeat(corpus.starts + corpus.lengths, corpus.lengths) - np.arange(len(codes_C))
        number_NC = np.full((MAX_PIECE_CHARS, len(codes_C)), -1, dtype=np.int32)
        places: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        at, keys = np.arange(len(codes_C)), codes_C  # where a substring of n characters begins, and which it is
        total = 0
        for n in range(1, MAX_PIECE_CHARS + 1):
            _, first, which = np.unique(keys, return_index=True, return_inverse=True)
            count = np.bincount(which, weights=weights_C[at], minlength=len(first))
            often = (count >= 2) | (n == 1)
            new_number = np.where(often, np.cumsum(often) - 1 + total, -1)[which]
            at_often, new_number = at[new_number >= 0], new_number[new_number >= 0]
            number_NC[n - 1, at_often] = new_number
            places.append(at[first[often]])
            counts.append(count[often])
            total += int(often.sum())
            # a substring that occurs often begins with one that does
            longer = left_C[at_often] > n
            at = at_often[longer]
            keys = new_number[longer] << 21 | codes_C[at + n]
            if not len(at):
                break
        lengths = np.concatenate([np.full(len(some), n, dtype=np.int64) for n, some in enumerate(places, 1)])
        return cls(lengths, np.concatenate(places), np.concatenate(counts), number_NC)._best(_SEEDS_PER_PIECE * num_pieces)

    def _best(self, num: int) -> "_Substrings":
        score = np.where(self.lengths == 1, np.inf, self.counts * self.lengths)
        best = np.sort(np.argsort(-score, kind="stable")[: max(num, int((self.lengths == 1).sum()))])
        renumbered = np.full(len(self.lengths) + 1, -1, dtype=np.int32)  # the last is for -1
        renumbered[best] = np.arange(len(best), dtype=np.int32)
        return _Substrings(self.lengths[best], self.places[best], self.counts[best], renumbered[self.number_NC])


# -- lattices --------------------------------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    """Edges of which no two end (or begin) at the same node: those of one length to one offset in their words."""

    begin: np.ndarray
    end: np.ndarray
    pieces: np.ndarray


class _Lattice(NamedTuple):
    """The lattices of some spans of the text; a span of length l has nodes 0 … l, its own ones among `num_nodes`."""

    first: np.ndarray
    last: np.ndarray
    groups: list[_Edges]  # in the order of the offset at which they end
    num_substrings: int

    @classmethod
    def of(cls, starts: np.ndarray, lengths: np.ndarray, substrings: _Substrings, whole: bool) -> "_Lattice":
        """`whole`: with the edge from a span's first node to its last."""
        first = np.cumsum(lengths + 1) - (lengths + 1)
        groups = []
        for offset in range(1, int(lengths.max(initial=0)) + 1):
            for n in range(1, min(offset, MAX_PIECE_CHARS) + 1):
                spans = np.flatnonzero(lengths >= offset if whole or n < offset else lengths > offset)
                pieces = substrings.number_NC[n - 1, starts[spans] + offset - n]
                spans, pieces = spans[pieces >= 0], pieces[pieces >= 0]
                if len(spans):
                    groups.append(_Edges(first[spans] + offset - n, first[spans] + offset, pieces))
        return cls(first, first + lengths, groups, len(substrings.lengths))

    def totals(self, p_S: np.ndarray) -> np.ndarray:
        """The probability of each span, up to the constant of its length."""
        return self._forward(p_S)[self.last]

    def expected_counts(self, p_S: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """How often each piece is used in all spans, each span counted `weights` times."""
        alpha = self._forward(p_S)
        beta = np.zeros(len(alpha))
        beta[self.last] = weights / alpha[self.last]
        expected_S = np.zeros(self.num_substrings)
        for begin, end, pieces in reversed(self.groups):
            onward = p_S[pieces] * beta[end]
            beta[begin] += onward
            expected_S += np.bincount(pieces, weights=alpha[begin] * onward, minlength=self.num_substrings)
        return expected_S

    def _forward(self, p_S: np.ndarray) -> np.ndarray:
        alpha = np.zeros(int(self.last[-1]) + 1 if len(self.last) else 0)
        alpha[self.first] = 1
        for begin, end, pieces in self.groups:
            alpha[end] += alpha[begin] * p_S[pieces]
        return alpha

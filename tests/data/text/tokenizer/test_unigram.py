"""Expected counts are those of all segmentations, one by one; pieces explain the words better than characters do."""

import math
from collections import Counter

import numpy as np
import pytest

from mlm_lightning.data.text.tokenizer import unigram
from mlm_lightning.data.text.tokenizer.unigram import train_unigram

WORDS = {"▁banana": 5, "▁bandana": 3, "▁ban": 4, "▁anna": 2, "▁nab": 1, "▁": 2}


def segmentations(word: str, pieces: dict[str, float]) -> list[tuple[str, ...]]:
    if not word:
        return [()]
    return [
        (word[:n], *rest) for n in range(1, len(word) + 1) if word[:n] in pieces for rest in segmentations(word[n:], pieces)
    ]


def likelihood(word: str, pieces: dict[str, float]) -> float:
    return sum(math.prod(pieces[piece] for piece in way) for way in segmentations(word, pieces))


def of(words: dict[str, int]) -> tuple["unigram._Corpus", "unigram._Substrings", list[str]]:
    corpus = unigram._Corpus.of(words)
    substrings = unigram._Substrings.of(corpus, num_pieces=1000)
    names = [corpus.text[place : place + length] for place, length in zip(substrings.places, substrings.lengths, strict=True)]
    return corpus, substrings, names


class TestSubstrings:
    def test_are_all_that_occur_twice_with_their_counts(self):
        counted: Counter[str] = Counter()
        for word, count in WORDS.items():
            for start in range(len(word)):
                for end in range(start + 1, len(word) + 1):
                    counted[word[start:end]] += count
        expected = {piece: count for piece, count in counted.items() if count >= 2 or len(piece) == 1}
        _, substrings, names = of(WORDS)
        assert dict(zip(names, substrings.counts, strict=True)) == expected

    def test_the_best_are_kept_and_all_characters(self):
        corpus = unigram._Corpus.of(WORDS)
        every = unigram._Substrings.of(corpus, num_pieces=1000)
        few = every._best(10)
        best = sorted(every.counts[every.lengths > 1] * every.lengths[every.lengths > 1])[::-1][
            : 10 - (every.lengths == 1).sum()
        ]
        assert sorted(few.counts[few.lengths > 1] * few.lengths[few.lengths > 1])[::-1] == best
        assert (few.lengths == 1).sum() == (every.lengths == 1).sum() == len(set("".join(WORDS)))


class TestLattice:
    @pytest.fixture
    def pieces(self):
        corpus, substrings, names = of(WORDS)
        p_S = np.random.default_rng(0).dirichlet(np.ones(len(names)))
        return corpus, substrings, names, p_S

    def test_expected_counts(self, pieces):
        corpus, substrings, names, p_S = pieces
        p = dict(zip(names, p_S.tolist(), strict=True))
        expected: Counter[str] = Counter()
        for word, count in WORDS.items():
            for way in segmentations(word, p):
                share = math.prod(p[piece] for piece in way) / likelihood(word, p)
                expected.update({piece: used * count * share for piece, used in Counter(way).items()})
        lattice = unigram._Lattice.of(corpus.starts, corpus.lengths, substrings, whole=True)
        found = dict(zip(names, lattice.expected_counts(p_S, corpus.weights), strict=True))
        assert found == pytest.approx({name: expected[name] for name in names})

    def test_what_a_piece_would_be_made_of_without_it(self, pieces):
        _, substrings, names, p_S = pieces
        longer = np.flatnonzero(substrings.lengths > 1)
        totals = unigram._Lattice.of(substrings.places[longer], substrings.lengths[longer], substrings, whole=False).totals(p_S)
        p = dict(zip(names, p_S.tolist(), strict=True))
        for number, total in zip(longer, totals, strict=True):
            others = {piece: value for piece, value in p.items() if piece != names[number]}
            assert total == pytest.approx(likelihood(names[number], others))


def test_digamma():
    special = pytest.importorskip("scipy.special")
    x = np.geomspace(0.5, 1e9, 1000)
    assert unigram._digamma(x) == pytest.approx(special.digamma(x), abs=1e-8)


class TestTraining:
    def test_exactly_as_many_pieces_as_asked_for(self):
        characters = set("".join(WORDS))
        for num in range(len(characters), 20):
            pieces = train_unigram(WORDS, num)
            assert len(pieces) == len(dict(pieces)) == num
            assert characters <= set(dict(pieces))
            assert pieces == sorted(pieces, key=lambda item: (-item[1], item[0]))
            assert sum(math.exp(score) for _, score in pieces) <= 1  # digamma takes a little of every count

    def test_more_than_there_are(self):
        _, _, names = of(WORDS)
        assert {piece for piece, _ in train_unigram(WORDS, 1000)} == set(names)

    def test_frequent_words_become_pieces(self):
        words = {"▁the": 1000, "▁cat": 900, "▁act": 3, "▁het": 3}
        assert {"▁the", "▁cat"} <= set(dict(train_unigram(words, 9)))

    def test_the_order_of_the_words_changes_nothing(self):
        assert train_unigram(dict(reversed(WORDS.items())), 14) == train_unigram(WORDS, 14)

    def test_very_long_words_neither_underflow_nor_overflow(self):
        words = {"▁" + "ab" * 5000: 1, "▁" + "".join(map(chr, range(0x4E00, 0x5E00))): 1, "▁the": 10**9}
        pieces = train_unigram(words, 6000)
        assert all(math.isfinite(score) for _, score in pieces)

    def test_the_rarest_words_are_left_out_of_too_many(self, monkeypatch):
        monkeypatch.setattr(unigram, "_MAX_CHARS", 12)
        assert unigram._Corpus.of(WORDS).text == "▁banana▁ban"

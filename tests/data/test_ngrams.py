"""Counts are those of a loop over the text, probabilities sum to one, and the weight of pairs is the likeliest."""

import errno
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch, Vocab
from mlm_lightning.data import ngrams as ngrams_module
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.pcfg import PCFGSource
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.ngrams import VERSION, NGramCounts
from mlm_lightning.data.text.source import TextSource
from mlm_lightning.masking import Bernoulli

V, PAD, CLS, MASK = 12, 0, 1, 11
VOCAB = Vocab(size=V, mask_id=MASK, special_ids=(CLS,), pad_id=PAD)
REGULAR = [token for token in range(V) if token not in (PAD, CLS, MASK)]


def drawn_text(length: int = 3000, seed: int = 0) -> np.ndarray:
    """Documents that begin with CLS, in which a token's neighbours are mostly the next few."""
    generator = np.random.default_rng(seed)
    tokens = [CLS]
    while len(tokens) < length:
        step = generator.choice([0, 1, 2, 5], p=[0.1, 0.6, 0.2, 0.1])
        tokens.append(CLS if generator.random() < 0.05 else REGULAR[int(tokens[-1] + step) % (len(REGULAR) - 1)])
    return np.array(tokens, np.uint16)  # the last regular token never occurs


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return drawn_text()


@pytest.fixture(scope="module")
def counted(text) -> NGramCounts:
    return NGramCounts.count(text, VOCAB)


def by_hand(text) -> tuple[Counter, Counter, Counter]:
    """How often regular tokens occur, follow each token, and follow any."""
    tokens = text.tolist()
    pairs = Counter((left, word) for left, word in pairwise(tokens) if word in REGULAR)
    contexts: Counter = Counter()
    for (left, _), count in pairs.items():
        contexts[left] += count
    return Counter(token for token in tokens if token in REGULAR), pairs, contexts


class TestCounts:
    def test_those_of_a_loop(self, text, counted):
        words, pairs, contexts = by_hand(text)
        left, word = np.divmod(np.arange(V * V), V)
        assert counted.pair_counts(left, word).tolist() == [pairs[pair] for pair in zip(left, word, strict=True)]
        assert counted.count_V.tolist() == [words[token] for token in range(V)]
        assert counted.context_V.tolist() == [contexts[token] for token in range(V)]
        assert len(counted.key_P) == len(pairs)

    @pytest.mark.parametrize(("block", "span"), [(1, 1), (7, 50), (100, 10**6), (2999, 600), (10**6, 100)])
    def test_in_parts_as_at_once(self, text, counted, block, span):
        parts = NGramCounts.count(text, VOCAB, block, span)
        assert parts.bigram_weight == counted.bigram_weight
        for name in ("count_V", "context_V", "key_P", "pair_count_P"):
            ours, whole = getattr(parts, name), getattr(counted, name)
            assert ours.dtype == whole.dtype
            assert np.array_equal(ours, whole), name

    def test_a_vocabulary_whose_pairs_need_64_bits(self, text, counted):
        large = Vocab(size=70_000, mask_id=MASK, special_ids=(CLS, PAD))
        shifted = np.where(text > MASK, text, text + np.where(text == CLS, 0, 60_000)).astype(np.uint32)
        found = NGramCounts.count(shifted, large, block=500, span=700)
        assert found.key_P.dtype == np.int64
        assert np.array_equal(
            found.pair_counts(np.array([60_003]), np.array([60_004])), counted.pair_counts(*np.array([[3], [4]]))
        )

    def test_mask_is_no_context_and_cls_is_one(self):
        counted = NGramCounts.count(np.array([CLS, 5, 6, MASK, 6, CLS, 5, MASK]), VOCAB)
        left, word = np.divmod(np.arange(V * V), V)
        pairs = {(CLS, 5): 2, (5, 6): 1}
        assert counted.pair_counts(left, word).tolist() == [pairs.get(pair, 0) for pair in zip(left, word, strict=True)]
        assert {token: count for token, count in enumerate(counted.context_V.tolist()) if count} == {CLS: 2, 5: 1}
        assert {token: count for token, count in enumerate(counted.count_V.tolist()) if count} == {5: 2, 6: 2}

    @pytest.mark.parametrize("tokens", [[5], [CLS], [5, CLS], [CLS, CLS], [5, 5]])
    def test_tiny_texts(self, tokens, tmp_path):
        counted = NGramCounts.of_file(tmp_path / "train.ngrams", np.array(tokens, np.uint16), VOCAB)
        assert counted.bigram_weight == 0 or tokens == [5, 5]
        left, word = np.array([5, CLS]), np.array([5, 5])
        assert np.isfinite(np.log(counted.bigram(left, word))).all()


class TestProbabilities:
    def test_they_sum_to_one_in_each_context(self, counted):
        words = np.array(REGULAR)
        assert counted.unigram(words).sum() == pytest.approx(1, rel=1e-12)
        for left in range(V):
            assert counted.bigram(np.full_like(words, left), words).sum() == pytest.approx(1, rel=1e-12)

    def test_a_context_without_followers_is_the_unigram(self, counted):
        words = np.array(REGULAR)
        assert counted.context_V[REGULAR[-1]] == 0
        assert np.array_equal(counted.bigram(np.full_like(words, REGULAR[-1]), words), counted.unigram(words))


def likeliest(rows: list[list[int]], num_regular: int) -> float:
    """λ of a grid, of each token with a left neighbour in its row, under the counts of all others."""
    words = Counter(token for row in rows for token in row)
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    contexts: Counter = Counter()
    for (left, _), count in pairs.items():
        contexts[left] += count
    total = sum(words.values()) + num_regular - 1
    known = [(left, word, count) for (left, word), count in pairs.items() if contexts[left] > 1]
    count_P = np.array([count for *_, count in known])
    bigram_P = np.array([(count - 1) / (contexts[left] - 1) for left, _, count in known])
    unigram_P = np.array([words[word] / total for _, word, _ in known])

    def likelihood(weight: float) -> float:
        mixed_P = weight * bigram_P + (1 - weight) * unigram_P
        return float((count_P * np.log(mixed_P)).sum())

    best = max((place / 1000 for place in range(1000)), key=likelihood)  # then a finer grid around it: it is concave
    around = (best + step * 1e-5 for step in range(-100, 101))
    return max((weight for weight in around if 0 <= weight < 1), key=likelihood)


def rows_of(source: SyntheticSource) -> list[list[int]]:
    """Those that are counted: all, where they are few."""
    return source.rows("train")[torch.arange(len(source.rows("train")))].tolist()


LANGUAGES = [HMMSource(train_size=256), TreeSource(train_size=1024), HMMSource(preset="z1r", train_size=32)]
by_language = pytest.mark.parametrize("language", LANGUAGES, ids=["hmm", "tree", "z1r"])


class TestWeight:
    """It is 1e-4 from the likeliest of a grid at most."""

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
    def test_of_text(self, share):
        text = zipf_text(4000, share)
        weight = NGramCounts.count(text, Vocab(size=400, mask_id=399)).bigram_weight
        assert weight == pytest.approx(likeliest([text.tolist()], 399), abs=1e-4)
        assert weight < 0.05 if share == 0 else weight > share / 2

    @by_language
    def test_of_a_language_within_its_rows(self, language):
        assert language.ngrams().bigram_weight == pytest.approx(likeliest(rows_of(language), language.num_symbols), abs=1e-4)

    @pytest.mark.parametrize("length", [3, 10, 100_000])
    def test_where_all_tokens_are_equal(self, length):
        weight = NGramCounts.count(np.full(length, 5), VOCAB).bigram_weight
        assert weight == pytest.approx(1, abs=1e-4)
        assert weight < 1  # a new pair stays possible

    def test_where_the_left_neighbour_always_decides(self):
        text = REGULAR * 10_000
        weight = NGramCounts.count(np.array(text), VOCAB).bigram_weight
        assert weight == pytest.approx(likeliest([text], len(REGULAR)), abs=1e-4)
        assert 0.9999 < weight < 1

    @pytest.mark.parametrize("text", [REGULAR, [5], [CLS, 5], [MASK, 5, MASK, 5]])
    def test_0_where_no_pair_comes_twice(self, text):
        assert NGramCounts.count(np.array(text), VOCAB).bigram_weight == 0

    def test_in_few_passes_over_the_pairs(self, text, monkeypatch):
        passes, left_out = [], NGramCounts._left_out
        monkeypatch.setattr(NGramCounts, "_left_out", lambda counts: passes.append(1) or left_out(counts))
        NGramCounts.count(text, VOCAB)
        assert len(passes) <= 20


def zipf_text(length: int, share: float) -> np.ndarray:
    """Words of Zipf's frequencies; a `share` of them says which word comes next."""
    generator = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 400)
    tokens = generator.choice(399, length, p=frequencies / frequencies.sum())
    for place in np.flatnonzero(generator.random(length - 1) < share) + 1:
        tokens[place] = (tokens[place - 1] * 7 + 3) % 399
    return tokens.astype(np.uint16)


def random_batch(rows: int, length: int, seed: int = 0) -> MLMBatch:
    """Rows of text with padding behind, several documents in some rows, and hidden tokens beside each other."""
    generator = np.random.default_rng(seed)
    tokens_BL = np.stack([drawn_text(length, seed + row)[:length] for row in range(rows)]).astype(np.int64)
    length_B1 = generator.integers(2, length + 1, (rows, 1))
    number_BL = np.where(np.arange(length) < length_B1, 1 + (np.arange(length) >= length // 2), 0)
    tokens_BL[number_BL == 0] = PAD
    predicted_BL = (generator.random((rows, length)) < 0.4) & np.isin(tokens_BL, REGULAR)
    hidden_BL = predicted_BL & (generator.random((rows, length)) < 0.9)  # some keep their token
    labels_BL = np.where(predicted_BL, tokens_BL, IGNORE_INDEX)
    positions_BK = np.argsort(~predicted_BL, axis=1, kind="stable")[:, : predicted_BL.sum(1).max() + 2]
    arrays = [np.where(hidden_BL, MASK, tokens_BL), labels_BL, number_BL, positions_BK, np.arange(rows)]
    return MLMBatch(*map(torch.from_numpy, arrays))


class TestLosses:
    @pytest.mark.parametrize("padded", [True, False])
    def test_those_of_a_loop_over_positions(self, text, counted, padded):
        words, pairs, contexts = by_hand(text)
        total = sum(words.values()) + len(REGULAR)
        batch = random_batch(80, 13)
        if not padded:
            batch = batch._replace(attention_mask_BL=None)
        found = counted.losses(batch)
        kinds = Counter()
        for row, labels in enumerate(batch.labels_BK.tolist()):
            for place, word in enumerate(labels):
                ours = {name: values[row, place].item() for name, values in found.items()}
                if word == IGNORE_INDEX:
                    assert set(ours.values()) == {0}
                    continue
                position = int(batch.positions_BK[row, place])
                unigram = (words[word] + 1) / total
                left = int(batch.input_ids_BL[row, position - 1]) if position else MASK
                other = (
                    padded and position and batch.attention_mask_BL[row, position - 1] != batch.attention_mask_BL[row, position]
                )
                visible = left != MASK and not other and batch.labels_BL[row, position - 1] == IGNORE_INDEX
                kinds[bool(visible)] += 1
                bigram = unigram
                if visible and contexts[left]:
                    weight = counted.bigram_weight
                    bigram = weight * pairs[left, word] / contexts[left] + (1 - weight) * unigram
                assert ours["unigram_loss"] == pytest.approx(-math.log(unigram), rel=1e-12)
                assert ours["bigram_loss"] == pytest.approx(-math.log(bigram), rel=1e-12)
                assert ours["unigram_correct"] == (word == words.most_common(1)[0][0])
        assert min(kinds.values()) > 20

    def test_rows_that_fill_up_a_batch_count_nothing(self, counted):
        batch = random_batch(3, 8)
        filler = batch._replace(
            labels_BL=torch.full_like(batch.labels_BL, IGNORE_INDEX), row_ids_B=torch.full((3,), PADDING_ROW)
        )
        assert all((values == 0).all() for values in counted.losses(filler).values())

    def test_the_trimmed_batch_has_the_same(self, counted):
        batch = random_batch(9, 20)
        whole, trimmed = counted.losses(batch), counted.losses(batch.trimmed())
        assert whole["bigram_loss"].shape != trimmed["bigram_loss"].shape
        for name, values in whole.items():
            assert values.sum().item() == pytest.approx(trimmed[name].sum().item(), rel=1e-12)


class TestFile:
    def test_reads_what_was_counted(self, text, counted, tmp_path):
        file = tmp_path / "train.ngrams"
        made = NGramCounts.of_file(file, text, VOCAB)
        again = NGramCounts.of_file(file, text[:2], VOCAB)  # of what lies there
        for found in (made, again):
            assert found.bigram_weight == counted.bigram_weight
            for name in ("count_V", "context_V", "key_P", "pair_count_P"):
                array = getattr(found, name)
                assert array.flags.aligned
                assert array.dtype == getattr(counted, name).dtype
                assert np.array_equal(array, getattr(counted, name)), name

    @pytest.mark.parametrize(
        "damage", [lambda bytes: b"", lambda bytes: bytes[:-1], lambda bytes: b"x" + bytes[1:], lambda bytes: bytes[:200]]
    )
    def test_a_damaged_one_is_made_again(self, text, tmp_path, damage):
        file = tmp_path / "train.ngrams"
        NGramCounts.of_file(file, text, VOCAB)
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        NGramCounts.of_file(file, text, VOCAB)
        assert file.read_bytes() == whole


class TestLanguages:
    @by_language
    def test_rows_have_no_neighbours(self, language):
        counted, rows = language.ngrams(), rows_of(language)
        pairs = Counter(pair for row in rows for pair in pairwise(row))
        left, word = np.divmod(np.arange(language.vocab.size**2), language.vocab.size)
        assert counted.context_V[language.vocab.mask_id] == 0
        assert counted.context_V.sum() == sum(len(row) - 1 for row in rows)
        assert counted.pair_counts(left, word).tolist() == [pairs[pair] for pair in zip(left, word, strict=True)]

    @by_language
    def test_the_losses_are_those_of_a_loop(self, language):
        rows, q = rows_of(language), language.num_symbols
        words = Counter(token for row in rows for token in row)
        pairs = Counter(pair for row in rows for pair in pairwise(row))
        contexts = Counter(left for row in rows for left in row[:-1])
        weight, losses = likeliest(rows, q), []
        batches = MLMDataModule(language, Bernoulli(rate=0.3), batch_size=16)
        (condition,) = batches.conditions
        batch = next(iter(batches.eval_batches("val", condition)))
        for tokens, labels in zip(batch.input_ids_BL.tolist(), batch.labels_BL.tolist(), strict=True):
            for left, word in zip([language.vocab.mask_id, *tokens], labels, strict=False):
                if word != IGNORE_INDEX:
                    unigram = (words[word] + 1) / (sum(words.values()) + q)
                    mixed = weight * pairs[left, word] / max(contexts[left], 1) + (1 - weight) * unigram
                    losses.append(-math.log(unigram if left == language.vocab.mask_id else mixed))
        assert condition.ngrams is not None
        assert float(condition.ngrams.losses(batch)["bigram_loss"].sum()) == pytest.approx(sum(losses), rel=1e-4)

    def test_they_are_the_same_under_every_precision(self):
        there, here = PCFGSource(train_size=64), PCFGSource(train_size=64)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                found = there.ngrams()
        finally:
            torch.set_default_dtype(torch.float32)
        assert found.bigram_weight == here.ngrams().bigram_weight
        assert np.array_equal(found.pair_count_P, here.ngrams().pair_count_P)


WORDS = [f"w{number}" for number in range(20)]


def chains(file: Path, documents: int, seed: int) -> Path:
    """Texts in which the left neighbour says which word comes next."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, len(WORDS), documents)
    file.write_text("".join(" ".join(WORDS[(start + 7 * i) % len(WORDS)] for i in range(24)) + "\n" for start in starts))
    return file


@pytest.fixture
def source(tmp_path) -> TextSource:
    return TextSource(
        path=str(chains(tmp_path / "a.txt", 100, 0)),
        tokenizer="train",
        vocab_size=200,
        chunk_size=16,
        cache_dir=str(tmp_path / "c"),
    )


def means(source: TextSource, batch_size: int) -> dict[str, float]:
    """Over the frozen positions of validation, at a mask rate of 0.15."""
    batches = MLMDataModule(source, Bernoulli(rate=0.15), batch_size=batch_size)
    (condition,), sums, predicted = batches.conditions, Counter(), 0
    for batch in batches.eval_batches("val", condition):
        assert condition.ngrams is not None
        sums.update({name: float(values.sum()) for name, values in condition.ngrams.losses(batch).items()})
        predicted += int((batch.labels_BL != IGNORE_INDEX).sum())
    return {name: value / predicted for name, value in sums.items()}


class TestSource:
    def test_pairs_say_what_comes_next_where_the_left_neighbour_decides(self, source):
        source.prepare()
        found = means(source, 8)
        assert found["unigram_loss"] == pytest.approx(math.log(len(WORDS)), abs=0.2)
        # at some 0.15 of the positions the neighbour is hidden, and at one of 25 it is [CLS]
        assert found["bigram_loss"] < 0.25 * found["unigram_loss"]
        assert means(source, 3) == pytest.approx(found, rel=1e-12)

    def test_nothing_before_it_is_prepared(self, source):
        assert source.ngrams() is None

    def test_counted_once_for_all_that_use_the_cache(self, source, monkeypatch):
        source.prepare()
        calls, count = [], NGramCounts.count
        monkeypatch.setattr(NGramCounts, "count", lambda *arguments: calls.append(1) or count(*arguments))
        first = source.ngrams()
        again = TextSource(**{**vars_of(source), "chunk_size": 8})
        again.prepare()
        assert calls == [1]
        assert source.ngrams() is first
        assert np.array_equal(again.ngrams().key_P, first.key_P)
        assert calls == [1]
        tokens = np.fromfile(source.cache_folder / "train.tokens", np.uint16)
        assert np.array_equal(
            first.count_V + np.bincount(tokens, minlength=len(first.count_V)) * source.vocab.is_special_V.numpy(),
            np.bincount(tokens, minlength=len(first.count_V)),
        )

    def test_the_counts_of_another_fingerprint(self, source, tmp_path):
        source.prepare()
        other = TextSource(**{**vars_of(source), "path": str(chains(tmp_path / "b.txt", 30, 1)), **source.tokenizer_keys()})
        other.prepare()
        assert np.array_equal(other.ngrams(source.fingerprint()).count_V, source.ngrams().count_V)
        assert not np.array_equal(other.ngrams().count_V, source.ngrams().count_V)
        assert other.ngrams("0" * 24) is None
        assert other.ngrams("") is None

    def test_those_of_an_earlier_version_are_left_and_counted_again(self, source):
        source.prepare()
        older = NGramCounts.of_file(source.cache_folder / "train.ngrams", np.arange(5, 25, dtype=np.uint16), source.vocab)
        written = (source.cache_folder / "train.ngrams").read_bytes()
        tokens = np.fromfile(source.cache_folder / "train.tokens", np.uint16)
        counted = source.ngrams()
        assert counted.bigram_weight == NGramCounts.count(tokens, source.vocab).bigram_weight != older.bigram_weight
        assert len(counted.key_P) > len(older.key_P)
        assert (source.cache_folder / "train.ngrams").read_bytes() == written
        assert (source.cache_folder / f"train.ngrams-{VERSION}").is_file()

    def test_a_cache_that_cannot_be_written(self, source, monkeypatch):
        source.prepare()
        before = sorted(source.cache_folder.iterdir())

        def refuse(*_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        with monkeypatch.context() as patch:
            patch.setattr(ngrams_module, "write_atomically", refuse)
            counted = source.ngrams()
        assert sorted(source.cache_folder.iterdir()) == before
        assert counted is not None
        assert source.ngrams() is counted
        assert int(counted.count_V.sum()) > 0


def vars_of(source: TextSource) -> dict:
    names = ("path", "tokenizer", "vocab_size", "chunk_size", "cache_dir")
    return {name: getattr(source, name) for name in names}

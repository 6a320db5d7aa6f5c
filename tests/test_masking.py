"""Masks: their shares, their nesting, and that a row's mask is a matter of that row alone."""

import dataclasses
import itertools
import math
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import AT, At, assert_equal_runs, curves, run_of, train
from scipy import stats

from mlm_lightning import randomness
from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch, Vocab
from mlm_lightning.errors import Interrupted
from mlm_lightning.masking import Bernoulli, RateSchedule, Single, Span, WholeWord, _count_quantile

PAD, CLS, SEP, MASK, FIRST_REGULAR = 0, 1, 2, 3, 4
CONTINUES = tuple(i >= 70 for i in range(100))  # 30 of the 96 regular tokens continue a word
PLAIN = Vocab(size=100, mask_id=MASK, special_ids=(PAD, CLS, SEP, MASK), pad_id=PAD)
WORDS = dataclasses.replace(PLAIN, continues_word=CONTINUES)
KINDS = [Bernoulli(), Single(), Span(), WholeWord()]
EVERY_KIND = pytest.mark.parametrize("masking", KINDS, ids=lambda masking: type(masking).__name__)
EVERY_VOCAB = pytest.mark.parametrize("vocab", [PLAIN, WORDS], ids=["plain", "words"])
RATED = pytest.mark.parametrize("kind", [Bernoulli, Span, WholeWord])


def random_tokens(rows: int, seq_len: int, specials: bool = False) -> torch.Tensor:
    """Regular tokens; with `specials`, [CLS] first, some [SEP], and padding at the end of some rows."""
    generator = randomness.generator(rows, seq_len)
    tokens_BL = torch.randint(FIRST_REGULAR, 100, (rows, seq_len), generator=generator)
    if specials:
        tokens_BL[torch.rand((rows, seq_len), generator=generator) < 0.05] = SEP
        tokens_BL[:, 0] = CLS
        length_B1 = torch.randint(seq_len // 2, seq_len + 1, (rows, 1), generator=generator)
        tokens_BL[torch.arange(seq_len) >= length_B1] = PAD
    return tokens_BL


def mask(masking, tokens_BL, vocab=PLAIN, key=1, row_ids_B=None, **options) -> MLMBatch:
    row_ids_B = torch.arange(len(tokens_BL)) if row_ids_B is None else row_ids_B
    return masking(tokens_BL, row_ids_B, vocab=vocab, key=key, **options)


def predicted(batch: MLMBatch) -> torch.Tensor:
    return batch.labels_BL != IGNORE_INDEX


def word_numbers(tokens_BL: torch.Tensor) -> list[list[int]]:
    """The word of each token, by the plainest of loops."""
    rows = []
    for row in tokens_BL.tolist():
        words = [0]
        for before, token in itertools.pairwise(row):
            same = CONTINUES[token] and before >= FIRST_REGULAR
            words.append(words[-1] + (not same))
        rows.append(words)
    return rows


# --- one batch -----------------------------------------------------------------------------------------------------------


@EVERY_KIND
@EVERY_VOCAB
def test_a_batch_is_consistent(masking, vocab):
    tokens_BL = random_tokens(200, 64, specials=True)
    attention_mask_BL = (tokens_BL != PAD).long()
    before = tokens_BL.clone()
    batch = mask(masking, tokens_BL, vocab, attention_mask_BL=attention_mask_BL)
    predicted_BL = predicted(batch)

    assert torch.equal(tokens_BL, before)
    assert batch.attention_mask_BL is attention_mask_BL
    assert torch.equal(batch.labels_BL[predicted_BL], tokens_BL[predicted_BL])
    assert torch.equal(batch.input_ids_BL[~predicted_BL], tokens_BL[~predicted_BL])
    assert batch.input_ids_BL.dtype == batch.labels_BL.dtype == batch.positions_BK.dtype == torch.int64
    assert not (predicted_BL & vocab.is_special_V[tokens_BL]).any()
    assert predicted_BL.any(dim=1).all()


@EVERY_KIND
@EVERY_VOCAB
def test_positions_list_the_predicted_ones_first(masking, vocab):
    batch = mask(masking, random_tokens(300, 20, specials=True), vocab)
    assert batch.positions_BK.shape == (300, masking.num_predicted(20))
    for predicted_L, positions_K in zip(predicted(batch), batch.positions_BK, strict=True):
        expected = predicted_L.nonzero().flatten().tolist()
        assert positions_K[: len(expected)].tolist() == expected
        assert not predicted_L[positions_K[len(expected) :]].any()
    assert (batch.labels_BK != IGNORE_INDEX).sum() == predicted(batch).sum()


@EVERY_KIND
def test_padding_of_the_attention_mask_is_never_predicted(masking):
    tokens_BL = random_tokens(100, 30)
    attention_mask_BL = (torch.arange(30) < torch.randint(1, 30, (100, 1), generator=randomness.generator(1))).long()
    predicted_BL = predicted(mask(masking, tokens_BL, attention_mask_BL=attention_mask_BL))
    assert not (predicted_BL & (attention_mask_BL == 0)).any()
    assert predicted_BL.any(dim=1).all()


@EVERY_KIND
def test_rows_with_nothing_to_predict(masking):
    tokens_BL = random_tokens(4, 16)
    tokens_BL[1] = SEP
    attention_mask_BL = torch.ones_like(tokens_BL)
    attention_mask_BL[2] = 0
    batch = mask(masking, tokens_BL, WORDS, row_ids_B=torch.tensor([0, 1, 2, PADDING_ROW]), attention_mask_BL=attention_mask_BL)
    assert predicted(batch).any(dim=1).tolist() == [True, False, False, False]
    assert (batch.labels_BK[1:] == IGNORE_INDEX).all()


@EVERY_KIND
def test_no_rows_and_one_position(masking):
    assert mask(masking, torch.zeros((0, 8), dtype=torch.int64)).positions_BK.shape[0] == 0
    assert predicted(mask(masking, random_tokens(5, 1))).all()


# --- a function of (seed, epoch, row) alone ----------------------------------------------------------------------------


@EVERY_KIND
@EVERY_VOCAB
def test_a_row_has_the_same_mask_in_any_batch(masking, vocab):
    tokens_BL, row_ids_B = random_tokens(64, 48, specials=True), torch.arange(64) * 1000
    epochs_B = torch.arange(64) % 3
    whole = mask(masking, tokens_BL, vocab, row_ids_B=row_ids_B, epochs_B=epochs_B)
    shuffled = torch.randperm(64, generator=randomness.generator(1))
    for order, size in [(torch.arange(64), 1), (torch.arange(64), 7), (shuffled, 64), (shuffled, 7)]:
        for index in order.split(size):
            part = mask(masking, tokens_BL[index], vocab, row_ids_B=row_ids_B[index], epochs_B=epochs_B[index])
            for field in ("input_ids_BL", "labels_BL", "positions_BK"):
                assert torch.equal(getattr(part, field), getattr(whole, field)[index])


@EVERY_KIND
def test_the_mask_depends_on_seed_epoch_and_row(masking):
    tokens_BL = random_tokens(1, 128).expand(50, -1)

    def labels(**options):
        return mask(masking, tokens_BL, **options).labels_BL

    base = labels()
    assert torch.equal(base, labels())
    assert torch.equal(base, labels(epochs_B=torch.zeros(50, dtype=torch.int64)))
    for other in (
        labels(key=2),
        labels(epochs_B=torch.ones(50, dtype=torch.int64)),
        labels(row_ids_B=torch.arange(50, 100)),
        base.roll(1, 0),
    ):
        assert (other != base).any(dim=1).float().mean() > 0.9


def test_bernoulli_is_what_it_says():
    tokens_BL, epochs_B, row_ids_B = random_tokens(500, 128), torch.arange(500) % 2, torch.arange(500) + 7
    key = randomness.key(0, 5)
    keys_B = randomness.row_keys(randomness.key(key, randomness.Stream.MASK), epochs_B, row_ids_B)
    expected = randomness.uniform(keys_B[:, None], torch.arange(128)) < 0.15
    assert torch.equal(predicted(mask(Bernoulli(), tokens_BL, key=key, row_ids_B=row_ids_B, epochs_B=epochs_B)), expected)


# --- rates -------------------------------------------------------------------------------------------------------------


@RATED
@EVERY_VOCAB
def test_masks_are_nested_in_the_rate(kind, vocab):
    tokens_BL = random_tokens(200, 64, specials=True)
    masks = [predicted(mask(kind(rate=rate), tokens_BL, vocab)) for rate in (0.01, 0.05, 0.15, 0.4, 0.8, 1)]
    for fewer, more in itertools.pairwise(masks):
        assert not (fewer & ~more).any()
        assert fewer.sum() < more.sum()


@RATED
@EVERY_VOCAB
def test_rate_one_predicts_everything(kind, vocab):
    tokens_BL = random_tokens(50, 40, specials=True)
    assert torch.equal(predicted(mask(kind(rate=1), tokens_BL, vocab)), tokens_BL >= FIRST_REGULAR)


@RATED
@pytest.mark.parametrize("rate", [1e-9, 0.02])
def test_every_row_has_a_prediction(kind, rate):
    tokens_BL = random_tokens(300, 30)
    count_B = predicted(mask(kind(rate=rate), tokens_BL)).sum(dim=1)
    assert count_B.min() == 1
    if rate < 1e-6:
        assert count_B.max() == 1


def test_the_lowest_score_stands_in_where_none_is_below_the_rate():
    tokens_BL = random_tokens(300, 30)
    none_B = ~(_uniform(300, 30) < 0.02).any(dim=1)
    position_B = predicted(mask(Bernoulli(rate=0.02), tokens_BL)).long().argmax(dim=1)
    assert none_B.sum() > 100
    assert torch.equal(position_B[none_B], _uniform(300, 30).argmin(dim=1)[none_B])


def _uniform(rows: int, seq_len: int) -> torch.Tensor:
    key = randomness.key(1, randomness.Stream.MASK)
    keys_B = randomness.row_keys(key, torch.zeros(rows, dtype=torch.int64), torch.arange(rows))
    return randomness.uniform(keys_B[:, None], torch.arange(seq_len))


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("seq_len", [1, 8, 128, 512])
def test_num_predicted_is_the_quantile_of_the_count(rate, seq_len):
    count = Bernoulli(rate=rate).num_predicted(seq_len)
    exceeds = stats.binom(seq_len, rate).sf
    assert exceeds(count) < 1e-6
    assert count == 1 or exceeds(count - 1) >= 1e-6


@pytest.mark.parametrize("seq_len", [12, 40])
def test_num_predicted_of_spans_is_exact(seq_len):
    """Against the brute force of many rows, at a chance that they resolve."""
    masking = Span(rate=0.3)
    count_B = predicted(mask(tight(Span, seq_len, rate=0.3), random_tokens(100_000, seq_len))).sum(dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlm_lightning.masking.OVERFLOW", 0.05)
        quantile = _count_quantile.__wrapped__(seq_len, 0.3, masking.survival)
    assert (count_B > quantile).double().mean() < 0.05 + 0.003
    assert (count_B >= quantile).double().mean() > 0.05 - 0.003


def test_num_predicted_of_the_other_kinds():
    assert Single().num_predicted(128) == 1
    for kind in (Span, WholeWord):
        counts = [kind(rate=rate).num_predicted(128) for rate in (0.01, 0.15, 0.5, 1)]
        assert counts == sorted(counts)
        assert Bernoulli().num_predicted(128) < kind().num_predicted(128) < 128
        assert counts[-1] == 128
    assert Span(mean_length=1, max_length=1).num_predicted(128) == Bernoulli().num_predicted(128)


# --- rates that change in the course of a run --------------------------------------------------------------------------

FALLING = {"start": 0.4, "end": 0.1, "schedule": "linear"}
RISING = {"start": 0.05, "end": 0.5, "schedule": "cosine"}
PROGRESS = (0.0, 0.25, 0.5, 0.9, 1.0)


def test_a_linear_rate_moves_in_equal_steps_and_a_cosine_one_along_half_a_cosine():
    linear, cosine = (RateSchedule(start=0.3, end=0.1, schedule=schedule) for schedule in ("linear", "cosine"))
    assert [linear.at(each) for each in (0.0, 1.0)] == [cosine.at(each) for each in (0.0, 1.0)] == [0.3, 0.1]  # to the last bit
    assert [linear.at(each) for each in (0.25, 0.5, 0.75)] == pytest.approx([0.25, 0.2, 0.15])
    assert [cosine.at(each) for each in (1 / 3, 0.5, 2 / 3)] == pytest.approx([0.25, 0.2, 0.15])  # cos 60° is a half
    for end in (1.0, 0.3):  # never beyond either end
        flat = RateSchedule(start=end, end=end, schedule="cosine")
        assert max(flat.at(i / 997) for i in range(998)) <= end + 1e-15
        assert all(Bernoulli(rate=flat).limit(i / 997) for i in range(998))


@RATED
@EVERY_VOCAB
@pytest.mark.parametrize("rate", [FALLING, RISING], ids=["falling", "rising"])
def test_a_scheduled_rate_moves_the_limit_and_nothing_else(kind, vocab, rate):
    """At any step the mask is that of the step's rate, so masks are nested, and what is shown stays the same."""
    tokens_BL, scheduled = random_tokens(100, 64, specials=True), kind(rate=rate)
    for progress in PROGRESS:
        at_step = mask(scheduled, tokens_BL, vocab, progress=progress)
        constant = mask(kind(rate=RateSchedule(**rate).at(progress)), tokens_BL, vocab)
        assert torch.equal(at_step.labels_BL, constant.labels_BL)
        assert torch.equal(at_step.input_ids_BL, constant.input_ids_BL)
    masks = [predicted(mask(scheduled, tokens_BL, vocab, progress=progress)) for progress in PROGRESS]
    for fewer, more in itertools.pairwise(masks if rate is RISING else masks[::-1]):
        assert not (fewer & ~more).any()
        assert fewer.sum() < more.sum()


@RATED
@pytest.mark.parametrize("rate", [FALLING, RISING], ids=["falling", "rising"])
def test_places_are_those_of_the_highest_rate(kind, rate):
    scheduled, tokens_BL = kind(rate=rate), random_tokens(10, 128)
    places = kind(rate=max(rate["start"], rate["end"])).num_predicted(128)
    assert places > kind(rate=min(rate["start"], rate["end"])).num_predicted(128)
    assert {mask(scheduled, tokens_BL, progress=progress).positions_BK.shape for progress in PROGRESS} == {(10, places)}


@RATED
def test_a_constant_rate_knows_no_progress(kind):
    tokens_BL = random_tokens(50, 64)
    begun, done = (mask(kind(), tokens_BL, WORDS, progress=progress) for progress in (0.0, 1.0))
    assert torch.equal(begun.labels_BL, done.labels_BL)


@RATED
def test_evaluation_is_frozen_at_the_end_of_a_schedule(kind):
    assert kind(rate=FALLING).frozen() == kind(rate=0.1).frozen()
    assert kind(rate=FALLING).frozen(0.3) == kind(rate=0.3).frozen()
    tokens_BL = random_tokens(50, 64)
    assert torch.equal(mask(kind(rate=FALLING).frozen(), tokens_BL).labels_BL, mask(kind(rate=0.1), tokens_BL).labels_BL)


@RATED
def test_a_scheduled_masking_is_a_value(kind):
    masking = kind(rate=FALLING)
    assert masking == kind(rate=RateSchedule(**FALLING)) == pickle.loads(pickle.dumps(masking))
    assert len({masking, kind(rate=FALLING), kind(rate=RISING)}) == 2
    assert dataclasses.replace(masking, mask_share=1.0).rate == RateSchedule(**FALLING)


@RATED
@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize("value", [0, 1.5, math.nan, True, "0.15", None])
def test_bad_rates_of_a_schedule_are_refused(kind, name, value):
    with pytest.raises(
        ValueError, match=rf"masking\.rate\.{name}=.*(above 0 and at most 1|should be a number); .* such as 0\.15"
    ):
        kind(rate=FALLING | {name: value})


@pytest.mark.parametrize("value", ["quadratic", "Linear", None, 1])
def test_an_unknown_schedule_lists_those_that_there_are(value):
    with pytest.raises(ValueError, match=r"masking\.rate\.schedule=.*: should be linear or cosine"):
        Bernoulli(rate=FALLING | {"schedule": value})


@pytest.fixture
def _nothing_left_set():
    yield
    At.place = None


@pytest.mark.usefixtures("_nothing_left_set")
def test_a_run_with_a_scheduled_rate(toy: Callable[..., dict[str, Any]], tmp_path: Path):
    """Its rate is logged, it is evaluated as at its last rate, and a resumed run is the uninterrupted one."""
    scheduled = "masking.rate={start: 0.6, end: 0.3, schedule: linear}"
    options = ("data.depth=3", "trainer.max_steps=7", "trainer.accumulate_grad_batches=2", f"callbacks.at._target_={AT}")
    whole, cut, constant = (
        toy(f"output_dir={tmp_path / name}", *options, rate)
        for name, rate in (("whole", scheduled), ("cut", scheduled), ("constant", "masking.rate=0.3"))
    )
    summary = train(whole)
    rates = curves(run_of(whole))["train/mask_rate"]
    assert [step for step, _ in rates] == list(range(1, 8))
    assert [rate for _, rate in rates] == pytest.approx([0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3])

    plain = train(constant)
    assert plain["val/oracle_loss"] == summary["val/oracle_loss"]  # a matter of the masks alone
    assert plain["val/loss"] != summary["val/loss"]
    assert "train/mask_rate" not in curves(run_of(constant))

    At.set(("train", 3, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(cut)
    train(cut)
    assert_equal_runs(whole, cut)


# --- shares --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_tokens() -> torch.Tensor:
    return random_tokens(16_384, 128)  # two million


def assert_share(count: np.ndarray | int, total: int, share: float) -> None:
    """Within four standard errors (of independent draws), five for the largest of a hundred."""
    error = math.sqrt(share * (1 - share) / total)
    deviations = np.abs(np.asarray(count) / total - share) / error
    assert deviations.max() < (4 if deviations.size == 1 else 5)


@RATED
@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_share_of_predicted_tokens_at_every_position(kind, rate, many_tokens):
    predicted_BL = predicted(mask(kind(rate=rate), many_tokens)).numpy()
    assert_share(predicted_BL.sum(axis=0), len(predicted_BL), rate)
    row_means_B = predicted_BL.mean(axis=1)  # rows are independent, neighbours in a span are not
    assert abs(row_means_B.mean() - rate) < 4 * row_means_B.std() / math.sqrt(len(row_means_B))


@pytest.mark.parametrize("kind", [Span, WholeWord])
def test_share_of_predicted_tokens_by_place_in_the_word(kind, many_tokens):
    predicted_BL = predicted(mask(kind(), many_tokens, WORDS)).numpy()
    continues_BL = np.array(CONTINUES)[many_tokens.numpy()]
    second_BL = continues_BL[:, 1:] & ~continues_BL[:, :-1]
    assert abs(predicted_BL[continues_BL].mean() - 0.15) < 4e-3
    assert abs(predicted_BL[:, 1:][second_BL].mean() - 0.15) < 4e-3
    assert_share(predicted_BL.sum(axis=0), len(predicted_BL), 0.15)


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0), (0.9, 0.1)])
def test_shares_of_mask_random_and_kept(shares, many_tokens):
    mask_share, random_share = shares
    batch = mask(Bernoulli(rate=0.5, mask_share=mask_share, random_share=random_share), many_tokens)
    labels_N, shown_N = batch.labels_BL[predicted(batch)], batch.input_ids_BL[predicted(batch)]
    total = len(labels_N)
    assert_share(int((shown_N == MASK).sum()), total, mask_share) if 0 < mask_share < 1 else None
    changed = int(((shown_N != MASK) & (shown_N != labels_N)).sum())  # a random token may be the token itself
    expected = random_share * 95 / 96
    assert_share(changed, total, expected) if random_share else None
    assert_share(int((shown_N == labels_N).sum()), total, 1 - mask_share - expected) if sum(shares) else None
    assert not PLAIN.is_special_V[shown_N[shown_N != MASK]].any()
    if not sum(shares):
        assert torch.equal(shown_N, labels_N)


def test_random_tokens_are_uniform_over_the_regular_ones(many_tokens):
    one_token = torch.full_like(many_tokens, FIRST_REGULAR)
    batch = mask(Bernoulli(mask_share=0, random_share=1), one_token)
    counts = np.bincount(batch.input_ids_BL[predicted(batch)], minlength=100)
    assert counts[:FIRST_REGULAR].sum() == 0
    assert stats.chisquare(counts[FIRST_REGULAR:]).pvalue > 1e-3


def test_replacements_do_not_depend_on_what_else_is_predicted():
    tokens_BL = random_tokens(100, 64)
    fewer, more = mask(Bernoulli(rate=0.1), tokens_BL), mask(Bernoulli(rate=0.5), tokens_BL)
    both_BL = predicted(fewer)
    assert torch.equal(fewer.input_ids_BL[both_BL], more.input_ids_BL[both_BL])


# --- single, words, spans ----------------------------------------------------------------------------------------------


def test_single_is_uniform_over_the_maskable_positions():
    tokens_BL = random_tokens(1, 16).repeat(20_000, 1)
    tokens_BL[:, [0, 7, 15]] = SEP
    batch = mask(Single(), tokens_BL)
    assert (predicted(batch).sum(dim=1) == 1).all()
    assert (batch.input_ids_BL[predicted(batch)] == MASK).all()
    counts_L = predicted(batch).sum(dim=0).numpy()
    assert stats.chisquare(np.delete(counts_L, [0, 7, 15])).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Span, WholeWord])
@pytest.mark.parametrize("rate", [1e-9, 0.15, 0.5])
def test_whole_words_are_whole(kind, rate):
    tokens_BL = random_tokens(400, 64, specials=True)
    predicted_BL = predicted(mask(kind(rate=rate), tokens_BL, WORDS)).numpy()
    for predicted_L, words_L in zip(predicted_BL, np.array(word_numbers(tokens_BL)), strict=True):
        chosen = words_L[predicted_L]
        assert predicted_L[np.isin(words_L, chosen)].all()


def test_whole_words_without_words_are_bernoulli():
    tokens_BL = random_tokens(100, 64, specials=True)
    assert torch.equal(mask(WholeWord(), tokens_BL).labels_BL, mask(Bernoulli(), tokens_BL).labels_BL)


def test_a_whole_word_is_decided_at_its_first_token():
    tokens_BL = random_tokens(100, 64, specials=True)
    words, tokens = (mask(kind(rate=0.5), tokens_BL, WORDS) for kind in (WholeWord, Bernoulli))
    numbers_BL = torch.tensor(word_numbers(tokens_BL))
    first_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
    first_BL[:, 1:] = numbers_BL[:, 1:] != numbers_BL[:, :-1]
    assert torch.equal(predicted(words)[first_BL], predicted(tokens)[first_BL])


def run_lengths(predicted_BL: np.ndarray) -> np.ndarray:
    """The lengths of the runs that lie wholly inside their row."""
    lengths = []
    for row in predicted_BL:
        edges = np.flatnonzero(np.diff(row.astype(int)))
        starts = edges[~row[edges]]
        lengths += [end - start for start in starts for end in edges[edges > start][:1]]
    return np.array(lengths)


def test_spans_have_geometric_lengths():
    """At a low rate spans hardly meet, so that runs are spans: P(length) ∝ (1 - p)^length with p near SpanBERT's 0.2."""
    masking = tight(Span, 8192, rate=0.002)
    tokens_BL = random_tokens(300, 8192)
    lengths = run_lengths(predicted(mask(masking, tokens_BL)).numpy())
    assert lengths.mean() == pytest.approx(3.8, abs=0.12)
    chances = -np.diff([*masking.survival, 0.0])
    assert chances @ np.arange(1, 11) == pytest.approx(3.8)
    assert np.allclose(chances[1:] / chances[:-1], 0.8, atol=0.002)
    counts = np.bincount(lengths, minlength=11)[1:11]
    assert counts.sum() > 0.98 * len(lengths)
    assert stats.chisquare(counts, chances * counts.sum()).pvalue > 1e-3


def test_spans_are_longer_than_chance_but_cover_as_much():
    tokens_BL = random_tokens(1000, 128)
    spans, tokens = predicted(mask(Span(), tokens_BL)).numpy(), predicted(mask(Bernoulli(), tokens_BL)).numpy()
    assert run_lengths(spans).mean() > 3 * run_lengths(tokens).mean()
    assert spans.mean() == pytest.approx(tokens.mean(), rel=0.05)


def test_spans_of_length_one_are_independent_tokens():
    predicted_BL = predicted(mask(Span(mean_length=1, max_length=1), random_tokens(4000, 64))).numpy()
    both = predicted_BL[:, 1:] & predicted_BL[:, :-1]
    assert both.mean() == pytest.approx(0.15**2, rel=0.03)


def test_special_tokens_interrupt_spans():
    """What follows a special token is covered as often as anything else, and independently of what precedes it."""
    tokens_BL = random_tokens(40_000, 21)
    tokens_BL[:, 10] = SEP
    predicted_BL = predicted(mask(Span(rate=0.7), tokens_BL)).numpy()
    assert not predicted_BL[:, 10].any()
    for position in (0, 9, 11, 12, 20):
        assert_share(int(predicted_BL[:, position].sum()), 40_000, 0.7)
    assert abs(np.corrcoef(predicted_BL[:, 9], predicted_BL[:, 11])[0, 1]) < 4 / 200
    assert np.corrcoef(predicted_BL[:, 11], predicted_BL[:, 12])[0, 1] > 0.5


# --- more than K -------------------------------------------------------------------------------------------------------


def tight(kind, places: int, **options):
    """The kind with an artificially small K."""

    class Tight(kind):
        def num_predicted(self, seq_len: int) -> int:
            return places

    return Tight(**options)


def test_a_full_row_keeps_the_lowest_scores():
    tokens_BL = random_tokens(100, 40)
    predicted_BL = predicted(mask(tight(Bernoulli, 5, rate=0.5), tokens_BL))
    lowest_BK = _uniform(100, 40).argsort(dim=1)[:, :5]
    expected_BL = torch.zeros_like(predicted_BL).scatter_(1, lowest_BK, True)
    assert torch.equal(predicted_BL, expected_BL & (_uniform(100, 40) < 0.5))


@pytest.mark.parametrize("kind", [Span, WholeWord])
def test_a_full_row_drops_whole_words(kind):
    tokens_BL = random_tokens(300, 60)
    batch = mask(tight(kind, 8, rate=0.4), tokens_BL, WORDS)
    assert batch.positions_BK.shape == (300, 8)
    cut = 0
    for predicted_L, words_L in zip(predicted(batch).numpy(), np.array(word_numbers(tokens_BL)), strict=True):
        assert 1 <= predicted_L.sum() <= 8
        cut += not predicted_L[np.isin(words_L, words_L[predicted_L])].all()
    assert cut <= 1  # only where the first word that is chosen has more than 8 tokens


def test_only_a_word_longer_than_all_places_is_cut():
    tokens_BL = torch.full((20, 12), 99)
    tokens_BL[:, 0] = FIRST_REGULAR
    batch = mask(tight(WholeWord, 5, rate=1), tokens_BL, WORDS)
    assert batch.positions_BK.tolist() == [[0, 1, 2, 3, 4]] * 20


# --- evaluation and mistakes -------------------------------------------------------------------------------------------


@EVERY_KIND
def test_frozen_shows_nothing_but_mask_at_the_same_places(masking):
    tokens_BL = random_tokens(100, 64)
    frozen, training = mask(masking.frozen(), tokens_BL), mask(masking, tokens_BL)
    assert torch.equal(frozen.labels_BL, training.labels_BL)
    assert (frozen.input_ids_BL[predicted(frozen)] == MASK).all()
    assert type(masking.frozen()) is type(masking)


@RATED
def test_frozen_at_another_rate(kind):
    masking = kind(rate=0.15)
    assert masking.frozen(0.3) == kind(rate=0.3, mask_share=1.0, random_share=0.0)
    assert masking.rate == 0.15
    with pytest.raises(ValueError, match=r"eval\.mask_rates=1\.5"):
        masking.frozen(1.5)


def test_single_has_no_other_rate():
    with pytest.raises(ValueError, match=r"eval\.mask_rates.*0\.3.*eval\.masking=bernoulli"):
        Single().frozen(rate=0.3)


@RATED
@pytest.mark.parametrize("rate", [0, -0.1, 1.5, math.nan, math.inf, True, "0.15", None])
def test_bad_rates_are_refused(kind, rate):
    with pytest.raises(ValueError, match=r"masking\.rate=.*(above 0 and at most 1|should be a number .*); .* such as 0\.15"):
        kind(rate=rate)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Bernoulli, {"mask_share": 1.1}, r"masking\.mask_share=1\.1"),
        (Bernoulli, {"mask_share": "all"}, r"masking\.mask_share='all'"),
        (Single, {"random_share": -0.1}, r"masking\.random_share=-0\.1"),
        (
            WholeWord,
            {"mask_share": 0.8, "random_share": 0.3},
            r"add up to more than 1; set masking\.random_share to at most 0\.2",
        ),
        (Span, {"max_length": 0}, r"masking\.max_length=0"),
        (Span, {"max_length": 2.5}, r"masking\.max_length=2\.5"),
        (Span, {"mean_length": 0.5}, r"masking\.mean_length=0\.5"),
        (Span, {"max_length": 4}, r"masking\.mean_length=3\.8: must be from 1 to 2\.5"),
    ],
)
def test_bad_values_name_key_and_remedy(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_mask_share_one_needs_no_other_change():
    tokens_BL = random_tokens(10, 32)
    batch = mask(Bernoulli(mask_share=1), tokens_BL)
    assert (batch.input_ids_BL[predicted(batch)] == MASK).all()

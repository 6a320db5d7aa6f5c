"""Sums do not care how rows were cut into batches; at the oracle itself nothing is in excess."""

import math

import pytest
import torch
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, MLMBatch
from mlm_lightning.metrics import MetricSums, masked_cross_entropy, perplexity

ROWS, K, V = 12, 4, 5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def split(generator) -> tuple[Tensor, MLMBatch, Tensor]:
    """Logits, a batch of 12 rows with 1 to 4 predicted positions each, and a posterior."""
    return random_split(ROWS, generator)


def random_split(rows: int, generator: torch.Generator) -> tuple[Tensor, MLMBatch, Tensor]:
    labels_BK = torch.randint(V, (rows, K), generator=generator)
    unused_BK = torch.arange(K) > torch.randint(K, (rows, 1), generator=generator)
    labels_BK = labels_BK.masked_fill(unused_BK, IGNORE_INDEX)
    logits_BKV = torch.randn((rows, K, V), generator=generator)
    probs_BKV = torch.randn((rows, K, V), generator=generator, dtype=torch.float64).softmax(-1)
    return logits_BKV, batch_of(labels_BK), probs_BKV


def batch_of(labels_BK: Tensor, row_ids_B: Tensor | None = None) -> MLMBatch:
    """A batch whose every position is a place for a prediction."""
    positions_BK = torch.arange(labels_BK.shape[1]).expand_as(labels_BK)
    row_ids_B = torch.arange(len(labels_BK)) if row_ids_B is None else row_ids_B
    return MLMBatch(torch.zeros_like(labels_BK), labels_BK, None, positions_BK, row_ids_B)


def rows_of(batch: MLMBatch, rows: slice | Tensor) -> MLMBatch:
    return MLMBatch(*(None if each is None else each[rows] for each in batch))


def computed(logits_BKV: Tensor, batch: MLMBatch, probs_BKV: Tensor | None, cuts: list[int]) -> dict[str, float]:
    """The metrics of rows that were cut into batches of these sizes."""
    sums = MetricSums()
    start = 0
    for size in cuts:
        rows = slice(start, start + size)
        sums.update(logits_BKV[rows], rows_of(batch, rows), None if probs_BKV is None else probs_BKV[rows])
        start += size
    assert start == len(logits_BKV)
    return sums.compute(with_oracle=probs_BKV is not None)


def test_masked_cross_entropy_by_hand():
    probs_BKV = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]]])
    labels_BK = torch.tensor([[1, 2], [0, IGNORE_INDEX]])
    loss_sum, predicted = masked_cross_entropy(probs_BKV.log(), labels_BK)
    assert loss_sum.item() == pytest.approx(-(math.log(0.25) + math.log(0.8) + math.log(0.2)))
    assert predicted.item() == 3


def test_a_batch_without_predictions_has_zero_loss_and_zero_gradient():
    logits_BKV = torch.randn(2, 3, 4, requires_grad=True)
    loss_sum, predicted = masked_cross_entropy(logits_BKV, torch.full((2, 3), IGNORE_INDEX))
    loss_sum.backward()
    assert loss_sum.item() == predicted.item() == 0
    assert (logits_BKV.grad == 0).all()


def test_half_precision_logits_are_summed_in_float32():
    logits_BKV = torch.zeros(64, 64, 7, dtype=torch.bfloat16)
    loss_sum, _ = masked_cross_entropy(logits_BKV, torch.zeros(64, 64, dtype=torch.long))
    assert loss_sum.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(64 * 64 * math.log(7), rel=1e-5)


def test_every_metric_by_hand(split):
    logits_BKV, batch, probs_BKV = split
    log_probs_BKV, counts = logits_BKV.double().log_softmax(-1), []
    for b in range(ROWS):
        for k in range(K):
            label = int(batch.labels_BL[b, k])
            if label != IGNORE_INDEX:
                own, best = log_probs_BKV[b, k], probs_BKV[b, k].log()
                kl = sum(math.exp(best[v]) * float(best[v] - own[v]) for v in range(V))
                counts.append([-own[label], own.argmax() == label, -best[label], best.argmax() == label, kl])
    loss, accuracy, oracle_loss, oracle_accuracy, kl = torch.tensor(counts).mean(0).tolist()
    metrics = computed(*split, [ROWS])
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert metrics["oracle_loss"] == pytest.approx(oracle_loss, rel=1e-5)
    assert metrics["excess_loss"] == pytest.approx(loss - oracle_loss, rel=1e-5)
    assert metrics["oracle_accuracy"] == pytest.approx(oracle_accuracy)
    assert metrics["kl_to_oracle"] == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize("cuts", [[1] * 12, [5, 7], [1, 2, 9], [3, 3, 3, 3]])
def test_how_rows_are_cut_into_batches_changes_nothing(split, cuts):
    assert computed(*split, cuts) == pytest.approx(computed(*split, [ROWS]), rel=1e-12)


def test_the_sums_of_two_ranks_add_up(split):
    logits_BKV, batch, probs_BKV = split
    whole, ranks = MetricSums(), [MetricSums(), MetricSums()]
    whole.update(logits_BKV, batch, probs_BKV)
    for rank, sums in enumerate(ranks):
        rows = torch.arange(rank, ROWS, 2)
        sums.update(logits_BKV[rows], rows_of(batch, rows), probs_BKV[rows])
    ranks[0].vector += ranks[1].vector
    assert ranks[0].compute(True) == pytest.approx(whole.compute(True), rel=1e-12)


def test_rows_that_only_fill_up_a_batch_count_nothing(split):
    logits_BKV, batch, probs_BKV = split
    filler = torch.full((3, K), IGNORE_INDEX)
    padded = batch_of(torch.cat([batch.labels_BL, filler]), torch.cat([batch.row_ids_B, torch.full((3,), PADDING_ROW)]))
    more_BKV = torch.cat([logits_BKV, torch.randn(3, K, V)])
    # whatever the oracle says there: a row of zeros has no posterior
    more_probs_BKV = torch.cat([probs_BKV, torch.zeros(3, K, V, dtype=torch.float64)])
    assert computed(more_BKV, padded, more_probs_BKV, [15]) == pytest.approx(computed(*split, [ROWS]), rel=1e-12)


def test_a_model_that_is_the_oracle_has_no_excess(generator):
    logits_BKV, batch, _ = random_split(40, generator)
    metrics = computed(logits_BKV, batch, logits_BKV.double().softmax(-1), [40])
    assert metrics["excess_loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["kl_to_oracle"] == pytest.approx(0, abs=1e-6)
    assert metrics["excess_loss_se"] == pytest.approx(0, abs=1e-6)
    assert metrics["oracle_accuracy"] == metrics["accuracy"]


def test_kl_where_the_oracle_excludes_tokens():
    """Zero probabilities add nothing: KL of (1/2, 1/2, 0, 0) to the uniform distribution over four is log 2."""
    labels_BK = torch.tensor([[0, 1]])
    probs_BKV = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).expand(1, 2, 4)
    metrics = computed(torch.zeros(1, 2, 4), batch_of(labels_BK), probs_BKV, [1])
    assert metrics["kl_to_oracle"] == pytest.approx(math.log(2))
    assert metrics["excess_loss"] == pytest.approx(math.log(4) - math.log(2))


def test_the_standard_error_is_that_of_a_ratio_over_rows(split):
    """Cochran 1977, eq. 6.13, row by row."""
    logits_BKV, batch, probs_BKV = split
    sums_by_row = []
    for row in range(ROWS):
        rows = slice(row, row + 1)
        own = computed(logits_BKV[rows], rows_of(batch, rows), probs_BKV[rows], [1])
        n = int((batch.labels_BL[row] != IGNORE_INDEX).sum())
        sums_by_row.append((own["excess_loss"] * n, n))
    d_R, n_R = torch.tensor(sums_by_row, dtype=torch.float64).T
    residual_R = d_R - d_R.sum() / n_R.sum() * n_R
    expected = (ROWS / (ROWS - 1) * residual_R.square().sum()).sqrt() / n_R.sum()
    assert computed(*split, [4, 8])["excess_loss_se"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_standard_error_agrees_with_a_bootstrap_over_rows(generator):
    rows = 400
    logits_BKV, batch, probs_BKV = random_split(rows, generator)
    labels_BK1 = batch.labels_BL.clamp(min=0).unsqueeze(-1)
    used_BK = batch.labels_BL != IGNORE_INDEX
    excess_BK = (probs_BKV.log() - logits_BKV.double().log_softmax(-1)).gather(-1, labels_BK1).squeeze(-1) * used_BK
    drawn = torch.randint(rows, (4000, rows), generator=generator)
    resampled = excess_BK.sum(-1)[drawn].sum(-1) / used_BK.sum(-1)[drawn].sum(-1)
    assert computed(logits_BKV, batch, probs_BKV, [rows])["excess_loss_se"] == pytest.approx(resampled.std().item(), rel=0.06)


def test_one_row_has_no_standard_error(split):
    logits_BKV, batch, probs_BKV = split
    assert math.isnan(computed(logits_BKV[:1], rows_of(batch, slice(0, 1)), probs_BKV[:1], [1])["excess_loss_se"])


def test_nothing_predicted_is_not_a_number_and_no_perfect_score():
    metrics = MetricSums().compute(with_oracle=True)
    assert all(math.isnan(value) for value in metrics.values())


def test_without_an_oracle_nothing_is_said_about_one(split):
    logits_BKV, batch, _ = split
    assert set(computed(logits_BKV, batch, None, [ROWS])) == {"loss", "perplexity", "accuracy"}


def test_perplexity_is_exp():
    assert perplexity(0.0) == 1.0
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


class TestNGrams:
    @pytest.fixture
    def counted(self, split, generator) -> dict[str, Tensor]:
        """Losses of counts at the predicted positions."""
        used_BK = split[1].labels_BK != IGNORE_INDEX
        loss_BK = torch.rand((ROWS, K), generator=generator, dtype=torch.float64) * used_BK
        return {"unigram_loss": loss_BK + 2 * used_BK, "bigram_loss": loss_BK, "unigram_correct": (loss_BK > 0.5).double()}

    def test_means_over_predicted_tokens(self, split, counted):
        sums, tokens = MetricSums(), int((split[1].labels_BK != IGNORE_INDEX).sum())
        sums.update(*split[:2], ngram_losses=counted)
        metrics = sums.compute(with_oracle=False, with_ngrams=True)
        counts = {"unigram_loss", "bigram_loss", "unigram_accuracy", "gain_over_unigram"}
        assert set(metrics) == {"loss", "perplexity", "accuracy"} | counts
        assert metrics["unigram_loss"] == pytest.approx(counted["unigram_loss"].sum().item() / tokens)
        assert metrics["bigram_loss"] == pytest.approx(metrics["unigram_loss"] - 2)
        assert metrics["unigram_accuracy"] == pytest.approx(counted["unigram_correct"].sum().item() / tokens)
        assert metrics["gain_over_unigram"] == pytest.approx(metrics["unigram_loss"] - metrics["loss"])

    def test_all_else_is_as_without_them(self, split, counted):
        with_them, without = MetricSums(), MetricSums()
        with_them.update(*split, counted)
        without.update(*split)
        assert with_them.compute(with_oracle=True) == without.compute(with_oracle=True)

    @pytest.mark.parametrize("parts", [[[0, 1, 2], list(range(3, ROWS))], [list(range(0, ROWS, 2)), list(range(1, ROWS, 2))]])
    def test_batches_and_ranks_change_nothing(self, split, counted, parts):
        logits_BKV, batch, _ = split
        whole, ranks = MetricSums(), [MetricSums() for _ in parts]
        whole.update(logits_BKV, batch, None, counted)
        for sums, part in zip(ranks, parts, strict=True):
            rows = torch.tensor(part)
            sums.update(logits_BKV[rows], rows_of(batch, rows), None, {name: each[rows] for name, each in counted.items()})
        ranks[0].vector += ranks[1].vector
        assert ranks[0].compute(False, True) == pytest.approx(whole.compute(False, True), rel=1e-12)

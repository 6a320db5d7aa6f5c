"""What is said of runs that have learned no more than counting gives."""

import pytest

from mlm_lightning.report.learned import LEARN_MORE, LEAST_GAIN, shortfall, shortfalls


def of(loss: float) -> dict[str, float]:
    return {"val/loss": loss, "val/unigram_loss": 6.5, "val/bigram_loss": 5.0}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (6.7, "not even"),
        (6.55, "no more"),
        (6.5 - LEAST_GAIN + 1e-9, "no more"),
        (6.3, "pairs of neighbours"),
        (5.0, "pairs of neighbours"),
        (4.99, None),
    ],
)
def test_beside_what_counting_gives(loss, said):
    found = shortfall(of(loss))
    assert found is None if said is None else found is not None and said in found


@pytest.mark.parametrize(("loss", "said"), [(1.95, None), (2.01, "no more"), (1.99, "less than counting pairs")])
def test_little_is_much_where_there_is_little_to_learn(loss, said):
    """Of a hidden Markov model, 0.07 nats below the unigram's loss are half of the way to the optimum."""
    found = shortfall({"val/loss": loss, "val/unigram_loss": 2.02, "val/bigram_loss": 1.98, "val/oracle_loss": 1.88})
    assert found is None if said is None else found is not None and said in found


@pytest.mark.parametrize("summary", [{}, {"val/loss": 9.0}, {"val/loss": 9.0, "val/oracle_loss": 1.0, "val/excess_loss": 8.0}])
def test_nothing_where_nothing_is_counted(summary):
    assert shortfall(summary) is None


def test_of_several_runs_how_many():
    assert shortfalls([of(6.0), of(4.0), of(6.5)])[0].startswith("2 of 3 runs")
    assert shortfalls([of(4.0), of(3.0)]) == []
    assert shortfalls([of(6.0)]) == [shortfall(of(6.0)), LEARN_MORE]

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


@pytest.mark.parametrize("summary", [{}, {"val/loss": 9.0}, {"val/loss": 9.0, "val/oracle_loss": 1.0, "val/excess_loss": 8.0}])
def test_nothing_where_nothing_is_counted(summary):
    assert shortfall(summary) is None


def test_of_several_runs_how_many():
    assert shortfalls([of(6.0), of(4.0), of(6.5)])[0].startswith("2 of 3 runs")
    assert shortfalls([of(4.0), of(3.0)]) == []
    assert shortfalls([of(6.0)]) == [shortfall(of(6.0)), LEARN_MORE]

"""Groups are compared under one condition at a time, by differences whose intervals are scipy's."""

import json
import math
from pathlib import Path

import pytest
import scipy.stats
from made_runs import evaluation_of, make_grid, make_rates, make_run, summary_of

from mlm_lightning.report.answer import answer
from mlm_lightning.report.compare import Difference
from mlm_lightning.report.page import show_runs
from mlm_lightning.report.results import collect
from mlm_lightning.report.study import Study, study
from mlm_lightning.report.tables import paired_table, short_table


def opened(folder: Path) -> Study:
    return study(collect([str(folder)]))


ONE, OTHER = [0.981, 0.987, 1.002], [1.050, 1.054, 1.081]


def two_groups(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Difference:
    """The difference of learning rate 0.2, with these seeds, to 0.1 with the seeds 0, 1, 2."""
    for lr, losses, theirs in ((0.1, ONE, (0, 1, 2)), (0.2, OTHER, seeds)):
        for loss, seed in zip(losses, theirs, strict=False):
            make_run(folder / f"{lr},{seed}", {"optim.lr": lr, "seed": seed}, summary_of(loss))
    (standing,) = opened(folder).standings
    assert standing.best.values == {"optim.lr": 0.1}
    (found,) = standing.differences
    assert found is not None
    return found


def test_the_paired_interval_is_scipys(tmp_path: Path) -> None:
    found = two_groups(tmp_path)
    expected = scipy.stats.ttest_rel(OTHER, ONE)
    low, high = expected.confidence_interval(0.95)
    assert found.paired
    assert (found.mean - found.half, found.mean + found.half, found.n) == pytest.approx((low, high, 3))
    assert found.is_clear == (expected.pvalue < 0.05)
    # by hand: the differences are 0.069, 0.067 and 0.079
    assert found.mean == pytest.approx(0.215 / 3)
    assert found.half == pytest.approx(4.3026527 * 0.0064291 / math.sqrt(3), rel=1e-4)


def test_other_seeds_make_it_unpaired(tmp_path: Path) -> None:
    found = two_groups(tmp_path, seeds=(3, 4, 5))
    assert not found.paired
    expected = scipy.stats.ttest_ind(OTHER, ONE, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    error = (high - low) / 2 / scipy.stats.t.ppf(0.975, expected.df)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half == pytest.approx(error * scipy.stats.t.ppf(0.975, math.floor(expected.df)))
    assert "not paired (Welch’s)" in " ".join(answer(opened(tmp_path)))


def test_a_seed_that_one_group_lacks_makes_it_unpaired(tmp_path: Path) -> None:
    found = two_groups(tmp_path, seeds=(0, 1))
    assert (found.paired, found.n) == (False, 2)


def test_one_run_a_group_has_no_interval(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2], seeds=[0])
    (standing,) = opened(tmp_path).standings
    (found,) = standing.differences
    assert found is not None
    assert (found.mean, found.n, found.is_clear) == (pytest.approx(0.1), 1, False)
    assert math.isnan(found.half)
    assert paired_table(opened(tmp_path)).rows == [["0.1", "best"], ["0.2", "+0.1000 (n = 1)"]]


def rates(folder: Path, at_high_rate: tuple[float, float]) -> Study:
    """Two rates, two seeds; `at_high_rate` are the losses of both groups at rate 0.4."""
    shift = {(0.1, 0): 0.0, (0.1, 1): 0.01, (0.4, 0): 0.0, (0.4, 1): 0.0101}
    losses = {0.1: (0.7, at_high_rate[0]), 0.4: (0.8, at_high_rate[1])}
    measured = {
        (rate, seed): {"rate_0.10": losses[rate][0] + more, "rate_0.40": losses[rate][1] + more}
        for (rate, seed), more in shift.items()
    }
    make_rates(folder, measured)
    return opened(folder)


def test_a_group_that_wins_under_all_conditions_is_named(tmp_path: Path) -> None:
    found = rates(tmp_path, (1.1, 1.2))
    assert found.conditions == ["rate_0.10", "rate_0.40"]
    assert found.winner is not None
    said = answer(found)
    assert said[0] == "masking.rate=0.1 is best under all 2 conditions, told apart from every other group."
    assert "At mask rate 0.40: masking.rate=0.1, 1.1050 ± 0.0635 nats a token." in said
    assert any(line.startswith("Differences are paired by seed") for line in said)


def test_where_conditions_disagree_no_winner_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in words nor by a star on a run that is best at its own, easier, task."""
    found = rates(tmp_path, (1.2, 1.1))
    assert (found.winner, found.best) == (None, None)
    headline = answer(found)[0]
    assert headline.startswith("No masking.rate is best under all 2 conditions: it depends on the condition")
    header, rows = short_table(found)[0]
    columns = [header.index(name) for name in ("rate_0.10", "rate_0.40")]
    assert [[row[column] for column in columns] for row in rows] == [
        ["0.7000 *", "1.2000"],
        ["0.7100", "1.2100"],
        ["0.8000", "1.1000 *"],
        ["0.8101", "1.1101"],
    ]
    show_runs(found)
    assert capsys.readouterr().out.count("*") == 2


def test_a_lead_that_may_be_chance_is_not_told_apart(tmp_path: Path) -> None:
    losses = {(0.1, 0): 0.70, (0.1, 1): 0.75, (0.4, 0): 0.74, (0.4, 1): 0.72}
    make_rates(tmp_path, {run: {"rate_0.10": loss} for run, loss in losses.items()})
    found = opened(tmp_path)
    said = answer(found)
    assert said[0].endswith("but is told apart from every other group under 0 of 1.")
    assert "; not told apart from the other." in said[1]
    # of 0.04 and -0.03: 0.005 ± 12.706 * 0.0495 / √2
    assert paired_table(found).rows == [["0.1", "best"], ["0.4", "+0.0050 ± 0.4447"]]


def test_the_excess_ranks_nothing_across_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One model's excess falls with the rate: of equal weights, the run that was asked most would seem the best."""
    for rate, excess in ((0.1, 0.278), (0.2, 0.262), (0.4, 0.203)):
        make_run(tmp_path / str(rate), {"masking.rate": rate}, summary_of(0.9 + rate + excess, 0.9 + rate))
    found = opened(tmp_path)
    assert found.standings == []
    said = " ".join(answer(found))
    assert said.startswith("No masking.rate is named best: masking.rate changes the task")
    assert "masking.rate=" not in said
    show_runs(found)
    assert "*" not in capsys.readouterr().out


def test_a_condition_that_some_run_lacks_is_not_common(tmp_path: Path) -> None:
    make_rates(tmp_path, {(0.1, 0): {"rate_0.10": 0.7, "rate_0.40": 1.0}, (0.4, 0): {"rate_0.40": 0.9}})
    assert opened(tmp_path).conditions == ["rate_0.40"]
    assert answer(opened(tmp_path))[0].startswith("masking.rate=0.4 has the lowest validation loss under mask rate 0.40")


def test_stale_evaluations_are_left_out(tmp_path: Path) -> None:
    make_rates(tmp_path, {(0.1, 0): {"rate_0.10": 0.7}, (0.4, 0): {"rate_0.10": 0.9}})
    stale = evaluation_of("rate_0.10", 0.1, steps=200)
    (tmp_path / "0.4,0" / "evaluations.json").write_text(json.dumps(stale))
    assert opened(tmp_path).conditions == []

"""Metrics are compared only where they may be, beside the oracle's limit of the same condition; intervals are Student's."""

import math
from pathlib import Path

import pytest
import scipy.stats
from made_runs import ORACLE, make_grid, make_run, make_sweep, summary_of

from mlm_lightning.errors import UserError
from mlm_lightning.report.metric import Interval, Metric, interval, limit_of, t_quantile
from mlm_lightning.report.results import Result, collect
from mlm_lightning.report.study import Study, conditions_of, study


def opened(folder: Path, metric: str | None = None) -> Study:
    return study(collect([str(folder)]), metric)


def test_what_changes_the_question_is_compared_under_shared_conditions(tmp_path: Path) -> None:
    for rate, loss, shared in ((0.1, 0.5, 1.2), (0.4, 1.1, 1.0)):  # the lower rate only has the easier question
        conditions = {"rate_0.15": shared, "rate_0.50": shared + 0.2}
        make_run(tmp_path / str(rate), {"masking.rate": rate}, summary_of(loss, **conditions))
    found = opened(tmp_path)
    assert found.conditions == ["rate_0.15", "rate_0.50"]
    assert found.metric.columns == ("val/loss_rate_0.15", "val/loss_rate_0.50")
    assert found.name(found.ranked[0]) == "masking.rate=0.4"
    assert found.metric.of(found.ranked[0].results[0]) == pytest.approx(1.1)
    assert "masking.rate" in found.metric.note


@pytest.mark.parametrize(
    ("key", "oracle", "column"),
    [
        ("data.filter_level", ORACLE, "val/excess_loss"),
        ("data.filter_level", None, "val/loss"),
        ("optim.lr", ORACLE, "val/loss"),
        ("data.batch_size", ORACLE, "val/loss"),
    ],
)
def test_without_them_the_excess_is_compared_where_the_question_changes(
    tmp_path: Path, key: str, oracle: float | None, column: str
) -> None:
    for value in (1, 2):
        make_run(tmp_path / str(value), {key: value}, summary_of(1.0 + value / 10, oracle))
    found = opened(tmp_path)
    assert found.metric.columns == (column,)
    assert bool(found.metric.note) == (key == "data.filter_level")


def test_a_sweep_is_judged_by_its_objective(tmp_path: Path) -> None:
    for n in range(3):
        make_run(tmp_path / str(n), {"masking.rate": 0.1 + n / 10}, summary_of(1.0 + n / 10))
    jobs = [(str(n), []) for n in range(3)]
    make_sweep(tmp_path, jobs, ["masking.rate"], objective="val/accuracy", direction="maximize")
    found = opened(tmp_path)
    assert (found.metric.columns, found.metric.maximize) == (("val/accuracy",), True)
    assert found.best is not None
    assert found.best.name == "0"
    assert opened(tmp_path, "val/loss").metric == Metric(("val/loss",))
    make_sweep(tmp_path, jobs, ["masking.rate"], objective="val/loss_rate_0.15")
    assert opened(tmp_path).metric.columns == ("val/excess_loss",)  # no run has the objective


def test_an_unknown_metric_is_a_mistake(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2])
    with pytest.raises(UserError, match=r"val/acuracy.*did you mean 'val/accuracy'"):
        opened(tmp_path, "val/acuracy")


def test_the_limit_belongs_to_the_metric_and_its_condition() -> None:
    summary = {"val/oracle_loss": 0.5, "val/oracle_loss_k1": 0.7, "val/oracle_accuracy": 0.8}
    result = Result(Path(), "", "complete", summary=summary)
    assert limit_of(result, "val/loss") == limit_of(result, "best/val/loss") == 0.5
    assert limit_of(result, "val/loss_k1") == 0.7
    assert limit_of(result, "val/accuracy") == 0.8
    assert limit_of(result, "val/perplexity_k1") == math.exp(0.7)
    assert limit_of(result, "val/excess_loss") == 0.0
    assert math.isnan(limit_of(result, "val/loss_k2"))
    assert math.isnan(limit_of(result, "tokens_per_second"))


def test_conditions_are_those_of_every_run_in_natural_order() -> None:
    names = ["k10", "k2", "k0", "rate_0.50", "rate_0.15"]
    one, other = ({f"val/loss_{name}": 1.0 for name in chosen} for chosen in (names, [*names[1:], "k7"]))
    runs = [Result(Path(), "", "complete", summary=summary | {"val/loss": 1.0}) for summary in (one, other)]
    assert conditions_of(runs[:1]) == ["k0", "k2", "k10", "rate_0.15", "rate_0.50"]
    assert conditions_of(runs) == ["k0", "k2", "rate_0.15", "rate_0.50"]


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 29, 30, 101, 500])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_the_quantile_is_students(df: int, share: float) -> None:
    assert t_quantile(df, share) == pytest.approx(scipy.stats.t.ppf((1 + share) / 2, df), rel=1e-10)


def test_the_interval_is_scipys() -> None:
    values = [0.98, 1.03, 0.99, 1.11]
    found = interval(values)
    assert found is not None
    low, high = scipy.stats.t.interval(0.95, 3, loc=scipy.stats.tmean(values), scale=scipy.stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half, found.n) == pytest.approx((low, high, 4))


def test_one_value_has_no_interval_and_no_value_none() -> None:
    found = interval([1.5, math.nan])
    assert found is not None
    assert (found.mean, found.n) == (1.5, 1)
    assert math.isnan(found.half)
    assert interval([math.nan, math.inf]) is None
    assert Interval(1.0, 0.1, 2).overlaps(Interval(1.05, math.nan, 1))
    assert not Interval(1.0, 0.01, 2).overlaps(Interval(1.05, math.nan, 1))


def test_numbers_beyond_all_bounds_are_no_error() -> None:
    found = interval([1e308, 1.5e308, -1.7e308])
    assert found is not None
    assert found.n == 3

"""Metrics are compared only where they may be, beside the oracle's limit of the same condition; intervals are Student's."""

import math
from pathlib import Path

import pytest
import scipy.stats
from made_runs import ORACLE, make_grid, make_run, make_sweep, summary_of

from mlm_lightning.errors import UserError
from mlm_lightning.report.metric import Metric, interval, label, limit_of, t_quantile
from mlm_lightning.report.results import Result, collect
from mlm_lightning.report.study import Study, conditions_of, study


def opened(folder: Path, metric: str | None = None) -> Study:
    return study(collect([str(folder)]), metric)


@pytest.mark.parametrize(
    ("key", "oracle", "columns"),
    [
        ("data.filter_level", ORACLE, []),
        ("masking.rate", ORACLE, []),
        ("masking._target_", None, []),
        ("optim.lr", ORACLE, ["val/loss"]),
        ("data.batch_size", ORACLE, ["val/loss"]),
        ("masking.mask_share", ORACLE, ["val/loss"]),
    ],
)
def test_tasks_without_a_common_condition_are_not_compared(
    tmp_path: Path, key: str, oracle: float | None, columns: list[str]
) -> None:
    for value in (0.1, 0.2):
        make_run(tmp_path / str(value), {key: value}, summary_of(1.0 + value / 10, oracle))
    found = opened(tmp_path)
    assert [metric.name for metric in found.metrics] == columns
    assert bool(found.tasks) == (not columns)
    assert (found.winner is None) == (found.best is None) == (not columns)


def test_further_mask_rates_are_common_conditions_of_one_data_alone(tmp_path: Path) -> None:
    for folder, key in (("rates", "masking.rate"), ("levels", "data.filter_level")):
        for value in (0.1, 0.4):
            summary = summary_of(1.0 + value, **{"rate_0.15": 1.0 - value, "rate_0.50": 1.2 - value})
            make_run(tmp_path / folder / str(value), {key: value}, summary)
    found = opened(tmp_path / "rates")
    assert [metric.name for metric in found.metrics] == ["val/loss_rate_0.15", "val/loss_rate_0.50"]
    assert found.winner is not None
    assert found.name(found.winner) == "masking.rate=0.4"
    # at each run's own filter level
    assert opened(tmp_path / "levels").metrics == []


def test_further_data_is_a_common_condition_where_it_sets_what_is_swept(tmp_path: Path) -> None:
    data = {"eval.data.k1": {"filter_level": 1}}
    for folder, key in (("levels", "data.filter_level"), ("rates", "masking.rate"), ("depths", "data.depth")):
        for value in (1, 2):
            make_run(tmp_path / folder / str(value), {key: value} | data, summary_of(1.0 * value, k1=1.0 / value))
    assert [metric.name for metric in opened(tmp_path / "levels").metrics] == ["val/loss_k1"]
    assert opened(tmp_path / "rates").metrics == []
    assert opened(tmp_path / "depths").metrics == []


def test_a_sweep_is_judged_by_the_objective_that_was_chosen(tmp_path: Path) -> None:
    for n in range(3):
        make_run(tmp_path / str(n), {"masking.rate": 0.1 + n / 10}, summary_of(1.0 + n / 10))
    jobs = [(str(n), []) for n in range(3)]
    make_sweep(tmp_path, jobs, ["masking.rate"], objective="val/accuracy", direction="maximize")
    found = opened(tmp_path)
    assert [(metric.name, metric.maximize) for metric in found.metrics] == [("val/accuracy", True)]
    assert "own task, which masking.rate changes" in found.metric.note
    assert found.best is not None
    assert found.best.name == "0"
    assert [metric.name for metric in opened(tmp_path, "val/loss").metrics] == ["val/loss"]
    make_sweep(tmp_path, jobs, ["masking.rate"], objective="val/loss_rate_0.15")
    assert opened(tmp_path).metrics == []  # no run has the objective
    make_sweep(tmp_path, jobs, ["masking.rate"])
    assert opened(tmp_path).metrics == []  # val/loss, which nobody chose
    make_sweep(tmp_path, jobs, ["masking.rate"], objective_chosen=True)
    assert [metric.name for metric in opened(tmp_path).metrics] == ["val/loss"]


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


def test_what_counting_gives_belongs_to_the_metric_and_its_condition() -> None:
    summary = {"val/unigram_loss": 6.5, "val/bigram_loss": 5.0, "val/unigram_loss_k1": 6.0, "val/oracle_loss": 1.0}
    result = Result(Path(), "", "complete", summary=summary)
    assert Metric("val/loss").counted(result, "unigram") == Metric("best/val/loss").counted(result, "unigram") == 6.5
    assert Metric("val/loss").counted(result, "bigram") == 5.0
    assert Metric("val/loss_k1").counted(result, "unigram") == 6.0
    assert Metric("val/perplexity").counted(result, "bigram") == math.exp(5.0)
    for name in ("val/accuracy", "val/gain_over_unigram", "val/loss_k2", "seconds"):
        assert math.isnan(Metric(name).counted(result, "unigram"))
    assert math.isnan(limit_of(result, "val/bigram_loss"))
    assert label("val/gain_over_unigram_rate_0.30") == "gain over counting tokens, mask rate 0.30 (nats a token)"
    assert label("val/unigram_loss") == "validation loss of counting tokens (nats a token)"


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


def test_numbers_beyond_all_bounds_are_no_error() -> None:
    found = interval([1e308, 1.5e308, -1.7e308])
    assert found is not None
    assert found.n == 3

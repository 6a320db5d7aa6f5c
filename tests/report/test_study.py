"""Axes, replicates, groups and intervals are those of the runs; metrics are compared only where they may be."""

import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from made_runs import ORACLE, make_grid, make_run, make_sweep, summary_of

from mlm_lightning.errors import UserError
from mlm_lightning.report.results import Result, collect
from mlm_lightning.report.study import (
    Axis,
    Interval,
    Metric,
    Study,
    conditions_of,
    find_axes,
    interval,
    limit_of,
    shown,
    study,
    t_quantile,
)


def results(*rows: dict[str, Any]) -> list[Result]:
    return [Result(Path(str(n)), str(n), "complete", config={"a": 1}, settings=row) for n, row in enumerate(rows)]


def axes_of(rows: list[dict[str, Any]], swept: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return {axis.key: axis.also for axis in find_axes(results(*rows), swept)[0]}


def opened(folder: Path, metric: str | None = None) -> Study:
    return study(collect([str(folder)]), metric)


# intervals


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


# axes


def test_keys_that_differ_are_axes_and_seeds_replicates() -> None:
    rows = [{"lr": lr, "depth": d, "seed": s, "same": 1} for lr in (0.1, 0.2) for d in (1, 2) for s in (0, 1)]
    axes, replicates = find_axes(results(*rows))
    assert [(axis.key, axis.values) for axis in axes] == [("depth", [1, 2]), ("lr", [0.1, 0.2])]
    assert replicates == ["seed"]


@pytest.mark.parametrize("key", ["seed", "data.seed", "eval.seed", "data.grammar_seed"])
def test_whatever_ends_in_seed_makes_replicates(key: str) -> None:
    assert find_axes(results({key: 0}, {key: 1})) == ([], [key])


def test_keys_that_change_together_are_one_axis() -> None:
    rows = [{"model.d_model": d, "model.nhead": d // 16, "big": d > 50, "lr": lr} for d in (32, 48, 64) for lr in (0.1, 0.2)]
    assert axes_of(rows) == {"model.d_model": ["model.nhead", "big"], "lr": []}


def test_a_random_search_has_all_its_axes() -> None:
    # each lr comes once (and each of its seeds), so that anything is a function of it
    rows = [{"lr": 0.001 * 1.7**n, "width": 32 + n * n % 7, "seed": seed} for n in range(8) for seed in (0, 1)]
    assert axes_of(rows) == {"lr": [], "width": []}
    assert axes_of([row | {"twice": 2 * row["lr"]} for row in rows]) == {"lr": ["twice"], "width": []}


def test_what_the_sweep_names_stands_first_and_alone() -> None:
    # as far as it has come, both change together
    rows = [{"b": 1, "a": 10, "c": 5}, {"b": 2, "a": 20, "c": 6}]
    assert axes_of(rows, ("b", "a")) == {"b": ["c"], "a": []}


def test_a_swept_group_is_its_class_and_the_rest_follows() -> None:
    rows = [
        {"masking._target_": "m.Bernoulli", "masking.rate": 0.15},
        {"masking._target_": "m.Span", "masking.rate": 0.15, "masking.mean_length": 3.0},
        {"masking._target_": "m.Single"},
    ]
    for swept in ((), ("masking",)):
        (axis,), _ = find_axes(results(*rows), swept)
        assert (axis.key, axis.name) == ("masking._target_", "masking")
        assert axis.also == ["masking.mean_length", "masking.rate"]


def test_equal_numbers_are_equal_but_true_is_not_one() -> None:
    assert axes_of([{"a": 1}, {"a": 1.0}]) == {}
    assert axes_of([{"a": 1}, {"a": True}]) == {"a": []}
    assert axes_of([{"a": None}, {}]) == {"a": []}
    assert axes_of([{"a": [1, 2]}, {"a": [1, 3]}]) == {"a": []}


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1e-4, 1e-3, 1e-2], True),
        ([1e-3, 3e-3, 1e-2], True),
        ([0.1, 0.2, 0.4, 0.8], True),
        ([16, 32, 64], True),
        ([0.1, 0.2, 0.3, 0.4, 0.5], False),
        ([0, 1, 2, 3, 4], False),
        ([1, 2], False),
        ([0.001, 0.1], True),
        ([1.1e-4, 2.5e-4, 3e-4, 9e-4, 2e-3, 8e-3, 9e-3, 3e-2], True),  # drawn at random
        ([0.05, 0.1, 0.2, 0.3, 0.45, 0.6], False),
        (["a", "b"], False),
        ([-1, 10, 100], False),
    ],
)
def test_values_that_are_spaced_by_factors_get_a_logarithmic_axis(values: list[Any], logarithmic: bool) -> None:
    assert Axis("key", values).logarithmic == logarithmic


def test_values_are_shown_as_one_would_write_them() -> None:
    shown_as = {0.001: "0.001", 1e-5: "1e-05", None: "null", "mlm_lightning.masking.Span": "Span", "a.b.txt": "a.b.txt"}
    assert {value: shown(value) for value in shown_as} == shown_as
    assert [shown(True), shown([1, 2])] == ["true", "[1, 2]"]


# groups and metrics


def test_groups_are_what_differs_in_seeds_alone(tmp_path: Path) -> None:
    losses = make_grid(tmp_path, "optim.lr", [0.001, 0.01, 0.1], seeds=[0, 1, 2])
    found = opened(tmp_path)
    assert [(group.values["optim.lr"], len(group.results)) for group in found.groups] == [(0.001, 3), (0.01, 3), (0.1, 3)]
    for group in found.groups:
        assert group.interval(found.metric) == interval([losses[group.values["optim.lr"], seed] for seed in (0, 1, 2)])
        assert group.limit(found.metric) == pytest.approx(ORACLE)
    assert found.name(found.ranked[0]) == "optim.lr=0.001"
    assert found.best is not None
    assert found.best.settings["seed"] == 0
    by_accuracy = opened(tmp_path, "val/accuracy")
    assert by_accuracy.metric.maximize
    assert by_accuracy.name(by_accuracy.ranked[0]) == "optim.lr=0.001"


def test_the_best_run_is_one_of_the_best_group(tmp_path: Path) -> None:
    # one lucky seed is no better group
    for n, (lr, loss) in enumerate([(0.1, 1.0), (0.1, 1.1), (0.2, 0.9), (0.2, 1.4)]):
        make_run(tmp_path / str(n), {"optim.lr": lr, "seed": n % 2}, summary_of(loss))
    found = opened(tmp_path)
    assert found.best is not None
    assert (found.best.settings["optim.lr"], found.metric.of(found.best)) == (0.1, 1.0)


def test_runs_that_are_not_complete_are_in_no_group(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2])
    make_run(tmp_path / "going", {"optim.lr": 0.3})
    make_run(tmp_path / "broken", {"optim.lr": 0.4}, summary_json="{")
    found = opened(tmp_path)
    assert found.axes[0].values == [0.1, 0.2, 0.3, 0.4]
    assert [group.values["optim.lr"] for group in found.groups] == [0.1, 0.2]


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


def test_numbers_beyond_all_bounds_are_no_error() -> None:
    found = interval([1e308, 1.5e308, -1.7e308])
    assert found is not None
    assert found.n == 3


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

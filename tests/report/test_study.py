"""What differs among the runs is an axis, a replicate, or follows from an axis; the best run is one of the best group."""

from pathlib import Path
from typing import Any

import pytest
from made_runs import ORACLE, make_grid, make_run, summary_of

from mlm_lightning.report.groups import Axis, as_text, find_axes
from mlm_lightning.report.metric import interval
from mlm_lightning.report.results import Result, collect
from mlm_lightning.report.study import Study, study


def opened(folder: Path, metric: str | None = None) -> Study:
    return study(collect([str(folder)]), metric)


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


def results(*rows: dict[str, Any]) -> list[Result]:
    return [Result(Path(str(n)), str(n), "complete", config={"a": 1}, settings=row) for n, row in enumerate(rows)]


def axes_of(rows: list[dict[str, Any]], swept: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return {axis.key: axis.also for axis in find_axes(results(*rows), swept)[0]}


def test_keys_that_differ_are_axes_and_seeds_replicates() -> None:
    rows = [{"lr": lr, "depth": d, "seed": s, "same": 1} for lr in (0.1, 0.2) for d in (1, 2) for s in (0, 1)]
    axes, replicates = find_axes(results(*rows))
    assert [(axis.key, axis.values) for axis in axes] == [("depth", [1, 2]), ("lr", [0.1, 0.2])]
    assert replicates == ["seed"]


@pytest.mark.parametrize("key", ["seed", "data.seed", "eval.seed", "data.grammar_seed"])
def test_whatever_ends_in_seed_makes_replicates(key: str) -> None:
    assert find_axes(results({key: 0}, {key: 1})) == ([], [key])


def test_a_seed_that_languages_have_or_not_repeats_none() -> None:
    keys = [("tree.TreeSource", 1), ("markov.MarkovSource", 0), ("urn.UrnSource", None)]
    rows = [{"data._target_": name, "data.grammar_seed": own, "seed": seed} for name, own in keys for seed in (0, 1)]
    ((axis,), replicates) = find_axes(results(*rows), ("data", "seed"))
    assert (axis.name, axis.also, axis.noted, replicates) == ("data", ["data.grammar_seed"], [], ["seed"])
    # one that differs within a language does
    _, replicates = find_axes(results(*rows, rows[0] | {"data.grammar_seed": 7}), ("data", "seed"))
    assert replicates == ["data.grammar_seed", "seed"]


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


def test_values_are_texts_one_would_write_them() -> None:
    texts = {
        0.001: "0.001",
        1e-5: "1e-05",
        None: "null",
        "mlm_lightning.masking.Span": "span",
        "a.b.Mine": "Mine",
        "a.b.txt": "a.b.txt",
    }
    assert {value: as_text(value) for value in texts} == texts
    assert [as_text(True), as_text([1, 2])] == ["true", "[1, 2]"]


def test_a_value_that_identities_leave_out_has_its_name(tmp_path: Path) -> None:
    """It is in the config of a run, or, of an earlier version, not even there: both were done as it says."""
    for seed, settings in enumerate([{"masking.hiding": "token"}, {}, {"masking.hiding": "both"}]):
        make_run(tmp_path / str(seed), {**settings, "seed": seed}, summary_of(1.0))
    found = study(collect([str(tmp_path)]))
    assert [found.name(group) for group in found.groups] == ["masking.hiding=both", "masking.hiding=token"]
    assert [len(group.results) for group in found.groups] == [1, 2]

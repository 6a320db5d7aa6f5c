"""Groups are the runs that differ in seeds alone, and the best run is one of the best group."""

from pathlib import Path

import pytest
from made_runs import ORACLE, make_grid, make_run, summary_of

from mlm_lightning.report.metric import interval
from mlm_lightning.report.results import collect
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

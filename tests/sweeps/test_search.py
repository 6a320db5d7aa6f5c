"""A search goes on where it was, proposes what an uninterrupted one proposes, and gives up on what falls behind."""

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from conftest import TOY
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mlm_lightning.__main__ import main
from mlm_lightning.config.compose import composer
from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.study import open_study
from mlm_lightning.sweeps.jobs import distribution

SPACE = ("optim.lr=tag(log, interval(1e-4, 1e-1))", "model.num_layers=choice(1,2)")
SETTINGS = SweepSettings(jobs=1, retries=0, objective="val/loss", direction="minimize", trials=1, prune=True, seed=0)


def search(folder: Path, trials: int, *overrides: str) -> int:
    return main(
        ["train", "-m", *TOY, f"output_dir={folder}", f"sweep.trials={trials}", "sweep.prune=false", *SPACE, *overrides]
    )


def proposed(folder: Path) -> list[dict[str, object]]:
    return [trial.params for trial in open_study(folder / "default", SETTINGS).trials]


def test_what_an_override_means_for_a_search() -> None:
    meaning = {
        "a=1,2,x": CategoricalDistribution(["1", "2", "x"]),
        "a=range(2,9,2)": IntDistribution(2, 8, step=2),
        "a=range(0,1,0.25)": FloatDistribution(0.0, 0.75, step=0.25),
        "a=range(0.5,2.25,0.5)": FloatDistribution(0.5, 2.0, step=0.5),
        "a=interval(0.5,2)": FloatDistribution(0.5, 2.0),
        "a=int(interval(1,8))": IntDistribution(1, 8),
        "a=tag(int, log, interval(1,8))": IntDistribution(1, 8, log=True),
        "a=tag(log, interval(1e-4, 1))": FloatDistribution(1e-4, 1.0, log=True),
    }
    with composer() as hydra:
        for override, expected in zip(hydra.choices(list(meaning)), meaning.values(), strict=True):
            assert distribution(override) == expected


def test_a_search_that_goes_on_proposes_what_an_uninterrupted_one_proposes(tmp_path: Path) -> None:
    assert search(tmp_path / "cut", 3) == 0
    # a command that was killed leaves a trial without an end
    study = open_study(tmp_path / "cut" / "default", SETTINGS)
    run = Run(next((tmp_path / "cut" / "default").glob("*num_layers*")))
    before = run.summary
    assert search(tmp_path / "cut", 6) == 0
    assert run.summary == before
    assert search(tmp_path / "whole", 6) == 0
    assert proposed(tmp_path / "cut") == proposed(tmp_path / "whole")
    values = [[trial.value for trial in open_study(tmp_path / each / "default", SETTINGS).trials] for each in ("cut", "whole")]
    assert values[0] == values[1]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    jobs = json.loads((tmp_path / "cut" / "default" / "sweep.json").read_text())["jobs"]
    assert len(jobs) == 6


def test_a_search_shows_its_trials_and_goes_on_with_one_that_a_killed_command_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, 1) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert search(tmp_path, 3, "--cfg", "job") == 0
    shown = capsys.readouterr()
    for text in (*SPACE, str(Run(next((tmp_path / "default").glob("*num_layers*"))).folder), "complete"):
        assert text in shown.out
    assert "1 of 3 runs" in shown.err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    study = open_study(tmp_path / "default", SETTINGS)
    left = study.ask(
        {"++optim.lr": FloatDistribution(1e-4, 1e-1, log=True), "++model.num_layers": CategoricalDistribution(["1", "2"])}
    )
    assert search(tmp_path, 2) == 0
    trials = open_study(tmp_path / "default", SETTINGS).trials
    assert len(trials) == 2
    assert trials[left.number].state == TrialState.COMPLETE


def test_a_run_that_falls_behind_is_given_up_and_a_single_command_completes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the median rule wants five completed trials; the last one learns nothing
    options = ("trainer.max_steps=40", "trainer.val_check_interval=10", f"output_dir={tmp_path}", "sweep.trials=6")
    spread = "optim.lr=0.003,0.0031,0.0032,0.0033,0.0034,1e-09"
    study = open_study(tmp_path / "default", SETTINGS)
    values = spread.partition("=")[2].split(",")
    for value in values:
        study.enqueue_trial({"++optim.lr": value})
    assert main(["train", "-m", *TOY, *options, spread]) == 0
    states = [trial.state for trial in open_study(tmp_path / "default", SETTINGS).trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    (folder,) = (tmp_path / "default").glob("lr=1e-09*")
    run = Run(folder)
    assert run.status == "pruned"
    assert "worse than the median" in run.reason
    assert "1 pruned" in capsys.readouterr().out
    # nothing is lost: it is a run like any other
    assert main(["train", *TOY, *options, "sweep.trials=null", "optim.lr=1e-09"]) == 0
    assert run.status == "complete"
    assert "continuing" in capsys.readouterr().err


def test_mistakes_in_a_search_are_found_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *TOY, f"output_dir={tmp_path / 'o'}", "sweep.trials=3", "optim.lr=interval(-1,1)"]) == 2
    assert "optim.lr=-1" in capsys.readouterr().err
    assert main(["train", "-m", *TOY, f"output_dir={tmp_path / 'o'}", "sweep.trials=3"]) == 2
    assert "nothing to search in" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()

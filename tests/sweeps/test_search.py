"""A search goes on where it was, proposes what an uninterrupted one proposes, and gives up on what falls behind."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("optuna")

from conftest import TOY
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mlm_lightning.__main__ import main
from mlm_lightning.config.compose import composer
from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.report.results import collect
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.study import NOTE, open_study
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
    assert search(tmp_path / "cut", 2) == 0
    # a command that was killed leaves a trial without an end
    study = open_study(tmp_path / "cut" / "default", SETTINGS)
    run = Run(next((tmp_path / "cut" / "default").glob("*num_layers*")))
    before = run.summary
    assert search(tmp_path / "cut", 4) == 0
    assert run.summary == before
    assert search(tmp_path / "whole", 4) == 0
    assert proposed(tmp_path / "cut") == proposed(tmp_path / "whole")
    values = [[trial.value for trial in open_study(tmp_path / each / "default", SETTINGS).trials] for each in ("cut", "whole")]
    assert values[0] == values[1]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    jobs = json.loads((tmp_path / "cut" / "default" / "sweep.json").read_text())["jobs"]
    assert len(jobs) == 4


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


LAYERS = "model.num_layers=1,2"


def searched(folder: Path, *overrides: str) -> int:
    return main(["train", "-m", *TOY, "trainer.val_check_interval=8", f"output_dir={folder}", "sweep.trials=1", *overrides])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    assert searched(folder, LAYERS) == 0
    return folder


@pytest.fixture(params=["noted", "of an earlier version"])
def either(request: pytest.FixtureRequest, begun: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(begun, tmp_path / "outputs"))
    log = folder / "default" / "search.log"
    if request.param != "noted":
        log.write_text("".join(line for line in log.open() if NOTE not in line))
    assert (NOTE in log.read_text()) == (request.param == "noted")
    return folder


@pytest.mark.parametrize(
    ("command", "changes"),
    [
        (["model.num_layers=1,2,3"], ["model.num_layers: 1,2 → 1,2,3"]),
        ([LAYERS, "trainer.max_steps=10"], ["trainer.max_steps: 8 → 10"]),
        (["model.dropout=0.0,0.1"], ["model.dropout: 0.0 → 0.0,0.1", "model.num_layers: 1,2 → 1"]),
        (
            [LAYERS, "sweep.objective=val/accuracy", "sweep.direction=maximize", "sweep.seed=1"],
            ["sweep.direction: minimize → maximize", "sweep.objective: val/loss → val/accuracy", "sweep.seed: 0 → 1"],
        ),
    ],
)
def test_another_search_is_refused_before_anything_is_written(
    either: Path, command: list[str], changes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in either.rglob("*") if path.is_file()}
    assert searched(either, "sweep.trials=2", *command) == 2
    message = capsys.readouterr().err
    first, *lines, last = message.strip().splitlines()
    assert first.startswith(f"name=default: {either / 'default' / 'search.log'} has the trials of another search")
    assert [line.strip() for line in lines] == changes
    assert last.startswith("name=OTHER begins")
    assert {path: path.read_bytes() for path in either.rglob("*") if path.is_file()} == before


def test_what_decides_nothing_may_change_and_the_folder_be_renamed(either: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (either / "default").rename(either / "other")
    free = ["sweep.jobs=2", "sweep.retries=1", "sweep.prune=false", "data.num_workers=1", "model.num_layers=choice(1,2)"]
    assert searched(either, "name=other", *free) == 0
    assert "1 of 1 runs have a result already" in capsys.readouterr().err
    assert NOTE in (either / "other" / "search.log").read_text()


def test_a_search_on_other_processes_is_another_one(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched(begun, LAYERS, "trainer.devices=2", "trainer.strategy=auto") == 2
    assert "processes: not set → 2\n" in capsys.readouterr().err


def test_a_trial_without_its_values_is_no_run_of_defaults(begun: Path, tmp_path: Path) -> None:
    """A command that was killed while it asked, or an earlier version that could not ask, leaves one behind."""
    folder = Path(shutil.copytree(begun, tmp_path / "outputs"))
    open_study(folder / "default", SETTINGS).ask()
    assert searched(folder, LAYERS, "sweep.trials=2") == 0
    whole = [trial for trial in open_study(folder / "default", SETTINGS).trials if trial.params]
    assert [trial.state for trial in whole] == [TrialState.COMPLETE] * 2
    assert searched(tmp_path / "whole", LAYERS, "sweep.trials=2") == 0
    assert [trial.params for trial in whole] == proposed(tmp_path / "whole")


def test_trials_that_draw_equal_values_are_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched(tmp_path, "sweep.trials=2", "model.num_layers=choice(1)") == 0
    shown = capsys.readouterr().out
    assert "\n1 complete;" in shown
    assert "2 trials drew 1 different sets of values: equal ones are one run" in shown
    assert "one run: no interval" in shown
    assert len(json.loads((tmp_path / "default" / "sweep.json").read_text())["jobs"]) == 1
    assert len(collect([str(tmp_path / "default")]).results) == 1


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

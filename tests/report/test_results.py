"""A folder says what state its run is in, whatever was written there so far, and nothing half-written stops a report."""

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from made_runs import make_grid, make_run, make_sweep, summary_of

from mlm_lightning.errors import UserError
from mlm_lightning.report.metric import interval
from mlm_lightning.report.results import collect, read_result, setting
from mlm_lightning.report.study import study
from mlm_lightning.runs.folder import Run


def test_each_state_is_told_from_the_files(tmp_path: Path) -> None:
    make_run(tmp_path / "complete", {"seed": 0}, summary_of(1.0))
    make_run(tmp_path / "failed", {"seed": 1}, error_json=json.dumps({"message": "diverged at\nstep 7"}))
    make_run(tmp_path / "pruned", {"seed": 2}, pruned_json=json.dumps({"message": "above the median"}))
    make_run(tmp_path / "interrupted", {"seed": 3})
    make_run(tmp_path / "running", {"seed": 4})
    jobs = [(name, [f"seed={n}"]) for n, name in enumerate(("complete", "failed", "pruned", "interrupted", "running", "never"))]
    make_sweep(tmp_path, jobs, ["seed"])
    with (tmp_path / "running" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = collect([str(tmp_path)])
    details = {result.name: (result.status, result.detail) for result in found.results}
    assert details == {
        "complete": ("complete", "step 300"),
        "failed": ("failed", "diverged at step 7"),
        "pruned": ("pruned", "above the median"),
        "interrupted": ("interrupted", "step 100 of 300"),
        "running": ("running", "step 100 of 300"),
        "never": ("missing", "not started"),
    }
    assert found.counts == dict.fromkeys(("complete", "running", "failed", "pruned", "interrupted", "missing"), 1)


def test_a_process_that_has_only_its_lock_is_running(tmp_path: Path) -> None:
    make_sweep(tmp_path, [("a", ["seed=3"])], ["seed"])
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (result,) = collect([str(tmp_path)]).results
    assert (result.status, result.settings) == ("running", {"seed": 3})


@pytest.mark.parametrize("content", ["", '{"val/loss": 0.9', "[1]", "\x00\x01", "null"])
def test_a_damaged_summary_is_named(tmp_path: Path, content: str) -> None:
    make_run(tmp_path / "run", summary_json=content)
    result = read_result(tmp_path / "run")
    assert result.status == "damaged"
    assert "summary.json can't be read" in result.detail
    assert result.summary == {}


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "a: ${nowhere}", "\x00"])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "run", summary=summary_of(1.0))
    (folder / "config.yaml").write_text(content)
    result = read_result(folder)
    if content:
        assert result.status == "damaged"
        assert "config.yaml can't be read" in result.detail
    else:  # an empty config is one
        assert result.settings == {}


@pytest.mark.parametrize("cut", range(0, 76, 5))
def test_a_half_written_curve_shows_its_whole_lines(tmp_path: Path, cut: int) -> None:
    folder = make_run(tmp_path / "run")
    whole = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(whole[:cut])
    result = read_result(folder)
    lines = whole[:cut].count("\n")
    assert result.curves.get("train/loss", []) == [(50, 1.5), (100, 1.25)][: max(0, lines - 1)]
    assert result.status == "interrupted"
    assert not result.reason


def test_a_curve_that_is_none_leaves_the_rest(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary=None, metrics_csv="step,val/loss\nten,1\n")
    result = read_result(folder)
    assert result.status == "interrupted"
    assert "metrics.csv can't be read" in result.detail


def test_what_does_not_decide_the_result_is_no_setting(tmp_path: Path) -> None:
    result = read_result(make_run(tmp_path / "run", {"optim.lr": 0.5}))
    assert result.settings["optim.lr"] == 0.5
    assert {"output_dir", "resume", "logger", "name", "trainer.accelerator"}.isdisjoint(result.settings)


def test_runs_that_the_sweep_does_not_list_are_left_out(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", summary=summary_of(1.0))
    make_run(tmp_path / "other", summary=summary_of(0.5))
    make_run(tmp_path / ".old" / "mine-2025", summary=summary_of(0.1))
    make_sweep(tmp_path, [("mine", ["seed=0"])], ["seed"])
    found = collect([str(tmp_path)])
    assert [result.name for result in found.results] == ["mine"]
    assert found.unlisted == ["other"]


def test_a_folder_without_sweep_json_is_all_its_runs(tmp_path: Path) -> None:
    make_grid(tmp_path, "optim.lr", [0.1, 0.2])
    make_run(tmp_path / ".old-run", summary=summary_of(0.1))
    (tmp_path / "report").mkdir()
    assert len(collect([str(tmp_path)]).results) == 4


def test_runs_and_sweeps_are_mixed_and_each_run_is_counted_once(tmp_path: Path) -> None:
    make_grid(tmp_path / "one", "optim.lr", [0.1, 0.2])
    make_grid(tmp_path / "two", "optim.lr", [0.3])
    paths = [tmp_path / "one", tmp_path / "two", tmp_path / "one" / "optim.lr=0,seed=0"]
    found = collect(list(map(str, paths)))
    assert len(found.results) == 6
    assert len({result.name for result in found.results}) == 6  # though two folders have one name
    assert found.home is None


def aged(folder: Path, seconds: float) -> Path:
    """The run, as if its config had been written so long ago."""
    written = time.time() - seconds
    os.utime(folder / "config.yaml", (written, written))
    return folder


@pytest.mark.parametrize("keeps_times", [False, True])
def test_copies_of_a_run_are_no_further_seeds(tmp_path: Path, keeps_times: bool) -> None:
    runs = [aged(make_run(tmp_path / f"run-{n}", {"seed": n}, summary_of(1.0 + n)), 60) for n in range(2)]
    for name in ("run-1.bak", "a-run-1"):
        copy = Path(shutil.copytree(runs[1], tmp_path / name))  # which keeps times
        if not keeps_times:
            aged(copy, 0)
    found = collect([str(tmp_path)])
    assert {result.folder for result in found.results} == set(runs)
    (copies,) = found.copies
    assert copies.startswith(f"{runs[1]} (not its copies ")
    assert "run-1.bak" in copies
    assert "a-run-1" in copies
    assert study(found).groups[0].interval("val/loss") == interval([1.0, 2.0])


def test_a_run_under_two_names_is_one_seed(tmp_path: Path) -> None:
    later = aged(make_run(tmp_path / "a" / "run", {"seed": 0, "name": "a"}, summary_of(1.0)), 30)
    first = aged(make_run(tmp_path / "b" / "run", {"seed": 0, "name": "b", "data.num_workers": 2}, summary_of(1.0)), 60)
    other = make_run(tmp_path / "b" / "other", {"seed": 1, "name": "b"}, summary_of(2.0))
    found = collect([str(tmp_path / "a"), str(tmp_path / "b")])
    assert {result.folder for result in found.results} == {first, other}
    assert found.copies == [f"{first} (not its copies {later})"]


def test_of_equal_runs_the_complete_one_counts_then_the_one_that_its_manifest_names(tmp_path: Path) -> None:
    aged(make_run(tmp_path / "begun", {"seed": 0}), 90)
    copy = aged(make_run(tmp_path / "copy", {"seed": 0}, summary_of(1.0)), 60)
    noted = make_run(tmp_path / "noted", {"seed": 0}, summary_of(1.0))
    for folder in (copy, noted):
        (folder / "manifest.json").write_text(json.dumps({"folder": "noted"}))
    assert [result.folder for result in collect([str(tmp_path)]).results] == [noted]


def test_runs_on_other_numbers_of_processes_are_not_the_same(tmp_path: Path) -> None:
    for processes in (1, 2):
        run = make_run(tmp_path / f"on-{processes}", {"seed": 0}, summary_of(1.0))
        (run / "manifest.json").write_text(json.dumps({"processes": processes}))
    assert len(collect([str(tmp_path)]).results) == 2


def test_a_renamed_run_is_still_the_sweep_s(tmp_path: Path) -> None:
    run = make_run(tmp_path / "best-20261201", {"seed": 0}, summary_of(1.0))
    hash8 = Run(run).identity
    make_sweep(tmp_path, [(f"seed=0-{hash8}", ["seed=0"]), ("seed=1-0123abcd", ["seed=1"])], ["seed"])
    found = collect([str(tmp_path)])
    assert [(result.name, result.status) for result in found.results] == [
        ("best-20261201", "complete"),
        ("seed=1-0123abcd", "missing"),
    ]
    assert found.unlisted == []


@pytest.mark.parametrize(
    ("sweep", "says"),
    [(None, "is no run"), ("{", "sweep.json"), ('{"jobs": [{}]}', "sweep.json"), ('{"jobs": 3}', "sweep.json"), ("[]", "dict")],
)
def test_what_is_no_run_is_a_mistake(tmp_path: Path, sweep: str | None, says: str) -> None:
    if sweep is not None:
        (tmp_path / "sweep.json").write_text(sweep)
    with pytest.raises(UserError, match=says):
        collect([str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        collect([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("++masking.rate=1e-1", ("masking.rate", 0.1)),
        ("seed=3", ("seed", 3)),
        ("masking=span", ("masking", "span")),
        ("data.train_size=null", ("data.train_size", None)),
        ("eval.mask_rates=[0.1,0.2]", ("eval.mask_rates", [0.1, 0.2])),
    ],
)
def test_an_override_as_a_setting(override: str, expected: object) -> None:
    assert setting(override) == expected

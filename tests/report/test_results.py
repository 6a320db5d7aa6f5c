"""A folder says what state its run is in, whatever was written there so far, and nothing half-written stops a report."""

import fcntl
import json
from pathlib import Path

import pytest
from made_runs import make_grid, make_run, make_sweep, summary_of

from mlm_lightning.errors import UserError
from mlm_lightning.report.results import collect, read_result, setting


def test_each_state_is_told_from_the_files(tmp_path: Path) -> None:
    make_run(tmp_path / "complete", summary=summary_of(1.0))
    make_run(tmp_path / "failed", error_json=json.dumps({"message": "diverged at\nstep 7"}))
    make_run(tmp_path / "pruned", pruned_json=json.dumps({"message": "above the median"}))
    make_run(tmp_path / "interrupted")
    make_run(tmp_path / "running")
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
    make_grid(tmp_path / "two", "optim.lr", [0.1])
    paths = [tmp_path / "one", tmp_path / "two", tmp_path / "one" / "optim.lr=0,seed=0"]
    found = collect(list(map(str, paths)))
    assert len(found.results) == 6
    assert len({result.name for result in found.results}) == 6  # though two folders have one name
    assert found.home is None


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

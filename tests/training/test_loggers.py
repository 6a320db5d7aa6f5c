"""metrics.csv: a line a step, continued exactly; a run of W&B's for each of ours."""

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import run_of, train

from mlm_lightning.training.loggers import CSVLogger, WandbLogger, read_metrics

FLOATS = [0.1 + 0.2, math.pi * 1e-17, 1 / 3, 1e300, -2.5]


def log(folder: Path, steps: range, purge_step: int | None = None, finish: bool = True) -> None:
    """What a training logs: `train/loss` at every step, `val/loss` at every third."""
    logger = CSVLogger(str(folder), purge_step)
    for step in steps:
        logger.log_metrics({"train/loss": math.exp(-step / 7), "lr": 0.1 / step}, step)
        if step % 3 == 0:
            logger.log_metrics({"val/loss": math.sqrt(step)}, step)
    if finish:
        logger.finalize("success")


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_step_has_one_line_whatever_is_logged_at_it(tmp_path):
    log(tmp_path, range(1, 7))
    assert [line["step"] for line in lines(tmp_path)] == ["1", "2", "3", "4", "5", "6"]
    assert [line["val/loss"] for line in lines(tmp_path)] == ["", "", repr(math.sqrt(3)), "", "", repr(math.sqrt(6))]


def test_a_column_that_appears_later_leaves_the_earlier_lines_as_they_are(tmp_path):
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0}, 2)
    logger.log_metrics({"b": 3.0}, 3)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b", "1,1.0,", "2,2.0,", "3,,3.0"]


def test_floats_come_back_exactly(tmp_path):
    logger = CSVLogger(str(tmp_path))
    for step, value in enumerate(FLOATS):
        logger.log_metrics({"x": value}, step)
    logger.save()
    assert [float(line["x"]) for line in read_metrics(tmp_path / "metrics.csv")] == FLOATS


def test_a_line_is_in_the_file_once_the_next_step_begins(tmp_path):
    log(tmp_path, range(1, 5), finish=False)
    assert [line["step"] for line in lines(tmp_path)] == ["1", "2", "3"]


def test_continuing_appends(tmp_path):
    log(tmp_path, range(1, 5))
    log(tmp_path, range(5, 9))
    assert [int(line["step"]) for line in lines(tmp_path)] == list(range(1, 9))


def test_lines_from_a_lost_future_are_dropped(tmp_path):
    log(tmp_path, range(1, 9))
    CSVLogger(str(tmp_path), purge_step=5).save()
    assert [int(line["step"]) for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_purged_and_replayed_is_byte_for_byte_the_uninterrupted_file(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    log(whole, range(1, 13))
    # stopped after 10 steps, the checkpoint after 1, 4 or 7: also before the column val/loss was there
    for kept in (1, 4, 7):
        log(broken, range(1, 11), finish=False)
        log(broken, range(kept + 1, 13), purge_step=kept + 1)
        assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
        (broken / "metrics.csv").unlink()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    log(tmp_path, range(1, 7))
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        assert [int(line["step"]) for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    log(tmp_path, range(6, 7))
    assert path.read_bytes() == whole


def test_a_file_that_somebody_removes_begins_anew(tmp_path):
    logger = CSVLogger(str(tmp_path))
    for step in range(1, 7):
        if step == 4:
            (tmp_path / "metrics.csv").unlink()
        logger.log_metrics({"a": float(step)}, step)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a", "3,3.0", "4,4.0", "5,5.0", "6,6.0"]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.csv")] == ["3", "4", "5", "6"]


def test_nothing_logged_is_no_line(tmp_path):
    logger = CSVLogger(str(tmp_path))
    logger.finalize("success")
    assert read_metrics(tmp_path / "metrics.csv") == []


# W&B


class FakeRun:
    """What is asked of W&B's run."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.lines, self.exit_codes = settings, [], []
        self.config = self
        self.values: dict[str, Any] = {}

    def update(self, values: dict[str, Any], allow_val_change: bool = False) -> None:
        self.values |= values

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that are started of a stand-in for the package."""
    runs: list[FakeRun] = []
    names = ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.wandb_run")
    modules = {name: ModuleType(name) for name in names}
    modules["wandb"].run = None
    modules["wandb"].init = lambda **settings: runs.append(FakeRun(**settings)) or runs[-1]
    modules["wandb.sdk.lib"].RunDisabled = modules["wandb.wandb_run"].Run = FakeRun
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    monkeypatch.setattr("mlm_lightning.packages._is_installed", lambda package: True)
    return runs


def test_a_run_of_wandb_is_named_like_its_folder_and_grouped_by_the_sweep(
    toy: Callable[..., dict[str, Any]], wandb_runs: list[FakeRun]
) -> None:
    config = toy("name=rates", "masking.rate=0.2", "logger=[csv,wandb]", "logger.wandb.project=masks")
    summary, folder = train(config), run_of(config).folder
    (run,) = wandb_runs
    hash8 = folder.name.rpartition("-")[2]
    expected = {"name": folder.name, "group": "rates", "id": f"rates-{hash8}", "project": "masks", "resume": "allow"}
    assert {key: run.settings[key] for key in expected} == expected
    assert Path(run.settings["dir"]) == folder
    assert run.values["masking"]["rate"] == 0.2
    assert "output_dir" not in run.values
    assert [line["val/loss"] for line in run.lines if "val/loss" in line][-1] == summary["val/loss"]
    assert run.exit_codes == [0]  # once, and the next run of this process is another one


def test_a_name_and_a_group_of_ones_own(tmp_path: Path, wandb_runs: list[FakeRun]) -> None:
    logger = WandbLogger(str(tmp_path / "rates" / "rate=0.1-1a2b3c4d"), name="mine", group="ours", tags=["a"])
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("failed")
    (run,) = wandb_runs
    assert [run.settings[key] for key in ("name", "group", "tags", "id")] == ["mine", "ours", ["a"], "rates-1a2b3c4d"]
    assert run.exit_codes == [1]

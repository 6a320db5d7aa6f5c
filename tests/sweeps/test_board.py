"""What a sweep says of the time it takes, and of the runs that work now."""

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.sweeps import board
from mlm_lightning.sweeps.board import Board


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class FakeJob:
    def __init__(self, folder: Any, name: str) -> None:
        folder.mkdir()
        self.run, self.difference, self.is_done = SimpleNamespace(folder=folder, status="interrupted"), name, False

    def end(self) -> None:
        self.run.status, self.is_done = "complete", True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(board, "time", clock)
    return clock


def test_the_time_left_is_that_of_the_runs_to_come(clock: Clock, tmp_path: Any) -> None:
    shown, jobs = Board(total=6, done=0, at_once=2), [FakeJob(tmp_path / str(i), f"seed={i}") for i in range(3)]
    for job in jobs[:2]:
        shown.started(job)  # type: ignore[arg-type]
    assert shown.seconds_left() is None
    clock.now = 20.0
    RunProgress(10, 50, seconds_left=80.0).write(jobs[0].run.folder)
    # runs of 100 s: 80 left of each of the two, and four more to come
    assert shown.seconds_left() == pytest.approx((80 + 80 + 4 * 100) / 2)
    clock.now = 60.0
    jobs[0].end()
    shown.ended(jobs[0])  # type: ignore[arg-type]
    shown.started(jobs[2])  # type: ignore[arg-type]
    # it took 60 s: the other one should be at its end, and the new one has them before it
    assert shown.seconds_left() == pytest.approx((0 + 60 + 3 * 60) / 2)
    assert shown.headline() == "1 of 6 runs done, 2 working, about 2:00 left"


def test_the_table_of_the_runs_that_work_now_fits_a_terminal(clock: Clock, tmp_path: Any) -> None:
    shown = Board(total=3, done=1, at_once=2)
    jobs = [FakeJob(tmp_path / str(i), f"seed={i} " + "model.num_layers=4 " * 5) for i in range(2)]
    for job in jobs:
        shown.started(job)  # type: ignore[arg-type]
    RunProgress(1234, 20_000, 1.25, 1.5, 3723.0).write(jobs[1].run.folder)
    console = Console(width=80, file=io.StringIO())
    console.print(shown.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert rows[2][0] == "seed=0"
    assert rows[2][-1] == "starting"
    assert rows[3][0] == "seed=1"
    assert rows[3][-4:] == ["1,234/20,000", "1.2500", "1.5000", "1:02:03"]


def test_a_log_file_has_a_line_in_30_seconds(clock: Clock, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    shown, job = Board(total=3, done=1, at_once=2), FakeJob(tmp_path / "0", "seed=0")
    shown.started(job)  # type: ignore[arg-type]
    RunProgress(5, 8).write(job.run.folder)
    with caplog.at_level(logging.INFO, "mlm_lightning"):
        for second in range(100):
            clock.now = float(second)
            shown.tick()
    assert caplog.messages[1:] == ["1 of 3 runs done, 1 working; seed=0 at step 5/8"] * 3

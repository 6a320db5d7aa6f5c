"""What several tests need: runs that must be alike, processes to stop, and a callback that does something at a given step."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from mlm_lightning.runs import Run

AT = "helpers.At"
TIMES = {"seconds", "tokens_per_second"}


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in TIMES}


def lines_without_times(run: Run) -> list[dict[str, str]]:
    from mlm_lightning.loggers import read_metrics

    lines = read_metrics(run.folder / "metrics.csv")
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    assert a["global_step"] == b["global_step"]
    torch.testing.assert_close(a["state_dict"], b["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(a["optimizer_states"], b["optimizer_states"], rtol=0, atol=0)
    assert a["lr_schedulers"] == b["lr_schedulers"]


def assert_equal_runs(one: dict[str, Any], other: dict[str, Any]) -> None:
    runs = [Run.find(one), Run.find(other)]
    summaries = [run.summary for run in runs]
    assert summaries[0] is not None
    assert summaries[1] is not None
    assert timeless(summaries[0]) == timeless(summaries[1])
    assert lines_without_times(runs[0]) == lines_without_times(runs[1])
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal_checkpoints(*(run.checkpoints / name for run in runs))


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "mlm_lightning", "train", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=dict(os.environ))


def wait_for(folder: Path, name: str, lines: int) -> Path:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        for path in folder.rglob(name):
            if path.read_bytes().count(b"\n") >= lines:
                return path
        time.sleep(0.02)
    raise AssertionError(f"{folder} has no {name} of {lines} lines")


class At(L.Callback):
    """Does `At.action` where training or validation comes by `At.place`, if a test has set them: ("train", step, -) after an
    optimizer step, ("validation", step, batch) before a batch of the validation after it."""

    place: tuple[str, int, int] | None = None
    action: Callable[[], None]

    @classmethod
    def set(cls, place: tuple[str, int, int], action: Callable[[], None]) -> None:
        cls.place, cls.action = place, staticmethod(action)

    def _pass(self, *place: Any) -> None:
        if At.place == place:
            At.place = None
            At.action()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("train", trainer.global_step, 0)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._pass("validation", trainer.global_step, batch_idx)

"""kill -9 at any moment, the same command again: the result is that of the uninterrupted run."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY
from helpers import assert_equal_results, run_of, start, train, wait_for

Toy = Callable[..., dict[str, Any]]

STEPS = (
    "trainer.max_steps=400",
    "trainer.val_check_interval=45",
    "callbacks.checkpoint.every_n_train_steps=20",
    "model.dropout=0.1",
)
WARMING_UP = (
    *("data.depth=4", "data.length_schedule={start: 4, steps: 0.9}", "trainer.batch_schedule={start: 2, steps: 0.8}"),
    *("data.batch_size=8", "trainer.accumulate_grad_batches=2"),
)


def killed_until_complete(arguments: list[str], folder: Path, kills: int, seed: int) -> int:
    """Starts the command again and again, killing it `kills` times at random moments of its training; the kills that hit."""
    draw = random.Random(seed)
    hits = 0
    for _ in range(kills):
        lines = sum(path.read_bytes().count(b"\n") for path in folder.rglob("metrics.csv"))
        process = start(arguments)
        if lines:
            # its own start rewrites the file; waiting for that is waiting for the training to begin
            before = next(folder.rglob("metrics.csv")).stat().st_ino
            deadline = time.monotonic() + 60
            while next(folder.rglob("metrics.csv")).stat().st_ino == before and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            wait_for(folder, "metrics.csv", lines=2)
        time.sleep(draw.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
    process = start(arguments)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return hits


ACCUMULATING = ("data.num_workers=2", "trainer.accumulate_grad_batches=3", "data.batch_size=8")


@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (2, ACCUMULATING),
        pytest.param(5, ACCUMULATING, marks=pytest.mark.slow),
        pytest.param(3, (), marks=pytest.mark.slow),
        pytest.param(3, ("trainer.compile=true",), marks=pytest.mark.slow),
        pytest.param(3, WARMING_UP, marks=pytest.mark.slow),
        pytest.param(3, (*WARMING_UP, "optim=muon", "optim.layer_decay=0.9", "callbacks=[ema]"), marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_equals_the_uninterrupted_one(toy: Toy, tmp_path: Path, kills: int, options: tuple[str, ...]) -> None:
    whole = toy(f"output_dir={tmp_path / 'whole'}", *STEPS, *options)
    train(whole)
    killed = toy(f"output_dir={tmp_path / 'killed'}", *STEPS, *options)
    arguments = [*TOY, f"output_dir={tmp_path / 'killed'}", *STEPS, *options]
    assert killed_until_complete(arguments, tmp_path / "killed", kills=kills, seed=len(options)) == kills
    runs = [run_of(whole), run_of(killed)]
    assert_equal_results(*runs)
    assert {path.name for path in runs[1].checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}


@pytest.mark.slow
def test_a_killed_run_keeps_the_steps_that_its_minutes_were(toy: Toy, tmp_path: Path) -> None:
    """Muon, an average, both warm-ups and a time budget; the uninterrupted run is given what the killed one has measured."""
    options = (*STEPS[1:], *WARMING_UP, "optim=muon", "optim.lr=auto", "callbacks=[ema]", "trainer.max_steps=null")
    options += ("trainer.time_budget=0.15", "masking.rate={start: 0.4, end: 0.15, schedule: linear}")
    killed, whole = (toy(f"output_dir={tmp_path / name}", *options) for name in ("killed", "whole"))
    arguments = [*TOY, f"output_dir={tmp_path / 'killed'}", *options]
    assert killed_until_complete(arguments, tmp_path / "killed", kills=3, seed=0) == 3
    settled = run_of(killed).manifest["settled"]
    assert set(settled) == {"trainer.max_steps", "step_seconds", "optim.lr"}
    run_of(whole).folder.mkdir(parents=True)
    run_of(whole).write_json("manifest.json", {"settled": settled})
    assert train(whole)["steps"] == settled["trainer.max_steps"] > 100
    assert_equal_results(run_of(whole), run_of(killed))

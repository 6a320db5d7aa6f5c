"""What exact resume costs: the way to the first step at 90 % of an epoch of 1,000,000 rows beside a fresh start, and the share
of a run's time that goes into checkpoints.

    fresh     config ─► first optimizer step
    resumed   config ─► checkpoint of step 900 of 1,000 ─► step 901; the 900,000 rows before it are not read

The two take turns. `python benchmarks/resume.py`
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from table import Table

from mlm_lightning.config.parse import settings
from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import Interrupted
from mlm_lightning.training.callbacks.checkpoint import Checkpoint
from mlm_lightning.training.train import train

ROUNDS = 7
RUN = (
    *(
        "data.train_size=1000000",
        "data.batch_size=1000",
        "data.val_size=1000",
        "trainer.max_steps=null",
        "trainer.max_epochs=1",
    ),
    *("trainer.accelerator=cpu", "model.d_model=32", "model.num_layers=1", "model.nhead=2", "model.dim_feedforward=64"),
    *("data.depth=3", "callbacks.checkpoint.every_minutes=null", f"callbacks.stop._target_={Path(__file__).stem}.StopAfter"),
)


class Reached(BaseException):
    """The step that was waited for."""


class StopAfter(L.Callback):
    """Ends training after `step` in this process: by a saved interruption, or at once."""

    step, save = 0, False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if not self.save:
                raise Reached
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Checkpoint):
                    callback._save(trainer, trainer.lightning_module)  # type: ignore[arg-type]
            raise Interrupted(15, self.step)


def seconds_to(run: Settings, step: int) -> float:
    """From the call to the end of optimizer step `step`."""
    StopAfter.step = step
    began = time.perf_counter()
    try:
        train(run)
    except Reached:
        return time.perf_counter() - began
    raise AssertionError("the run ended before")


def first_steps(folder: Path, table: Table) -> None:
    resumed = settings([*RUN, f"output_dir={folder / 'resumed'}"])
    StopAfter.step, StopAfter.save = 900, True
    try:
        train(resumed)
    except Interrupted:
        StopAfter.save = False
    times: dict[str, list[float]] = {"fresh": [], "resumed": []}
    for turn in range(ROUNDS):
        times["fresh"].append(seconds_to(settings([*RUN, f"output_dir={folder / f'fresh{turn}'}"]), 1))
        times["resumed"].append(seconds_to(resumed, 901))
    fresh, late = (statistics.median(each) for each in times.values())
    table.add(what="to the first step, from the beginning", seconds=fresh)
    table.add(what="to the first step, at 90 % of 1,000,000 rows", seconds=late, **{"share of it": late / fresh})


def share_of_checkpoints(folder: Path, table: Table) -> None:
    """The default checkpoints of a run of the default length of interval."""
    saving = [0.0]
    save = Checkpoint._save

    def timed(self: Checkpoint, *arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        save(self, *arguments, **options)
        saving[0] += time.perf_counter() - began

    Checkpoint._save = timed  # type: ignore[method-assign]
    try:
        run = settings([f"output_dir={folder / 'default'}", "trainer.accelerator=cpu"])
        began = time.perf_counter()
        train(run)
        whole = time.perf_counter() - began
    finally:
        Checkpoint._save = save  # type: ignore[method-assign]
    table.add(what="the default run", seconds=whole)
    table.add(what="its checkpoints", seconds=saving[0], **{"share of it": saving[0] / whole})


def main() -> None:
    sys.modules.setdefault(Path(__file__).stem, sys.modules["__main__"])
    with tempfile.TemporaryDirectory() as folder:
        table = Table("resume", "What exact resume costs", {"what": "", "seconds": ".3f", "share of it": ".4f"})
        first_steps(Path(folder), table)
        share_of_checkpoints(Path(folder), table)


if __name__ == "__main__":
    main()

"""A sweep of twelve runs, killed with -9 five times at random moments: the same command ends it as if nothing had happened."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import assert_equal_results, failing, runs_in, start_sweep, steps_of

from mlm_lightning.runs.folder import Run

pytestmark = pytest.mark.slow

STEPS, SAVED_EVERY = 400, 20
SWEEP = (
    *("seed=range(0,12)", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=90", "model.dropout=0.1"),
    *(f"callbacks.checkpoint.every_n_train_steps={SAVED_EVERY}", "data.batch_size=64", "data.depth=4", "model.d_model=64"),
)


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all sweeps here: it is part of what identifies their runs."""
    return tmp_path_factory.mktemp("steps") / "marker"


@pytest.fixture(scope="module")
def whole(marker: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """The runs of the undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole")
    process = start_sweep(folder, *SWEEP, *failing(marker, []))
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    return runs_in(folder)


@pytest.mark.parametrize("at_once", [1, 2])
def test_twelve_runs_killed_five_times(whole: dict[int, Run], marker: Path, tmp_path: Path, at_once: int) -> None:
    marker.with_suffix(".steps").unlink(missing_ok=True)
    arguments = (*SWEEP, f"sweep.jobs={at_once}", *failing(marker, []))
    draw = random.Random(at_once)
    kills = 0
    while kills < 5:
        steps = steps_of(marker).total()
        process = start_sweep(tmp_path / "killed", *arguments)
        deadline = time.monotonic() + 60
        while steps_of(marker).total() == steps and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 4))
        done = {seed for seed, run in runs_in(tmp_path / "killed").items() if run.status == "complete"}
        counted = steps_of(marker)
        assert all(counted[str(seed)] >= STEPS for seed in done)
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, "the sweep ended before it could be killed"
        kills += 1
    process = start_sweep(tmp_path / "killed", *arguments)
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    counted = steps_of(marker)
    killed = runs_in(tmp_path / "killed")
    assert [run.status for run in killed.values()] == ["complete"] * 12
    extra = Counter({seed: count - STEPS for seed, count in counted.items()})
    assert min(extra.values()) == 0  # some were never killed, and none of these was run again
    # a kill costs each run that was going on the steps since its last checkpoint
    assert sum(extra.values()) <= kills * at_once * SAVED_EVERY
    print(f"\n{at_once} at a time: {sum(extra.values())} of {counted.total()} steps were made twice, by {kills} kills")
    for seed in range(12):
        assert_equal_results(killed[seed], whole[seed])

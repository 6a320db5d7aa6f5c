"""A job of SLURM whose time is running out saves, asks for a further turn, and goes on to the same result."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TOY, composed
from helpers import assert_equal_results, run_of, train
from slurm_cluster import missing, slurm_cluster

from mlm_lightning.runs.folder import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM's programs are not installed: {', '.join(missing())}"),
]

OPTIONS = (
    *("trainer.max_steps=600", "trainer.val_check_interval=150", "callbacks.checkpoint.every_n_train_steps=100"),
    *("model.dropout=0.1", "data.batch_size=8", "trainer.accumulate_grad_batches=3"),
)
JOB = """\
#!/bin/sh
#SBATCH --nodes={nodes} --ntasks-per-node=1 --requeue --open-mode=append
#SBATCH --output={folder}/job.txt
export MASTER_ADDR=127.0.0.1
srun {python} -m mlm_lightning train {overrides}
"""


@pytest.mark.parametrize(
    ("nodes", "options"), [(1, ("data.num_workers=2", "trainer.devices=1")), (2, ("trainer.devices=1", "trainer.strategy=ddp"))]
)
def test_a_job_that_is_told_to_end_is_run_again_and_ends_as_if_it_had_not_been(
    tmp_path: Path, nodes: int, options: tuple[str, ...]
) -> None:
    whole = composed(f"output_dir={tmp_path / 'whole'}", *OPTIONS, *options, f"trainer.devices={nodes}")
    train(whole)
    outputs = tmp_path / "outputs"
    cluster = tmp_path / "slurm"
    cluster.mkdir()
    with slurm_cluster(cluster, cpus=2, nodes=nodes) as variables:
        environment = os.environ | variables
        overrides = " ".join(("trainer=slurm", *TOY, f"output_dir={outputs}", *OPTIONS, *options))
        script = tmp_path / "job.sh"
        script.write_text(JOB.format(nodes=nodes, folder=tmp_path, python=sys.executable, overrides=overrides))
        submitted = subprocess.run(
            ["sbatch", "--parsable", script], env=environment, check=True, capture_output=True, text=True
        )
        job = submitted.stdout.strip()
        wait_for(lambda: lines_of(outputs) > 40, tmp_path / "job.txt")
        subprocess.run(["scancel", "--signal=USR1", job], env=environment, check=True)
        wait_for(lambda: "COMPLETED" in state(job, environment), tmp_path / "job.txt")
        assert "Restarts=1" in state(job, environment)
    said = (tmp_path / "job.txt").read_text()
    assert f"SLURM will run job {job} again" in said
    assert "continuing" in said
    (folder,) = (outputs / "default").iterdir()
    assert_equal_results(Run(folder), run_of(whole))


def lines_of(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("metrics.csv"))


def state(job: str, environment: dict[str, str]) -> str:
    command = ["scontrol", "show", "job", job]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def wait_for(holds: Callable[[], bool], log: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "the job has said nothing"
        time.sleep(0.1)

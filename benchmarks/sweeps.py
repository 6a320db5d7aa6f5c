"""Sixteen small runs on the grammar: our sweep beside what a user would do instead, in one run of this file.

    fresh       a new process for each run, one after another: every one imports torch and Lightning again
    basic       Hydra's basic launcher: one process, one run after another, all cores for each
    ours        sweep.jobs=auto: forks of a process that has imported everything, a run a core
    joblib      launcher=joblib: loky's processes, reused, a run a core

The first one trains only `FRESH` runs, and their time is scaled to sixteen. `python benchmarks/sweeps.py`
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import Table

JOBS, FRESH = 16, 4
RUN = (
    *("trainer.max_steps=500", "trainer.val_check_interval=250", "trainer.accelerator=cpu", "data.val_size=512"),
    *("data.batch_size=64", "model.d_model=64", "model.num_layers=2", "model.dim_feedforward=256"),
)
BASIC = """
import hydra, sys
from mlm_lightning.config.compose import config_folder, to_plain
from mlm_lightning.config.parse import parse
from mlm_lightning.config.composed import Composed
from mlm_lightning.training.train import train

@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def main(config):
    train(parse(Composed(to_plain(config), (f"seed={config.seed}",))))

main()
"""


def seconds(*command: str) -> float:
    began = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    train = ("-m", "mlm_lightning", "train", *RUN)
    sweep = f"seed=range(0,{JOBS})"
    with tempfile.TemporaryDirectory() as folder:

        def to(name: str) -> str:
            return f"output_dir={Path(folder) / name}"

        fresh = sum(seconds(*train, f"seed={seed}", to("fresh")) for seed in range(FRESH)) * JOBS / FRESH
        ours = seconds(*train, "-m", sweep, to("ours"), "sweep.jobs=auto")
        plain = [f"++{each}" for each in (*RUN, to("basic"))]
        basic = seconds("-c", BASIC, "-m", *plain, f"seed=range(0,{JOBS})")
        joblib = seconds(*train, "-m", sweep, to("joblib"), "launcher=joblib")
    columns = {"way": "", "seconds": ".0f", "runs a minute": ".1f", "ours is so many times as fast": ".2f"}
    table = Table("sweeps", f"A sweep of {JOBS} small runs", columns)
    for name, took in (("fresh", fresh), ("basic", basic), ("ours", ours), ("joblib", joblib)):
        rates = {"runs a minute": 60 * JOBS / took, "ours is so many times as fast": took / ours}
        table.add(way=name, seconds=took, **rates)


if __name__ == "__main__":
    main()

"""From a command to its first step, and to the answer to a mistyped key, beside `import torch`.

    python benchmarks/start.py [--rounds 5]

Whole commands in fresh processes, taking turns; medians. The run of the first step ends after it, with its checkpoint and its
table.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

from table import Table

MLM = [sys.executable, "-m", "mlm_lightning"]


def seconds(command: list[str], status: int) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        one_step = ["train", "trainer.max_steps=1", "trainer.limit_val_batches=0", f"output_dir={folder}", "resume=never"]
        commands = {
            "import torch": ([sys.executable, "-c", "import torch"], 0),
            "import lightning": ([sys.executable, "-c", "import lightning"], 0),
            "a run of one step": ([*MLM, *one_step], 0),
            "a mistyped key": ([*MLM, "train", "data.dpeth=3"], 2),
            "mlm --help": ([*MLM, "--help"], 0),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):  # the first fills the disk's cache
            for name, (command, status) in commands.items():
                times[name].append(seconds(command, status))
    baseline = statistics.median(times["import torch"][1:])
    table = Table("start", "Whole commands", {"command": "", "seconds": ".2f", "times `import torch`": ".2f"})
    for name, found in times.items():
        median = statistics.median(found[1:])
        table.add(command=name, seconds=median, **{"times `import torch`": median / baseline})


if __name__ == "__main__":
    main()

"""One rank of several: a process with the arguments PARENT FOLDER [CHECKPOINT], started by `ranks`."""

import os
import sys
from pathlib import Path

from mlm_lightning.processes import die_with_parent


def main(folder: Path, checkpoint: Path | None) -> int:
    from mlm_lightning.config.compose import read_config
    from mlm_lightning.config.parse import parse
    from mlm_lightning.files import run_disk_named
    from mlm_lightning.messages import report
    from mlm_lightning.runs.checkpoint import Position
    from mlm_lightning.runs.folder import Run
    from mlm_lightning.training.fit import fit
    from mlm_lightning.training.nodes import signal_of, status_of

    run = Run(folder)
    try:
        with run_disk_named(folder):
            fit(run, parse(read_config(folder)), Position.read(checkpoint) if checkpoint else None)
    except BaseException as error:
        status = status_of(error)
        if signal_of(status) is None and "gloo" not in str(error):  # who says that has lost the others, and knows no more
            if os.environ["NODE_RANK"] == "0":
                run.fail(error)  # `mlm train` reports it
            else:
                report(error)
        return status
    return 0


def start() -> None:
    die_with_parent(int(sys.argv[1]))  # a rank without its `mlm train` would go on alone, without its lock
    from mlm_lightning.messages import speak

    speak()
    sys.exit(main(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None))

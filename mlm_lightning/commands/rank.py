"""One rank of a multi-process run: `python -m mlm_lightning.commands.rank FOLDER [CHECKPOINT]`, started by `mlm train`."""

import ctypes
import os
import signal
import sys
from pathlib import Path

from mlm_lightning.commands.errors import report
from mlm_lightning.commands.train import fit
from mlm_lightning.runs import Run, read_config


def _die_with_parent() -> None:
    """A rank whose `mlm train` was killed would go on alone, without its lock."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main(folder: Path, checkpoint: Path | None) -> int:
    _die_with_parent()
    run = Run(folder, read_config(folder))
    try:
        fit(run, checkpoint)
    except BaseException as error:
        if os.environ["LOCAL_RANK"] == "0" and isinstance(error, Exception):
            run.fail(error)
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))

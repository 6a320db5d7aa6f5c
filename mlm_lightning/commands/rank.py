"""One rank of several: `python -m mlm_lightning.commands.rank PARENT FOLDER [CHECKPOINT]`, started by `mlm train`."""

import ctypes
import os
import signal
import sys
from pathlib import Path


def _die_with_parent(parent: int) -> None:
    """A rank whose `mlm train` was killed would go on alone, without its lock."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def main(folder: Path, checkpoint: Path | None) -> int:
    from mlm_lightning.commands.errors import CTRL_C, FAILURE, MISTAKE, STOPPED, report
    from mlm_lightning.errors import Interrupted, UserError
    from mlm_lightning.runs import Position, Run, read_config
    from mlm_lightning.training import fit

    run = Run(folder, read_config(folder))
    try:
        fit(run, Position.read(checkpoint) if checkpoint else None)
    except BaseException as error:
        is_first = os.environ["LOCAL_RANK"] == os.environ["NODE_RANK"] == "0"
        if isinstance(error, Interrupted):
            return CTRL_C if error.signum == signal.SIGINT else STOPPED
        if not is_first:
            return report(error)
        run.fail(error)  # `mlm train` reports it
        return MISTAKE if isinstance(error, UserError) else FAILURE
    return 0


if __name__ == "__main__":
    _die_with_parent(int(sys.argv[1]))
    from mlm_lightning.errors import interruptible

    with interruptible():
        sys.exit(main(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None))

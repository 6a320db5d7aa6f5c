"""One rank of several: `python -m mlm_lightning.commands.rank PARENT FOLDER [CHECKPOINT]`, started by `mlm train`."""

import os
import signal
import sys
from pathlib import Path

from mlm_lightning.commands.children import die_with_parent


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
    die_with_parent(int(sys.argv[1]))  # a rank without its `mlm train` would go on alone, without its lock
    from mlm_lightning.errors import interruptible

    with interruptible():
        sys.exit(main(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None))

"""One rank of several: a process with the arguments PARENT FOLDER [CHECKPOINT], started by `ranks`."""

import os
import sys
from pathlib import Path

from mlm_lightning.processes import die_with_parent


def main(folder: Path, checkpoint: Path | None) -> int:
    from mlm_lightning.config.compose import read_config
    from mlm_lightning.config.parse import parse
    from mlm_lightning.errors import FAILURE, MISTAKE, Interrupted, UserError
    from mlm_lightning.messages import report
    from mlm_lightning.runs.checkpoint import Position
    from mlm_lightning.runs.folder import Run
    from mlm_lightning.training.fit import fit

    run = Run(folder)
    try:
        fit(run, parse(read_config(folder)), Position.read(checkpoint) if checkpoint else None)
    except Interrupted as error:
        return error.exit_status
    except BaseException as error:
        if not os.environ["LOCAL_RANK"] == os.environ["NODE_RANK"] == "0":
            return report(error)
        run.fail(error)  # `mlm train` reports it
        return MISTAKE if isinstance(error, UserError) else FAILURE
    return 0


def start() -> None:
    die_with_parent(int(sys.argv[1]))  # a rank without its `mlm train` would go on alone, without its lock
    from mlm_lightning.errors import interruptible
    from mlm_lightning.messages import speak

    speak()
    with interruptible():
        sys.exit(main(Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None))

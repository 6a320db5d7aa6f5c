"""One rank of a multi-process run: `python -m mlm_lightning.commands.rank FOLDER [CHECKPOINT]`, started by `mlm train`."""

import os
import sys
from pathlib import Path

from mlm_lightning.commands.errors import report
from mlm_lightning.commands.train import fit
from mlm_lightning.runs import Run, read_config


def main(folder: Path, checkpoint: Path | None) -> int:
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

"""How far a run is while it works: a small file in its folder, for a sweep's table and for `mlm runs`."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_FILE = ".progress.json"


@dataclass(frozen=True)
class RunProgress:
    step: int
    steps: int
    loss: float | None = None
    val_loss: float | None = None
    seconds_left: float | None = None
    """None: not known yet."""

    def write(self, folder: Path) -> None:
        """Replaces what was there. Unlike results it needn't survive a crash of the machine, and a full disk is no matter."""
        temporary = folder / f"{_FILE}.tmp"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(self)))
            temporary.replace(folder / _FILE)

    @classmethod
    def read(cls, folder: Path) -> "RunProgress | None":
        try:
            return cls(**json.loads((folder / _FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @staticmethod
    def clear(folder: Path) -> None:
        with contextlib.suppress(OSError):
            (folder / _FILE).unlink(missing_ok=True)

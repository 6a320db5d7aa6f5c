"""Where a run stands: a checkpoint, with our own record of what is computed."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import UserError
from mlm_lightning.runs.checkpoint import FORMAT, STATE, differences, read_checkpoint
from mlm_lightning.runs.identity import deciding


@dataclass
class Position:
    """A checkpoint file and the optimizer step that it was written after."""

    path: Path
    step: int
    state: dict[str, Any]
    """Our own entries: the record of what is computed, and where it stands."""

    @classmethod
    def read(cls, path: Path) -> "Position":
        """Raises DamagedCheckpointError, and UserError for a checkpoint of a version that can't be continued."""
        checkpoint = read_checkpoint(path, sealed=True)
        state = checkpoint.get(STATE, {})
        written = state.get("record", {}).get("format")
        if written != FORMAT:
            raise UserError(
                f"{path}: is a checkpoint of format {written}, and this version continues format {FORMAT}. Continue it with "
                f"the version that wrote it ({state.get('record', {}).get('version', 'unknown')}), or start again: resume=never"
            )
        return cls(path, checkpoint["global_step"], state)

    @property
    def record(self) -> dict[str, Any]:
        return self.state["record"]

    def changes(self, record: dict[str, Any]) -> list[str]:
        """What differs from a run with this record: `key: before → now`."""
        before, now = ({"data files": each["data"]} | deciding(each["config"]) for each in (self.record, record))
        return differences(before, now)


def record_of(settings: Settings, fingerprint: str | None) -> dict[str, Any]:
    """What a run's checkpoints say about what it computes."""
    return {
        "format": FORMAT,
        "version": metadata.version("mlm-lightning"),
        "config": deciding(settings.composed.config),
        "data": fingerprint,
        "world_size": settings.trainer.world_size(),
        "rows_per_step": settings.rows_per_step,
    }

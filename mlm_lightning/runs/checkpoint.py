"""A checkpoint file: written whole, sealed by a digest, read without executing anything; and where it says that a run stands.

    ┌ torch's zip ──────────────────────────────────────────────────────────────┐┌ the zip's comment ────┐
    │ weights, optimizer, schedule, loops, callbacks; our record of the run     ││ sha256 of all before  │
    └───────────────────────────────────────────────────────────────────────────┘└───────────────────────┘

Plain `torch.load` opens it anywhere. torch itself doesn't look at the zip's checksums, so a disk's flipped bit would become a
wrong weight; the seal covers every byte.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import UserError, one_line
from mlm_lightning.files import SEAL, SEAL_SIZE, write_atomically
from mlm_lightning.runs.identity import deciding
from mlm_lightning.runs.own_code import own_code

FORMAT = 1
"""Of what we write in a checkpoint; raised where an older one can't be continued."""

STATE = "mlm_lightning"
"""The key of our own entries in a checkpoint: what the run computes, and where it stands."""

AVERAGING = "averaging"
"""The key of what a checkpoint has where its `state_dict` is an average: the weights that training goes on with."""


class DamagedCheckpointError(Exception):
    """The file is not what was once written."""


class _Digesting:
    """A file that hashes what passes, and remembers why it couldn't write: torch reports only that it couldn't."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        try:
            return self._file.write(part)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes and seals a checkpoint; a reader sees all of it or nothing. Raises OSError where the disk refuses."""

    def write(file: BinaryIO) -> None:
        digesting = _Digesting(file)
        try:
            torch.save(checkpoint, digesting)  # type: ignore[arg-type]  # it asks for no more than write and flush
        except Exception as error:
            raise digesting.failure or error from error
        seal = SEAL + digesting.digest.hexdigest().encode()
        # a zip ends with the length of its comment, and then the comment
        file.seek(-2, 2)
        file.write(len(seal).to_bytes(2, "little") + seal)

    write_atomically(path, write)


def read_checkpoint(path: Path, sealed: bool = False) -> dict[str, Any]:
    """Opens a checkpoint with `weights_only=True`, its tensors mapped from the file. Raises DamagedCheckpointError.

    A seal is verified where there is one; `sealed` demands one, as a damaged seal looks like none.
    """
    try:
        found = _verify(path)
    except OSError as error:
        raise DamagedCheckpointError(f"it cannot be read: {error.strerror or error}") from error
    if sealed and not found:
        raise DamagedCheckpointError("it does not end as a checkpoint does: it is cut off, overwritten or another file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ValueError("it holds no weights")
    except Exception as error:  # a damaged file fails in many ways
        raise DamagedCheckpointError(f"it is no checkpoint: {one_line(error)}") from error
    return checkpoint


def _verify(path: Path) -> bool:
    """Whether there is a seal; raises DamagedCheckpointError where it is broken."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < SEAL_SIZE + 2:
            return False
        file.seek(-SEAL_SIZE, 2)
        seal = file.read()
        if not seal.startswith(SEAL):
            return False
        digest, end = hashlib.sha256(), size - SEAL_SIZE - 2
        file.seek(0)
        while file.tell() < end:
            digest.update(file.read(min(end - file.tell(), 2**22)))
        length = file.read(2)
    digest.update(b"\0\0")  # the length of the comment as torch left it
    if length != SEAL_SIZE.to_bytes(2, "little") or SEAL + digest.hexdigest().encode() != seal:
        raise DamagedCheckpointError("its bytes are not those that were written: they don't have its checksum")
    return True


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
        """What differs from a run with this record: `key: before → now`; of own code that was edited, `own_code.FILE: …`."""
        there, data = self.record, record["data"]
        if data and ":" not in (there["data"] or ""):  # an earlier version's, which did not count what a hub sent
            data = re.sub(r":\w+", "", data)
        before = deciding(there["config"], there["world_size"]) | {"data files": there["data"]}
        now = deciding(record["config"], record["world_size"]) | {"data files": data}
        if "precision" in there and before["trainer"]["precision"] == now["trainer"]["precision"] == "auto":
            before["trainer.precision=auto"], now["trainer.precision=auto"] = there["precision"], record["precision"]
        if "own_code" in there:
            before["own_code"], now["own_code"] = there["own_code"], record.get("own_code")
        return differences(before, now)


def record_of(settings: Settings, fingerprint: str | None) -> dict[str, Any]:
    """What a run's checkpoints say about what it computes."""
    return {
        "format": FORMAT,
        "version": metadata.version("mlm-lightning"),
        "config": deciding(settings.composed.config),
        "precision": str(settings.trainer.resolved_precision()),
        "data": fingerprint,
        "world_size": settings.trainer.world_size(),
        "rows_per_step": settings.rows_per_step,
        **own_code(settings),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: before → now` for each value that two nested configs don't share."""
    one, other = flat(before), flat(now)
    missing = object()
    keys = [key for key in {**one, **other} if one.get(key, missing) != other.get(key, missing)]
    return [f"{key}: {one.get(key, 'not set')} → {other.get(key, 'not set')}" for key in sorted(keys)]


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return found

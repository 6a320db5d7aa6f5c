"""Files that are either whole or not there."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlm_lightning.errors import UserError, one_line

_REFUSALS = ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "EIO", "ESTALE", "ENOTDIR", "EEXIST")
UNWRITABLE = {getattr(errno, name) for name in _REFUSALS if hasattr(errno, name)}
"""What an OSError's `errno` is where a disk is full, read-only, broken or not ours."""


class DiskError(RuntimeError):
    """A disk refuses what can't be done without it."""


@contextmanager
def disk_named(place: Path, remedy: str) -> Iterator[None]:
    """What a full or read-only disk refuses inside is a DiskError with the path; libraries in Rust tell its number in words."""
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number is None or number not in UNWRITABLE:
            raise
        where = getattr(error, "filename", None) or place
        raise DiskError(f"{where}: {os.strerror(number)}. {remedy}") from error


def run_disk_named(folder: Path) -> AbstractContextManager[None]:
    """The same for a run's folder, with what that means for the run."""
    checkpoints = folder / "checkpoints"
    return disk_named(
        folder, f"The checkpoints in {checkpoints} are whole: free space or give access, and the same command continues"
    )


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A file that holds one group of keys; UserError with the remedy where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no group of keys")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error, remedy) from error
    return content


def damaged(path: Path, error: BaseException, remedy: str) -> UserError:
    """What to raise where a file can't be read."""
    return UserError(f"{path}: can't be read: {one_line(error)}; {remedy}")


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes beside `path`, waits until the disk has it, then renames: a reader sees the old file or the new one. `content` is
    the bytes, or a function that writes them to an open file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # writing to an open file names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until the disk has a file's bytes, or a folder's entries: a rename is not durable before."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64
"""Of a checkpoint: its last bytes, the digest of all before them."""


def checksum(path: Path) -> str | None:
    """What a checkpoint's seal says its content is; None where it has none. Reads the end of the file alone."""
    with path.open("rb") as file:
        file.seek(-min(SEAL_SIZE, file.seek(0, 2)), 2)
        seal = file.read()
    return seal.removeprefix(SEAL).decode() if seal.startswith(SEAL) else None

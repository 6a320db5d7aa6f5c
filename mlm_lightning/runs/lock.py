"""One process at a time works in a run's folder.

    .lock      locked by the operating system while a process works in the folder, until it ends, however it ends;
               holds the id of that process

`filelock` closes the lock's file in forked children: a data worker that outlives its killed parent doesn't hold the lock.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mlm_lightning.errors import BusyError, UserError

_NAME = ".lock"
_PATIENCE = 2.0  # seconds: a process that was just killed may still be ending


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates the folder and holds its lock; raises BusyError where another process holds it. Of a run that never started
    nothing is left: no lock, no empty folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder.parent.parent}: {folder} cannot be made there: {error.strerror}") from error
    path = folder / _NAME
    try:
        lock = FileLock(path, timeout=_PATIENCE, on_acquired=_write_process_id).acquire()
    except Timeout as error:
        process = path.read_text().strip() or "?"
        raise BusyError(f"{folder}: process {process} is working in this run; wait for it, or stop it first") from error
    with lock:
        try:
            yield
        finally:
            if folder.is_dir() and [each.name for each in folder.iterdir()] == [_NAME]:
                path.unlink()
                for each in (folder, folder.parent, folder.parent.parent):
                    with contextlib.suppress(OSError):  # others are in it
                        each.rmdir()


def _write_process_id(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


def is_locked(folder: Path) -> bool:
    """Whether a process is working in the folder. Creates nothing, and only reads: the folder may belong to another user."""
    import fcntl

    try:
        with (folder / _NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who looks at the same time is not taken for a holder
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False

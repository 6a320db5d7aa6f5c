"""Processes: how many cores there are for them, who runs work in several, and children that end with their parent."""

import ctypes
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Workers(ABC):
    """Where the parts of a large piece of work are done: a config's `prepare` group."""

    @abstractmethod
    def run(self, function: Callable[[Any, Any], None], work: Any, tasks: Sequence[Any]) -> Iterator[Any]:
        """Calls function(work, task) for every task, and yields the tasks in the order in which they end.

        `work` is what all tasks share. Raises what `function` raises. Closing the iterator gives up what is not done.
        """


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """The bytes of memory of this machine, or of the part of it that a container may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # no Linux, or an older one
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def python(code: str) -> list[str]:
    """A command line of Python that runs `code` and imports from where this process does. By itself, `python -c` looks into the
    current folder first, and would execute a `random.py` there."""
    path = [str(each) or os.getcwd() for each in sys.path]
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {path!r}; {code}"]


@contextmanager
def safe_path() -> Iterator[None]:
    """The same for Python that others start: it does not look into the current folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def see_own_packages() -> None:
    """A `_target_` may name a package in the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent `parent` ends, however that happens. For Linux; elsewhere it does nothing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)

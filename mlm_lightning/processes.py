"""Processes: how many cores there are for them, who runs work in several, and children that end with their parent."""

import ctypes
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
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


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent `parent` ends, however that happens. For Linux; elsewhere it does nothing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)

"""What a child process owes its parent, before it imports anything heavy."""

import ctypes
import os
import signal
import sys


def die_with_parent(parent: int) -> None:
    """Ends this process when its parent `parent` ends, however that happens. For Linux; elsewhere it does nothing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)

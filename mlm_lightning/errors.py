"""What ends a command, beside a failure: the user's mistake, or a signal."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class UserError(Exception):
    """A mistake that the user can mend: reported as its message alone, with exit status 2."""


class BusyError(UserError):
    """Another process is working in the run's folder."""


class PrunedError(Exception):
    """A search has given up this run, whose last checkpoint is written."""


class Interrupted(BaseException):
    """A signal stopped the command; everything that was computed up to optimizer step `step` is saved (None: nothing was)."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        name = signal.Signals(signum).name
        super().__init__(
            f"stopped by {name} after step {step}; everything is saved" if step is not None else f"stopped by {name}"
        )
        self.signum, self.step = signum, step


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise `Interrupted` inside, as SIGINT raises KeyboardInterrupt; by default they end the process
    without a word. Outside the main thread, which alone may handle signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    handlers = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", None)) if number
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def mistakes() -> Iterator[None]:
    """What constructors and data refuse is the user's to mend."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UserError(str(error)) from error


def say(message: str) -> None:
    """What a user should know while the command goes on."""
    print(message, file=sys.stderr, flush=True)

"""One message and one exit status for whatever ends a command."""

import os
import signal
import sys
import traceback

from mlm_lightning.errors import Interrupted, UserError

FAILURE, MISTAKE, STOPPED, CTRL_C = 1, 2, 75, 130


def report(error: BaseException) -> int:
    """Prints what went wrong and returns the exit status; `--debug` (MLM_DEBUG=1) shows the traceback."""
    if os.environ.get("MLM_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print("stopped\nthe same command continues", file=sys.stderr)
        return CTRL_C
    if isinstance(error, Interrupted):
        print(f"{error}\nthe same command continues", file=sys.stderr)
        return CTRL_C if error.signum == signal.SIGINT else STOPPED
    if isinstance(error, UserError):
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{type(error).__name__}: {error}\n(--debug shows where)", file=sys.stderr)
    return FAILURE

"""One way to speak to the user: results to standard output, everything else to standard error.

logging.getLogger(__name__).info(…)     notes and progress, by the one handler of the logger "mlm_lightning"
report(error) -> exit status            what ended the command, and whether the same command continues
"""

import errno
import io
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlm_lightning.errors import CTRL_C, FAILURE, MISTAKE, Interrupted, UserError, asks_for_trust, one_line, raised_at


class _Lenient(io.FileIO):
    """Standard output or error. What nobody reads any more is dropped: the reader of a pipe has ended (EPIPE), a terminal was
    closed (EIO)."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if self.fileno() == 1 and error.errno not in (errno.EPIPE, errno.EIO):
                raise  # a result that a full disk refuses is a failure; a message is not
            return len(content)


def _open_streams() -> None:
    """Standard output and error that end no run, also where they are closed (`>&-`). Those of a notebook stay as they are."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened, a checkpoint perhaps, would take its place
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and getattr(stream, "name", "") == f"<{name}>":
            raw = _Lenient(stream.fileno(), "w", closefd=False)
            buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
            as_before = None, stream.line_buffering, stream.write_through
            # characters that the encoding lacks are escaped
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", *as_before))


class _StandardError(logging.Handler):
    """Prints the message alone, to what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        _print(self.format(record))


def _print(text: str) -> None:
    print(_clear() + plain(text), file=sys.stderr, flush=True)


def print_text(result: object = "") -> None:
    """Prints a result."""
    print(plain(str(result)))


def plain(text: str) -> str:
    """With control characters spelled: what a file says must not move the cursor of a terminal, or write to its clipboard."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


_waiting = False


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows a line on a terminal, and nowhere else, until there is another message or the work inside is done."""
    global _waiting
    if _waiting := sys.stderr.isatty():
        line = f"{text} …"[: shutil.get_terminal_size().columns - 1]
        print(line, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(_clear(), end="", file=sys.stderr, flush=True)


def _clear() -> str:
    """What deletes the line of `waiting`, if there is one."""
    global _waiting
    before, _waiting = _waiting, False
    return "\r\x1b[2K" if before else ""


_LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
"""What keeps libraries quiet, unless the user has set it otherwise; they read it when they are imported."""
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
_warned: set[str] = set()


def speak() -> None:
    """Makes notes and progress reach the user, and of the libraries nothing but a warning that matters, once and in our form;
    called by whatever starts a command, also more than once."""
    _open_streams()
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():  # on a terminal, a download is worth a bar
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:  # python -W …: the user wants to see them as they are
        warnings.showwarning = _warn
    logger = logging.getLogger("mlm_lightning")
    if not any(isinstance(handler, _StandardError) for handler in logger.handlers):
        logger.addHandler(_StandardError())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _warn(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """A library's warning without the line of its source."""
    text = one_line(message) if isinstance(message, Warning) else message
    if not issubclass(category, _FOR_DEVELOPERS) and text not in _warned:
        _warned.add(text)
        logging.getLogger(__name__).warning("warning: %s", text)


def duration(seconds: float) -> str:
    """`0:05`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), right: Collection[int] = ()) -> None:
    """Prints a result as aligned columns; those in `right` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, show_header=bool(header), box=None, padding=(0, 2))
    for cells in rows:
        table.add_row(*(Text(plain(cell)) for cell in cells))
    for number, column in enumerate(table.columns):
        column.overflow, column.justify = "fold", "right" if number in right else "left"
    # a pipe or a file has no width that a table must fit in
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def report(error: BaseException, command: Sequence[str] = ()) -> int:
    """Prints what went wrong with `mlm COMMAND …` and returns the exit status; `--debug` (MLM_DEBUG=1) shows the traceback."""
    if os.environ.get("MLM_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        _print("stopped\nthe same command continues")
        return CTRL_C
    if isinstance(error, Interrupted):
        _print(f"{error}\nthe same command continues")
        return error.exit_status
    if isinstance(error, UserError):
        _print(str(error))
        if command and asks_for_trust(error):
            _print(f"if you trust that code, run it: {shlex.join(['mlm', *command, '--trust'])}")
        return MISTAKE
    at = raised_at(error)
    _print(f"{type(error).__name__}: {error}" + f"\nraised at {at}" * bool(at) + "\n(--debug shows where)")
    return FAILURE

"""What ends a command besides success, and its exit statuses.

UserError       2    a mistake that the user can fix (ConfigError: one wrong setting; InvalidConfigError: several at once)
Interrupted    75    a signal stopped the command with everything saved (Ctrl-C: 130)
anything else   1    a failure
"""

import json
import shlex
import signal
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

FAILURE, MISTAKE, STOPPED, CTRL_C = 1, 2, 75, 130
_NAMES = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""What stops a command, with everything saved; some systems lack one of them."""


class NoValue(Enum):
    """The value of a ConfigError whose key has none, or none worth showing."""

    NO_VALUE = "no value"


NO_VALUE = NoValue.NO_VALUE


class UserError(Exception):
    """A mistake that the user can fix: reported as its message alone, with exit status 2."""


class ConfigError(UserError, ValueError):
    """One setting that cannot be: `key=value: problem; remedy`."""

    def __init__(self, key: str, value: Any, problem: str, remedy: str = "") -> None:
        super().__init__(key, value, problem, remedy)
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy

    def __str__(self) -> str:
        setting = self.key if self.value is NO_VALUE else f"{self.key}={as_typed(self.value)}"
        return f"{setting}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")

    def moved(self, group: str, to: str) -> "ConfigError":
        """The same of a group's copy elsewhere: `data.depth` as `eval.data.k0.depth`."""
        inside = self.key == group or self.key.startswith(f"{group}.")
        key = to + self.key.removeprefix(group) if inside else f"{to}.{self.key}"
        return type(self)(key, self.value, self.problem, self.remedy)


class UntrustedError(ConfigError):
    """A run names a class that may run any code."""


class MissingPackagesError(ConfigError):
    """Optional packages that are not installed, by their names, each as pip is asked for it; `users` need them."""

    def __init__(self, users: Sequence[str], packages: Mapping[str, str]) -> None:
        self.users, self.packages = users, packages
        need = "need" if len(users) > 1 else "needs"
        install = f"pip install {shlex.join(sorted(packages.values()))}"
        super().__init__(_listed(users), NO_VALUE, f"{need} {_listed(packages)}, not installed here", install)
        self.args = (users, packages)  # what an unpickled one is made of

    def moved(self, group: str, to: str) -> "ConfigError":
        return self


def _listed(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


class InvalidConfigError(UserError, ValueError):
    """All that is wrong with a config, a line each; one line installs all that is missing."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        unique = list({str(error): error for error in errors}.values())
        if len(missing := [error for error in unique if isinstance(error, MissingPackagesError)]) > 1:
            packages = {name: asked for error in missing for name, asked in error.packages.items()}
            together = MissingPackagesError(list(dict.fromkeys(user for error in missing for user in error.users)), packages)
            unique = [together, *(error for error in unique if error not in missing)]
        self.errors = tuple(unique)
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))


def asks_for_trust(error: BaseException) -> bool:
    """Whether a command's --trust would help."""
    return any(isinstance(each, UntrustedError) for each in (error, *getattr(error, "errors", ())))


def refuse(errors: Iterable[ConfigError]) -> None:
    """Raises them, if there are any: a single one as itself."""
    found = InvalidConfigError(errors)
    if found.errors:
        raise found.errors[0] if len(found.errors) == 1 else found


def config_errors(error: Exception, key: str) -> list[ConfigError]:
    """What an exception says about settings; one that names none is about `key`."""
    if isinstance(error, InvalidConfigError):
        return list(error.errors)
    return [error if isinstance(error, ConfigError) else ConfigError(key, NO_VALUE, one_line(error))]


def as_typed(value: Any) -> str:
    """A value as one types it in a command."""
    if isinstance(value, str):
        return value if value.strip() else repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {as_typed(each)}' for name, each in value.items())}}}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def one_line(error: BaseException) -> str:
    """The first line of an exception's message; its class where it has none."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


_NOT_OWN = ("<", str(Path(__file__).parent / "_")[:-1], sysconfig.get_path("stdlib"))


def raised_at(error: BaseException) -> str:
    """`my_model.py:12`, the last line of a traceback that is neither ours nor a library's; empty where all are."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    own = (each for each in frames if not each.filename.startswith(_NOT_OWN) and "-packages" not in each.filename)
    return next((f"{each.filename}:{each.lineno}" for each in own), "")


def described(error: BaseException) -> str:
    """An exception in one line, with its kind and its place where the user's code has raised it."""
    at = raised_at(error)
    return f"{type(error).__name__}: {one_line(error)} (raised at {at})" if at else one_line(error)


class BusyError(UserError):
    """Another process is working in the run's folder."""


class PrunedError(Exception):
    """A search has given up this run, whose last checkpoint is written."""


class Interrupted(BaseException):
    """A signal stopped the command; everything that was computed up to optimizer step `step` is saved (None: nothing was)."""

    def __init__(self, signum: int, step: int | None = None) -> None:
        stopped = f"stopped by {signal.Signals(signum).name}"
        super().__init__(stopped if step is None else f"{stopped} after step {step}; everything is saved")
        self.signum, self.step = signum, step

    @property
    def exit_status(self) -> int:
        return CTRL_C if self.signum == signal.SIGINT else STOPPED


def handle(handler: Any, signals: Iterable[signal.Signals] = SIGNALS) -> dict[signal.Signals, Any]:
    """Sets the handler of signals, and returns those before it, for `restore`. An ignored SIGHUP stays so (nohup). Outside the
    main thread, which alone may handle signals, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [each for each in signals if each.name != "SIGHUP" or signal.getsignal(each) != signal.SIG_IGN]
    return {each: signal.signal(each, handler) for each in heard}


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """The signals raise `Interrupted` inside, as SIGINT raises KeyboardInterrupt; by default they end the process without a
    message."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if signal.Signals(signum).name == "SIGHUP":  # a closed window sends it twice: by the shell, and by the system
            signal.signal(signum, signal.SIG_IGN)
        raise Interrupted(signum)

    handlers = handle(interrupt, [each for each in SIGNALS if each != signal.SIGINT])
    try:
        yield
    finally:
        restore(handlers)


@contextmanager
def mistakes() -> Iterator[None]:
    """What constructors and data refuse is a mistake that the user can fix, and so is what a class of their own raises."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if not raised_at(error):
            raise
        raise UserError(described(error)) from error

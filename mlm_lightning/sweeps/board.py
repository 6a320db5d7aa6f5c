"""What a sweep says while it runs: how many runs are done, the time left, and how far those are that work now.

On a terminal, and with several runs at a time, that is a live table; in a log file a line now and then. A single run at a time
shows its own bar, or its own lines.
"""

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from mlm_lightning.messages import duration
from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.sweeps.jobs import Job

log = logging.getLogger(__name__)

_BETWEEN_LINES = 30.0  # seconds


class Board:
    """`total` runs, `done` of which have a result already, `at_once` at a time."""

    def __init__(self, total: int, done: int, at_once: int) -> None:
        self.total, self.done, self.at_once = total, done, at_once
        self._running: dict[Job, float] = {}  # and when each began
        self._seconds: list[float] = []  # of those that came to their end
        self._said_at = time.monotonic()
        self._number = done
        self._live = False

    def started(self, job: Job) -> None:
        self._number += 1
        left = self.seconds_left()
        log.info("[%d/%d%s] %s", self._number, self.total, "" if left is None else f", {_about(left)}", job.difference)
        self._running[job] = time.monotonic()

    def ended(self, job: Job) -> None:
        began = self._running.pop(job)
        self.done += job.is_done
        if job.run.status == "complete":
            self._seconds.append(time.monotonic() - began)

    def tick(self) -> None:
        """Called about once a second."""
        if self.at_once > 1 and not self._live and time.monotonic() - self._said_at >= _BETWEEN_LINES:
            self._said_at = time.monotonic()
            steps = [f"{job.difference} at step {p.step:,}/{p.steps:,}" for job, _, p in self._working() if p is not None]
            log.info("%s%s", self.headline(), "".join(f"; {each}" for each in steps))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        if self.at_once == 1 or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True, redirect_stdout=False):
            self._live = True
            yield

    def headline(self) -> str:
        left = self.seconds_left()
        return f"{self.done} of {self.total} runs done, {len(self._running)} working" + (f", {_about(left)}" if left else "")

    def table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        width = shutil.get_terminal_size().columns - 3  # room for the "^C" that a terminal shows, else it would wrap
        table = Table(box=None, padding=(0, 2), title=self.headline(), title_justify="left", title_style="", width=width)
        table.add_column("run", no_wrap=True, overflow="ellipsis", ratio=1)
        for name in ("step", "loss", "val/loss", "left"):
            table.add_column(name, no_wrap=True, justify="right")
        for job, _, progress in self._working():
            cells = ["starting", "", "", ""]
            if progress is not None:
                left = progress.seconds_left
                cells = [f"{progress.step:,}/{progress.steps:,}", _number(progress.loss), _number(progress.val_loss)]
                cells.append("" if left is None else duration(left))
            table.add_row(*map(Text, (job.difference, *cells)))
        return table

    def seconds_left(self) -> float | None:
        """By the runs that have ended, else by how far the first ones are; None where nothing is known yet."""
        now, working = time.monotonic(), self._working()
        whole = [now - began + p.seconds_left for _, began, p in working if p is not None and p.seconds_left is not None]
        known = self._seconds or whole
        if not known:
            return None
        typical = sum(known) / len(known)
        each = []
        for _, began, progress in working:
            measured = None if progress is None else progress.seconds_left
            each.append(max(0.0, typical - (now - began)) if measured is None else measured)
        waiting = max(0, self.total - self.done - len(working))
        return max([(sum(each) + waiting * typical) / self.at_once, *each])

    def _working(self) -> list[tuple[Job, float, RunProgress | None]]:
        return [(job, began, RunProgress.read(job.run.folder)) for job, began in list(self._running.items())]


def _about(seconds: float) -> str:
    return f"about {duration(seconds)} left"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

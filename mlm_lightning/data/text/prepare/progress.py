"""How far a preparation is: a bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ProgressCallback = Callable[[str, int, int], None]
"""Called with (step, bytes of input done, bytes in all)."""


@contextmanager
def progress_bar(progress: ProgressCallback | None) -> Iterator[ProgressCallback]:
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda step, done, total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as bar:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:  # what an earlier command did says nothing about the speed
                tasks[step] = bar.add_task(step, total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield report

"""A sweep: the runs that it expects, where they stand, and which come next.

    outputs/<name>/sweep.json        what is expected, written before the first run starts
                   <run>/ <run>/ …   each like a single run's folder, found by the same identity

A grid knows all its runs beforehand; a search (`search.py`) makes the next one from the results so far.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlm_lightning.config.settings import Settings, SweepSettings
from mlm_lightning.files import write_atomically
from mlm_lightning.runs.folder import Run


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep; `swept` are the overrides that tell it from the others."""

    settings: Settings
    swept: tuple[str, ...]
    naming: tuple[str, ...]
    """The overrides in an order that makes the run's name tell it from the others, though names are cut off."""
    run: Run

    @classmethod
    def of(cls, settings: Settings, swept_keys: Sequence[str]) -> "Job":
        """`swept_keys` are the keys that the sweep gives several values."""
        overrides = settings.composed.overrides or ()
        swept = swept_overrides(overrides, swept_keys)
        naming = (*swept, *(each for each in overrides if each.lstrip("+~") not in swept))
        return cls(settings, swept, naming, Run.find(settings, naming))

    @property
    def difference(self) -> str:
        """What tells it from the others."""
        return " ".join(self.swept) or self.run.folder.name

    @property
    def is_done(self) -> bool:
        return self.run.status in ("complete", "pruned")


def swept_overrides(overrides: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Those overrides that give one of the swept keys its value."""
    plain = (override.lstrip("+~") for override in overrides)
    return tuple(override for override in plain if override.partition("=")[0] in keys)


class JobSource(Protocol):
    """Where the next jobs come from."""

    def next(self) -> Job | None:
        """The job to start now; None if there is none at the moment."""

    def ended(self, job: Job) -> None:
        """Takes note of a job that has ended, in whatever way."""

    @property
    def jobs(self) -> list[Job]:
        """All jobs that are known so far."""


class Grid:
    """Jobs that are all known: those that are not done, and failing ones again, at most `retries` times."""

    def __init__(self, jobs: Sequence[Job], retries: int = 0) -> None:
        self._jobs, self._retries = list(jobs), retries
        self._waiting = [job for job in jobs if job.settings.resume == "never" or not job.is_done]
        self._failures: Counter[Job] = Counter()

    @property
    def jobs(self) -> list[Job]:
        return self._jobs

    def next(self) -> Job | None:
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, job: Job) -> None:
        if job.run.status == "failed":
            self._failures[job] += 1
            if self._failures[job] <= self._retries:
                self._waiting.append(job)


@dataclass
class Sweep:
    """What the files of a sweep say about it."""

    folder: Path
    command: list[str]
    swept: list[str]
    settings: SweepSettings

    def write(self, jobs: Sequence[Job]) -> None:
        """Writes sweep.json: the jobs that are expected."""
        content = {
            "command": self.command,
            "swept": self.swept,
            "objective": self.settings.objective,
            "direction": self.settings.direction,
            "trials": self.settings.trials,
            "jobs": [{"folder": job.run.folder.name, "overrides": job.settings.composed.typed_overrides} for job in jobs],
        }
        write_atomically(self.folder / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def value(self, job: Job) -> float | None:
        """A complete job's objective."""
        summary = job.run.summary
        return None if summary is None else summary.get(self.settings.objective)

    def best(self, jobs: Sequence[Job]) -> Job | None:
        values = {job: value for job in jobs if (value := self.value(job)) is not None}
        choose = min if self.settings.direction == "minimize" else max
        return choose(values, key=lambda job: values[job]) if values else None

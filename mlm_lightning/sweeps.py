"""A sweep: the runs that it expects, where they stand, and which come next.

    outputs/<name>/sweep.json        what is expected, written before the first run starts
                   <run>/ <run>/ …   each like a single run's folder, found by the same identity

A grid knows all its runs beforehand; a search (`search.py`) makes the next one from the results so far.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlm_lightning.checkpoints import flat
from mlm_lightning.config import Config
from mlm_lightning.files import write_atomically
from mlm_lightning.runs import Run


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep: its overrides as Hydra takes them, and those of them that are its own."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    run: Run
    trial: int | None = None

    @classmethod
    def of(cls, config: Config, overrides: Sequence[str], swept: Sequence[str], trial: int | None = None) -> "Job":
        """The job of a composed config; `swept` are the keys that the sweep gives several values."""
        return cls(tuple(overrides), own(overrides, swept), Run.find(config, naming(overrides, swept)), trial)

    @property
    def difference(self) -> str:
        """What tells it from the others."""
        return " ".join(self.swept) or self.run.folder.name

    @property
    def naming(self) -> list[str]:
        return naming(self.overrides, [each.partition("=")[0] for each in self.swept])

    @property
    def repeatable(self) -> list[str]:
        """The overrides of a command that makes this run by itself: without its number in a search, which has ended there."""
        plain = (override.lstrip("+") for override in self.overrides)
        return [override for override in plain if not override.startswith("sweep.trial=")]

    @property
    def is_done(self) -> bool:
        return self.run.status in ("complete", "pruned")


def naming(overrides: Sequence[str], swept: Sequence[str]) -> list[str]:
    """The overrides in an order that makes a run's name tell it from the others, though names are cut off."""
    first = own(overrides, swept)
    return [*first, *(override for override in overrides if override.lstrip("+") not in first)]


def own(overrides: Sequence[str], swept: Sequence[str]) -> tuple[str, ...]:
    """Those overrides that give one of the `swept` keys its value."""
    plain = (override.lstrip("+") for override in overrides)
    return tuple(override for override in plain if override.partition("=")[0] in swept)


class Source(Protocol):
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
        self._waiting = [job for job in jobs if job.run.config["resume"] == "never" or not job.is_done]
        self._failures: dict[Job, int] = {}

    @property
    def jobs(self) -> list[Job]:
        return self._jobs

    def next(self) -> Job | None:
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, job: Job) -> None:
        if job.run.status == "failed":
            self._failures[job] = self._failures.get(job, 0) + 1
            if self._failures[job] <= self._retries:
                self._waiting.append(job)


@dataclass
class Sweep:
    """What the files of a sweep say about it."""

    folder: Path
    command: list[str]
    swept: list[str]
    settings: dict[str, Any]

    def write(self, jobs: Sequence[Job]) -> None:
        """Writes sweep.json: the jobs that are expected."""
        content = {
            "command": self.command,
            "swept": self.swept,
            "objective": self.settings["objective"],
            "direction": self.settings["direction"],
            "trials": self.settings["trials"],
            "jobs": [{"folder": job.run.folder.name, "overrides": job.repeatable} for job in jobs],
        }
        write_atomically(self.folder / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def value(self, job: Job) -> float | None:
        """A complete job's objective."""
        summary = job.run.summary
        return None if summary is None else summary.get(self.settings["objective"])

    def best(self, jobs: Sequence[Job]) -> Job | None:
        values = {job: value for job in jobs if (value := self.value(job)) is not None}
        choose = min if self.settings["direction"] == "minimize" else max
        return choose(values, key=lambda job: values[job]) if values else None


def swept_values(run: Run) -> dict[str, Any]:
    """What a run's sweep gives several values, with those of this run; empty for a run of no sweep."""
    try:
        content = json.loads((run.folder.parent / "sweep.json").read_text())
        overrides = next(job["overrides"] for job in content["jobs"] if job["folder"] == run.folder.name)
    except (OSError, ValueError, StopIteration):
        return {}
    values = dict(override.partition("=")[::2] for override in own(overrides, content["swept"]))
    settings = flat(run.config)
    return {key: settings.get(key, value) for key, value in values.items()}

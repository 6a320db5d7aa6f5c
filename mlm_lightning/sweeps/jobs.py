"""A sweep: the runs that it expects, where they stand, and which come next.

    outputs/<name>/sweep.json        what is expected, written before the first run starts
                   <run>/ <run>/ …   each like a single run's folder, found by the same identity

A grid knows all its runs beforehand. In a search Optuna proposes the next one from the results so far, and gives up on runs
that fall behind:

    choices, ranges, intervals ─► ask ─► a run ─► its objective ─► tell ─┐
                                   ▲                                     │   outputs/<name>/search.log holds every trial:
                                   └─────────────────────────────────────┘   the same command goes on where it was

What is proposed is a function of (sweep.seed, number of the trial, results before it). Trials that draw equal values share a
run, and another search does not go on with these trials (runs/study.py). Hydra's own plugin for Optuna is bound to version 2.10
of it and cannot prune, so we ask and tell ourselves.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlm_lightning.config.compose import read_config
from mlm_lightning.config.settings import Settings, SweepSettings
from mlm_lightning.errors import ConfigError, UserError, one_line
from mlm_lightning.files import write_atomically
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.study import NOTE, check_same, description

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep; `swept` are the overrides that tell it from the others."""

    settings: Settings
    swept: tuple[str, ...]
    naming: tuple[str, ...]
    """The overrides that name the run: what the sweep varies, without what its runs have in common."""
    run: Run

    @classmethod
    def of(cls, settings: Settings, swept_keys: Sequence[str]) -> "Job":
        """`swept_keys` are the keys that the sweep gives several values."""
        overrides = settings.composed.overrides or ()
        swept = swept_overrides(overrides, swept_keys)
        naming = swept or overrides
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
    """Where the next jobs come from; `jobs` are all that are known so far."""

    jobs: list[Job]

    def next(self) -> Job | None:
        """The job to start now; None if there is none at the moment."""

    def ended(self, job: Job) -> None:
        """Takes note of a job that has ended, in whatever way."""


class Grid:
    """Jobs that are all known: those that are not done, and failing ones again, at most `retries` times."""

    def __init__(self, jobs: Sequence[Job], retries: int = 0) -> None:
        self.jobs, self._retries = list(jobs), retries
        self._waiting = [job for job in jobs if job.settings.resume == "never" or not job.is_done]
        self._failures: Counter[Job] = Counter()

    def next(self) -> Job | None:
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, job: Job) -> None:
        if job.run.status == "failed":
            self._failures[job] += 1
            if self._failures[job] <= self._retries:
                self._waiting.append(job)


def distribution(override: Any) -> "optuna.distributions.BaseDistribution":
    """Of a parsed override: a choice, a range, or an interval, which is logarithmic with `tag(log, …)`."""
    import optuna

    sweep = override.value()
    if override.is_range_sweep():
        values = [float(value) for value in sweep.range()]
        low, high, step = min(values), max(values), abs(float(sweep.step))
        if all(value.is_integer() for value in (low, high, step)):
            return optuna.distributions.IntDistribution(int(low), int(high), step=int(step))
        return optuna.distributions.FloatDistribution(low, high, step=step)
    if override.is_interval_sweep():
        log = "log" in sweep.tags
        if "int" in sweep.tags or isinstance(sweep.start, int):  # int(interval(1, 8)); Hydra reads plain ends as floats
            return optuna.distributions.IntDistribution(int(sweep.start), int(sweep.end), log=log)
        return optuna.distributions.FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    return optuna.distributions.CategoricalDistribution(list(override.sweep_string_iterator()))


def search_space(choices: Sequence[Any]) -> "dict[str, optuna.distributions.BaseDistribution]":
    """The distributions of parsed overrides by their keys. Raises UserError for intervals that can't be."""
    space = {}
    for override in choices:
        try:
            space[override.get_key_element()] = distribution(override)
        except ValueError as error:
            raise UserError(f"{str(override.input_line).lstrip('+')}: {one_line(error)}") from error
    return space


class Search:
    """Jobs that Optuna proposes: `settings.trials` of them in all, those included that an earlier command has made.

    `make(values, trial)` composes the job of some overrides; `example` is one with the first of all values. Raises UserError
    where the study is of another search.
    """

    def __init__(
        self, study: "optuna.Study", choices: list[Any], settings: SweepSettings, make: Callable[..., Job], example: Job
    ) -> None:
        self._study, self._settings, self._make = study, settings, make
        self._space = search_space(choices)
        # a command that was killed while it asked leaves a trial without all of its values
        begun = [each for each in study.trials if each.state.is_finished() or len(each.params) >= len(self._space)]
        folder, processes = example.run.folder.parent, example.settings.trainer.world_size()
        before = note = description(example.settings.composed, processes, self._space)
        if NOTE in study.user_attrs:
            before = study.user_attrs[NOTE]
        elif begun:  # by an earlier version, which notes nothing: it was made for what its first run was
            first = next(
                map(read_config, sorted(path.parent for path in folder.glob("*/config.yaml"))), example.settings.composed
            )
            before = description(first, processes, begun[0].distributions)
        check_same(folder, before, note)
        if NOTE not in study.user_attrs:
            study.set_user_attr(NOTE, note)
        self.jobs = [self._job(trial) for trial in begun]
        self._again = [job for job, trial in zip(self.jobs, begun, strict=True) if not trial.state.is_finished()]

    def next(self) -> Job | None:
        if self._again:  # a command that was stopped left them behind
            return self._again.pop(0)
        if len(self.jobs) >= (self._settings.trials or 0):
            return None
        import optuna

        # a function of the trials so far, and not of how often the search was stopped
        self._study.sampler = optuna.samplers.TPESampler(seed=self._settings.seed + len(self.jobs))
        job = self._job(self._study.ask(self._space))
        self.jobs.append(job)
        return job

    def ended(self, job: Job) -> None:
        import optuna

        trial = job.settings.composed.get("sweep.trial")
        status, state = job.run.status, optuna.trial.TrialState
        if status == "complete":
            summary, objective = job.run.summary or {}, self._settings.objective
            if objective not in summary:
                there = ", ".join(name for name in summary if "/" in name)
                raise ConfigError("sweep.objective", objective, f"is none of the results, which are {there}")
            self._study.tell(trial, summary[objective], skip_if_finished=True)
        elif status in ("failed", "pruned"):
            self._study.tell(trial, state=state.FAIL if status == "failed" else state.PRUNED, skip_if_finished=True)

    def _job(self, trial: Any) -> Job:
        return self._make([f"{key}={value}" for key, value in trial.params.items() if key in self._space], trial.number)


@dataclass
class Sweep:
    """What the files of a sweep say about it."""

    folder: Path
    command: list[str]
    swept: list[str]
    settings: SweepSettings
    objective_chosen: bool = False
    """Whether the command or a config names an objective, in place of the default."""

    def write(self, jobs: Sequence[Job]) -> None:
        """Writes sweep.json: the runs that are expected, each once."""
        runs = {job.run.folder.name: job for job in jobs}
        content = {
            "command": self.command,
            "swept": self.swept,
            "objective": self.settings.objective,
            "objective_chosen": self.objective_chosen,
            "direction": self.settings.direction,
            "trials": self.settings.trials,
            "jobs": [{"folder": name, "overrides": job.settings.composed.typed_overrides} for name, job in runs.items()],
        }
        file, text = self.folder / "sweep.json", json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
        if not (file.is_file() and file.read_bytes() == text):  # else its disk may be read-only by now
            write_atomically(file, text)

    def value(self, job: Job) -> float | None:
        """A complete job's objective."""
        summary = job.run.summary
        return None if summary is None else summary.get(self.settings.objective)

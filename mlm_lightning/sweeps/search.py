"""A search: Optuna proposes the next run from the results so far, and gives up on runs that fall behind.

    choices, ranges, intervals ─► ask ─► a run ─► its objective ─► tell ─┐
                                   ▲                                     │   outputs/<name>/search.log holds every trial:
                                   └─────────────────────────────────────┘   the same command goes on where it was

What is proposed is a function of (sweep.seed, number of the trial, results before it). Hydra's own plugin for Optuna is bound
to version 2.10 of it and cannot prune, so we ask and tell ourselves.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.errors import ConfigError
from mlm_lightning.sweeps.jobs import Job

if TYPE_CHECKING:
    import optuna


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


class Search:
    """Jobs that Optuna proposes: `settings.trials` of them in all, those included that an earlier command has made.

    `make(values, trial)` composes the job of some overrides.
    """

    def __init__(self, study: "optuna.Study", choices: list[Any], settings: SweepSettings, make: Callable[..., Job]) -> None:
        import optuna

        self._study, self._settings, self._make = study, settings, make
        self._space = {override.get_key_element(): distribution(override) for override in choices}
        begun = [trial for trial in study.trials if trial.state != optuna.trial.TrialState.WAITING]
        self._jobs = [self._job(trial) for trial in begun]
        left = (trial.state == optuna.trial.TrialState.RUNNING for trial in begun)
        self._again = [job for job, is_left in zip(self._jobs, left, strict=True) if is_left]

    @property
    def jobs(self) -> list[Job]:
        return self._jobs

    def next(self) -> Job | None:
        if self._again:  # a command that was stopped left them behind
            return self._again.pop(0)
        assert self._settings.trials is not None
        if len(self._jobs) >= self._settings.trials:
            return None
        import optuna

        # a function of the trials so far, and not of how often the search was stopped
        self._study.sampler = optuna.samplers.TPESampler(seed=self._settings.seed + len(self._jobs))
        job = self._job(self._study.ask(self._space))
        self._jobs.append(job)
        return job

    def ended(self, job: Job) -> None:
        import optuna

        trial = job.settings.sweep.trial if job.settings.sweep else None
        assert trial is not None
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
        return self._make([f"{key}={value}" for key, value in trial.params.items()], trial.number)

"""`mlm train -m`: every job checked, sweep.json, the runs that have no result yet, a table."""

import json
import logging
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mlm_lightning.config.compose import CONFIG_NAME, OWN, Composer, to_plain
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.parse import parse
from mlm_lightning.config.settings import Settings, SweepSettings
from mlm_lightning.errors import NO_VALUE, ConfigError, Interrupted, InvalidConfigError, UserError
from mlm_lightning.messages import print_table, print_text, speak
from mlm_lightning.packages import missing
from mlm_lightning.processes import num_cores, safe_path, see_own_packages
from mlm_lightning.report.answer import answer
from mlm_lightning.report.learned import leaks, shortfalls
from mlm_lightning.report.page import show_runs
from mlm_lightning.report.results import DEFAULT, collect
from mlm_lightning.report.study import study
from mlm_lightning.runs.folder import Run, read_note
from mlm_lightning.runs.study import open_study
from mlm_lightning.sweeps import pool
from mlm_lightning.sweeps.board import Board
from mlm_lightning.sweeps.conditions import asked_of, evaluate_all
from mlm_lightning.sweeps.jobs import Grid, Job, JobSource, Search, Sweep, search_space, swept_overrides
from mlm_lightning.training.train import check_start
from mlm_lightning.values import expanded

log = logging.getLogger(__name__)

_MOST_ROWS = 40  # of the table


def run_sweep(hydra: Composer, overrides: Sequence[str], master: DictConfig, only_show: bool = False) -> int:
    """Runs all jobs of a command line that have no result yet. Returns the exit status: 1 if a job has none afterwards. With
    `only_show` it prints what it would run, and writes nothing."""
    speak()
    if "BasicSweeper" not in master.hydra.sweeper._target_:
        raise ConfigError("hydra/sweeper", NO_VALUE, "mlm searches by itself", "give sweep.trials=N, and hydra/sweeper=basic")
    overrides = hydra.with_params(overrides, master)
    choices = [override for override in hydra.choices(overrides) if override.is_sweep_override()]
    swept = [override.get_key_element().lstrip("+") for override in choices]
    composed = hydra.with_origin(master, overrides)
    for key in swept:
        if key in ("name", "output_dir", "resume") or key.partition(".")[0] in ("sweep", "hydra"):
            raise ConfigError(key, NO_VALUE, "can't be swept over; the runs of a sweep lie side by side in one folder")
    trials = composed.get("sweep.trials")
    if trials is not None and not swept:
        raise ConfigError("sweep.trials", trials, "there is nothing to search in", "give a key several values, or an interval")
    # what every job of a search has in common is wrong before the first trial is on record
    lacking = [] if trials is None else missing(f"sweep.trials={trials}", "optuna")
    jobs = _grid(hydra, hydra.jobs(overrides) if trials is None else _ends(hydra, choices, overrides), swept, lacking)
    folder, settings = jobs[0].run.folder.parent, jobs[0].settings.sweep
    assert settings is not None
    devices = jobs[0].settings.trainer.devices
    if "BasicLauncher" not in master.hydra.launcher._target_ and str(devices) in ("auto", "-1"):
        problem = "its machines may have another number of devices than this one, and the number decides which run it is"
        raise ConfigError("trainer.devices", devices, problem, "give a number")

    if settings.trials is not None:
        search_space(choices)  # what can't be is found before there is a folder
    if only_show:
        _show_plan(folder, jobs, choices, settings)
        return 0

    def make(values: list[str], trial: int) -> Job:
        return _job(hydra, [*_fixed(hydra, overrides), *values, f"++sweep.trial={trial}"], swept)

    given = any(each.lstrip("+").startswith("sweep.objective=") for each in overrides)
    chosen = given or settings.objective != DEFAULT
    source: JobSource = Grid(jobs, settings.retries)
    if settings.trials is not None:
        source = Search(open_study(folder, settings), choices, settings, make, jobs[0])
        if not chosen and len(asked_of(jobs)) > 1:
            log.warning(
                "the search changes the task, and so looks for the easiest one: val/loss is each run's own. A fair objective "
                "is the same for all runs: 'eval.mask_rates=[0.15]' sweep.objective=val/loss_rate_0.15"
            )
    sweep = Sweep(folder, ["mlm", "train", *sys.argv[2:]], swept, settings, objective_chosen=chosen)
    sweep.write(source.jobs)
    log.info("%-12s %s, %d runs", "sweep", folder, settings.trials or len(jobs))
    began = time.monotonic()
    try:
        _run(hydra, master, source, sweep, jobs[0].settings)
        evaluate_all(source.jobs)
    finally:
        _show(sweep, source.jobs, time.monotonic() - began)
    return 0 if all(job.is_done or job.run.status == "running" for job in source.jobs) else 1


def _show_plan(folder: Path, jobs: Sequence[Job], choices: list[Any], settings: SweepSettings) -> None:
    """The runs of a grid; of a search its space, and the trials so far."""
    folders = [job.run.folder for job in jobs]
    if settings.trials is not None:
        print_table([("searched", str(each.input_line).lstrip("+")) for each in choices])
        made = read_note(folder / "sweep.json")
        folders = [folder / each["folder"] for each in made["jobs"]] if made.get("trials") else []
    log.info("%-12s %s, %d of %d runs", "sweep", folder, len(folders), settings.trials or len(jobs))
    print_table([(str(each), Run(each).status) for each in folders], ("run", "status"))


def _grid(hydra: Composer, jobs: list[list[str]], swept: list[str], lacking: Sequence[UserError] = ()) -> list[Job]:
    """Composes and checks every job. Raises with all that is wrong, and `lacking`, before anything is created."""
    where: dict[str, list[str]] = {}
    made: dict[Path, Job] = {}
    for overrides in jobs:
        try:
            job = _job(hydra, overrides, swept)
            made.setdefault(job.run.folder, job)
        except UserError as error:
            for each in error.errors if isinstance(error, InvalidConfigError) else (error,):
                where.setdefault(str(each), []).append(" ".join(swept_overrides(overrides, swept)))
    problems = [str(error) for error in lacking]
    for problem, names in where.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        problems.append(problem if len(names) == len(jobs) else f"{problem} (with {names[0]}{more})")
    if problems:
        raise UserError("\n".join(problems))
    return list(made.values())


def _job(hydra: Composer, overrides: Sequence[str], swept: list[str]) -> Job:
    settings = parse(hydra.composed(overrides))
    check_start(settings)
    return Job.of(settings, swept)


def _fixed(hydra: Composer, overrides: Sequence[str]) -> list[str]:
    """The overrides with one value."""
    return [override.input_line for override in hydra.choices(overrides) if not override.is_sweep_override()]


def _ends(hydra: Composer, choices: list[Any], overrides: Sequence[str]) -> list[list[str]]:
    """Jobs that try, one key after the other, all its choices, or the two ends of its interval and a number in it."""
    values = {}
    for override in choices:
        sweep = override.value()
        ends = [sweep.start, sweep.end] if override.is_interval_sweep() else list(override.sweep_string_iterator())
        if isinstance(ends[0], float) and "int" not in sweep.tags:  # ends alone may be whole
            ends.append(sweep.start + (sweep.end - sweep.start) / math.pi)
        values[override.get_key_element()] = ends
    first = {key: ends[0] for key, ends in values.items()}
    tried = [first | {key: end} for key, ends in values.items() for end in ends]
    fixed = _fixed(hydra, overrides)
    return [[*fixed, *(f"{key}={value}" for key, value in each.items())] for each in tried]


def _run(hydra: Composer, master: DictConfig, source: JobSource, sweep: Sweep, example: Settings) -> None:
    """Runs what `source` hands out; `example` are the settings of some job."""
    known = len(source.jobs)
    done = sum(job.is_done for job in source.jobs)
    total = sweep.settings.trials or known
    if done:
        log.info("%d of %d runs have a result already", done, total)
    by_us = "BasicLauncher" in master.hydra.launcher._target_
    at_once = min(num_cores() if sweep.settings.jobs == "auto" else sweep.settings.jobs, total) if by_us else 1
    board = Board(total, done, at_once)

    def started(job: Job) -> None:
        if len(source.jobs) != known:
            sweep.write(source.jobs)
        board.started(job)

    def ended(job: Job) -> None:
        board.ended(job)
        value, status = sweep.value(job), job.run.status
        result = job.run.reason[:200].partition("\n")[0] if value is None else f"{sweep.settings.objective} {value:.4f}"
        log.info("    %s: %s  %s", status, job.difference, result)

    if by_us:
        with board.shown():
            pool.run_all(source, pool.slots(at_once, example.trainer), started, ended, board.tick)
    else:
        _run_by_plugin(hydra, master, source, sweep, started, ended)


def _run_by_plugin(hydra: Composer, master: DictConfig, source: JobSource, sweep: Sweep, started: Any, ended: Any) -> None:
    """By one of Hydra's launchers: joblib, Ray, submitit. They take a batch of jobs and return when all of them have ended."""
    at_once = master.hydra.launcher.get("n_jobs") or master.hydra.launcher.get("array_parallelism") or num_cores()
    at_most = int(at_once) if sweep.settings.trials is not None else sys.maxsize
    while batch := list(islice(iter(source.next, None), at_most)):
        for job in batch:
            started(job)
        with safe_path():
            hydra.launch(_task, master, [list(job.settings.composed.overrides or ()) for job in batch])
        for job in batch:
            if job.run.status == "missing":
                job.run.fail(RuntimeError("its worker exited without an error message; the launcher's log may say why"))
            source.ended(job)
            ended(job)


def _task(config: DictConfig) -> float | None:
    """A job in the process of one of Hydra's launchers. Returns its validation loss."""
    from hydra.core.hydra_config import HydraConfig

    job_config = HydraConfig.get()
    os.chdir(job_config.runtime.cwd)  # relative paths are the command's, wherever the launcher's worker started
    see_own_packages()
    config_dir = next((each.path for each in job_config.runtime.config_sources if each.provider == OWN), None)
    name = job_config.job.config_name
    overrides = tuple(job_config.overrides.task)
    settings = parse(Composed(to_plain(config), overrides, config_dir, None if name == CONFIG_NAME else name))
    expected = json.loads((expanded(settings.output_dir) / settings.name / "sweep.json").read_text())
    job = Job.of(settings, expected["swept"])
    try:
        pool.attempt(job)
    except Interrupted as stopped:  # the launcher would take it for its own end
        log.info("%s", stopped)
    return (job.run.summary or {}).get("val/loss")


def _show(sweep: Sweep, jobs: Sequence[Job], seconds: float) -> None:
    """The table at the end, by the rules of `mlm report`: every run, or the best ones and all that have no result."""
    found = study(collect([str(sweep.folder)]))
    show_runs(found, _MOST_ROWS)
    runs = {job.run.folder: job for job in jobs}
    counts = Counter(job.run.status for job in runs.values())
    print_text("\n" + ", ".join(f"{number} {status}" for status, number in counts.items()) + f"; {seconds:.0f} s")
    if len(runs) < len(jobs):
        print_text(f"{len(jobs)} trials drew {len(runs)} different sets of values: equal ones are one run")
    for job in runs.values():
        if job.run.status == "failed":
            print_text(f"failed   {job.difference}: {job.run.reason}")
    if found.collection.complete:
        summaries = [result.summary for result in found.collection.complete]
        print_text("\n".join([answer(found)[0], *leaks(summaries), *shortfalls(summaries)]))
    if found.best is not None:
        print_text(f"best     {found.best.folder}")
    typed = shlex.quote(str(sweep.folder))
    print_text(f"report   mlm report {typed}\ncurves   tensorboard --logdir {typed}")

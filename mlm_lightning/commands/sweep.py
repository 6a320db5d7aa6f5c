"""`mlm train -m`: every job checked, sweep.json, the runs that have no result yet, a table."""

import json
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mlm_lightning.commands import pool
from mlm_lightning.compose import Composer, to_plain
from mlm_lightning.config import Config
from mlm_lightning.errors import BusyError, Interrupted, PrunedError, UserError, say
from mlm_lightning.processes import num_cores
from mlm_lightning.runs import Run
from mlm_lightning.sweeps import Grid, Job, Source, Sweep, own

_SHOWN = 40  # rows of the table


def run_sweep(hydra: Composer, overrides: Sequence[str], master: DictConfig) -> int:
    """Runs all jobs of a command line that have no result yet. Returns the exit status: 1 if a job has none afterwards."""
    if "BasicSweeper" not in master.hydra.sweeper._target_:
        raise UserError("hydra/sweeper: mlm searches by itself; give sweep.trials=N, and hydra/sweeper=basic")
    overrides = hydra.with_params(overrides, master)
    choices = [override for override in hydra.choices(overrides) if override.is_sweep_override()]
    swept = [override.get_key_element().lstrip("+") for override in choices]
    config = to_plain(master)
    settings = config["sweep"]
    _check_swept(swept, settings)
    source: Source
    if settings["trials"] is None:
        jobs = _grid(hydra, hydra.jobs(overrides), swept)
        folder = jobs[0].run.folder.parent
        source = Grid(jobs, settings["retries"])
    else:
        fixed = [each.input_line for each in hydra.choices(overrides) if not each.is_sweep_override()]
        folder = Path(config["output_dir"]) / config["name"]
        source = _search(hydra, choices, fixed, folder, settings)
    expected = Sweep(folder, ["mlm", "train", *sys.argv[2:]], swept, settings)
    expected.write(source.jobs)
    began = time.monotonic()
    try:
        _run(hydra, master, source, expected)
    finally:
        _show(expected, source.jobs, time.monotonic() - began)
    return 0 if all(job.is_done or job.run.status == "running" for job in source.jobs) else 1


def _check_swept(swept: list[str], settings: dict[str, Any]) -> None:
    for key in swept:
        if key in ("name", "output_dir", "resume") or key.partition(".")[0] in ("sweep", "hydra"):
            raise UserError(f"{key}: can't be swept over; the runs of a sweep lie side by side in one folder")
    if settings["trials"] is not None and not swept:
        raise UserError(
            f"sweep.trials={settings['trials']}: there is nothing to search in; give a key several values, or an interval"
        )


def _grid(hydra: Composer, jobs: list[list[str]], swept: list[str]) -> list[Job]:
    """Composes and checks every job. Raises UserError with all problems, before anything is created."""
    problems: dict[str, list[str]] = {}
    made: dict[Path, Job] = {}
    for overrides in jobs:
        try:
            job = _job(hydra, overrides, swept)
            made.setdefault(job.run.folder, job)
        except UserError as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(" ".join(own(overrides, swept)))
    if problems:
        raise UserError("\n".join(_of_jobs(problem, where, len(jobs)) for problem, where in problems.items()))
    return list(made.values())


def _of_jobs(problem: str, where: list[str], jobs: int) -> str:
    if len(where) == jobs:
        return problem
    more = f" and {len(where) - 1} more" if len(where) > 1 else ""
    return f"{problem} (with {where[0]}{more})"


def _job(hydra: Composer, overrides: Sequence[str], swept: list[str], trial: int | None = None) -> Job:
    from mlm_lightning.commands.train import check_job

    composed = hydra.compose(overrides)
    check_job(composed)
    return Job.of(to_plain(composed), overrides, swept, trial)


def _search(hydra: Composer, choices: list[Any], fixed: list[str], folder: Path, settings: dict[str, Any]) -> Source:
    from mlm_lightning.search import Search, open_study

    swept = [override.get_key_element().lstrip("+") for override in choices]

    def make(values: list[str], trial: int) -> Job:
        return _job(hydra, [*fixed, *values, f"++sweep.trial={trial}"], swept, trial)

    for override in choices:  # what every job has in common is wrong before the first trial is on record
        if override.is_interval_sweep():
            ends = [f"{override.get_key_element()}={end}" for end in (override.value().start, override.value().end)]
        else:
            ends = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        others = [f"{o.get_key_element()}={_first_value(o)}" for o in choices if o is not override]
        _grid(hydra, [[*fixed, *others, end] for end in ends], swept)
    return Search(open_study(folder, settings), choices, settings["trials"], settings["seed"], settings["objective"], make)


def _first_value(override: Any) -> Any:
    return override.value().start if override.is_interval_sweep() else next(override.sweep_string_iterator())


def _run(hydra: Composer, master: DictConfig, source: Source, expected: Sweep) -> None:
    known = len(source.jobs)
    done = sum(job.is_done for job in source.jobs)
    total = expected.settings["trials"] or known
    if done:
        say(f"{done} of {total} runs have a result already")
    number = count(done + 1)

    def started(job: Job) -> None:
        if len(source.jobs) != known:
            expected.write(source.jobs)
        say(f"[{next(number)}/{total}] {job.difference}")

    def ended(job: Job) -> None:
        value, status = expected.value(job), job.run.status
        result = job.run.reason.splitlines()[0][:200] if job.run.reason else ""
        if value is not None:
            result = f"{expected.settings['objective']} {value:.4f}"
        say(f"    {status}: {job.difference}  {result}")

    if "BasicLauncher" in master.hydra.launcher._target_:
        at_once = expected.settings["jobs"]
        at_once = num_cores() if at_once == "auto" else at_once
        places = pool.slots(min(at_once, total), _first_config(source, master))
        pool.run_all(source, places, started, ended)
    else:
        _run_by_plugin(hydra, master, source, started, ended)


def _first_config(source: Source, master: DictConfig) -> Config:
    return source.jobs[0].run.config if source.jobs else to_plain(master)


def _run_by_plugin(hydra: Composer, master: DictConfig, source: Source, started: Any, ended: Any) -> None:
    """By one of Hydra's launchers: joblib, Ray, submitit. They take a batch of jobs and return when all of them have ended."""
    at_once = master.hydra.launcher.get("n_jobs") or master.hydra.launcher.get("array_parallelism") or num_cores()
    searching = to_plain(master)["sweep"]["trials"] is not None
    while batch := _next_batch(source, int(at_once) if searching else None):
        for job in batch:
            started(job)
        hydra.launch(_task, master, [list(job.overrides) for job in batch])
        for job in batch:
            if job.run.status == "missing":
                job.run.fail(RuntimeError("its worker ended without a word; the launcher's log may say why"))
            source.ended(job)
            ended(job)


def _next_batch(source: Source, at_most: int | None) -> list[Job]:
    batch: list[Job] = []
    while (at_most is None or len(batch) < at_most) and (job := source.next()) is not None:
        batch.append(job)
    return batch


def _show(expected: Sweep, jobs: Sequence[Job], seconds: float) -> None:
    """The table at the end: every run, or the best ones and all that have no result."""
    from rich.console import Console
    from rich.table import Table

    objective, best = expected.settings["objective"], expected.best(jobs)
    table = Table(box=None, padding=(0, 2))
    for column in (*expected.swept, "status", objective, "steps", "seconds"):
        table.add_column(column, justify="left" if column in (*expected.swept, "status") else "right")
    worst_first = expected.settings["direction"] == "maximize"
    shown = list(jobs)
    if len(shown) > _SHOWN:
        with_value = sorted((job for job in jobs if expected.value(job) is not None), key=expected.value, reverse=worst_first)  # type: ignore[arg-type]
        shown = [*with_value[:_SHOWN], *(job for job in jobs if expected.value(job) is None)]
    for job in shown:
        values = dict(each.partition("=")[::2] for each in job.swept)
        summary, value = job.run.summary or {}, expected.value(job)
        cells = [values.get(key, "") for key in expected.swept]
        cells += [job.run.status, "" if value is None else f"{value:.4f}" + (" *" if job is best else "")]
        cells += [f"{summary['steps']:,}" if summary else "", f"{summary['seconds']:.0f}" if summary else ""]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    if len(shown) < len(jobs):
        console.print(f"  … and {len(jobs) - len(shown)} further runs")
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.run.status] = counts.get(job.run.status, 0) + 1
    console.print(
        "\n" + ", ".join(f"{number} {status}" for status, number in counts.items()) + f"; {seconds:.0f} s", highlight=False
    )
    for job in jobs:
        if job.run.status == "failed":
            console.print(f"failed   {job.difference}: {job.run.reason}", highlight=False, soft_wrap=True)
    if best is not None:
        console.print(f"best     {best.run.folder}", highlight=False, soft_wrap=True)
    console.print(f"report   mlm report {expected.folder}", highlight=False, soft_wrap=True)
    console.print(f"curves   tensorboard --logdir {expected.folder}", highlight=False, soft_wrap=True)


def _task(config: DictConfig) -> float | None:
    """A job in the process of one of Hydra's launchers. Returns its validation loss."""
    from hydra.core.hydra_config import HydraConfig

    plain = to_plain(config)
    swept = json.loads((Path(plain["output_dir"]) / plain["name"] / "sweep.json").read_text())["swept"]
    job = Job.of(plain, list(HydraConfig.get().overrides.task), swept)
    try:
        attempt(plain, job.naming)
    except Interrupted as stopped:  # the launcher would take it for its own end
        say(str(stopped))
    return (job.run.summary or {}).get("val/loss")


def attempt(config: Config, overrides: Sequence[str]) -> int:
    """One job of a sweep: its result, or why there is none, is in its folder afterwards. Returns an exit status."""
    from mlm_lightning.commands.errors import report
    from mlm_lightning.commands.train import train

    run = Run.find(config, overrides)
    try:
        train(config, overrides)
    except BusyError as error:  # another command is at it
        say(str(error))
        return 0
    except PrunedError as error:
        run.write_json("pruned.json", {"message": str(error)})
        say(str(error))
        return 0
    except Exception as error:
        run.fail(error)
        return report(error)
    return 0

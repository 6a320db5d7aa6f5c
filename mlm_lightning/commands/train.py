"""`mlm train`: compose → check every job → a folder a job → fit → table."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig

from mlm_lightning.config import Config, TrainerSettings, check
from mlm_lightning.errors import Interrupted, PrunedError, UserError, mistakes, say

HELP = """\
mlm train [OVERRIDE…] [-m] [--config-dir DIR] [--debug]

Trains one run, or a sweep with -m. The same command continues an unfinished run.

  mlm train                                       the default: tree-structured data, a small transformer
  mlm train experiment=uniform_floor              a shipped experiment
  mlm train data.depth=5 model.num_layers=6       any key of the config
  mlm train -m masking.rate=0.1,0.2,0.4 seed=0,1  a sweep: 6 runs; again: those that have no result yet
  mlm train sweep=mask_rate sweep.jobs=2          a shipped sweep, two runs at a time
  mlm train -m sweep.trials=30 'optim.lr=tag(log, interval(1e-4, 1e-2))'      a search
  mlm train data=text data.path='texts/*.txt' data.tokenizer=train
  mlm train --cfg job                             shows the composed config

Hydra's own flags work: --cfg job, --info, -m, --config-dir, --config-name, --resolve, --package.
"""

_HYDRA_ONLY = ("cfg", "info", "hydra_help", "shell_completion", "version")
_outcomes: list[int] = []


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    from hydra._internal.utils import get_args_parser

    from mlm_lightning.compose import composer

    sys.path.append(os.getcwd())  # a `_target_` may name a package in this folder
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(arguments)
    with composer(flags.config_dir, flags.config_name) as hydra:
        overrides = hydra.plain(flags.overrides)
        if not any(getattr(flags, name, None) for name in _HYDRA_ONLY):
            several = any(override.is_sweep_override() for override in hydra.choices(overrides))
            config = hydra.master(overrides) if several else hydra.compose(overrides)
            if flags.multirun or str(config.hydra.mode) == "RunMode.MULTIRUN":
                from mlm_lightning.commands.sweep import run_sweep

                return run_sweep(hydra, overrides, hydra.master(overrides))
            if several:
                raise UserError("several values for one key: add -m to run a sweep, or quote a value that contains commas")
            check_job(config)
    return _hydra_main([*_flags_only(arguments, flags.overrides), *overrides])


def _refuse(message: str) -> NoReturn:
    raise UserError(f"mlm train: {message}; mlm train --help shows how to call it")


def train(config: DictConfig | Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains the run of a config, or continues it, and returns its summary (on the first machine of several).

    `overrides` names the folder. Raises UserError for a config that cannot be, `errors.Interrupted` where a signal stopped the
    run, and whatever stops the training; error.json then says why.
    """
    from mlm_lightning.commands import launch
    from mlm_lightning.compose import to_plain
    from mlm_lightning.runs import Run

    plain = to_plain(config) if isinstance(config, DictConfig) else config
    check(plain)
    settings = TrainerSettings(**plain["trainer"])
    run = Run.find(plain, overrides)
    nodes = launch.Nodes(run, settings)
    if settings.num_nodes > 1 and launch.node_rank() > 0:
        return launch.follow(settings, nodes)
    try:
        with nodes.leading():
            return _train(run, nodes)
    except Interrupted as error:
        if settings.auto_requeue and error.signum == signal.SIGUSR1:
            _requeue()
        raise


def _train(run: Any, nodes: Any) -> dict[str, Any]:
    from mlm_lightning.commands import launch
    from mlm_lightning.resume import begin, parent_of

    parent = parent_of(run.config)
    again = run.config["resume"] == "never"
    sources = _prepared_sources(run.config) if again or run.summary is None else None
    if again:
        _restart(run)
    with run.locked():
        if sources is None or run.summary is not None:
            say(f"complete: {run.folder} (resume=never runs it again)")
            return run.summary
        try:
            position = begin(run, parent, sources)
            if TrainerSettings(**run.config["trainer"]).world_size() > 1:
                return launch.lead(run, position, nodes)
            from mlm_lightning.training import fit

            return fit(run, position, sources)
        except Exception as error:
            if not isinstance(error, UserError | PrunedError):
                run.fail(error)
            raise


def _prepared_sources(config: Config) -> Any:
    """Downloads and builds caches, and finds what is wrong with the data, before a run has a folder."""
    from mlm_lightning.config import prepare_sources

    with mistakes():
        sources = prepare_sources(config, evaluated="val")
        sources.own.rows("train")
    return sources


def _requeue() -> None:
    """Asks SLURM to run this job again, now that it is about to end it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's next word to us
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        say(f"SLURM will run job {job} again")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        say(f"scontrol requeue {job}: {reason}; submit the job again, and it continues")


def _restart(run: Any) -> None:
    if run.folder.exists():
        with run.locked():
            aside = run.move_aside()
        say(f"starting again; the old run is in {aside}")


def _task(config: DictConfig) -> None:
    """Hydra's task function."""
    from hydra.core.hydra_config import HydraConfig

    from mlm_lightning.commands.errors import report
    from mlm_lightning.compose import to_plain
    from mlm_lightning.runs import Run

    overrides = list(HydraConfig.get().overrides.task)
    try:
        summary = train(config, overrides)
        show(Run.find(to_plain(config), overrides).folder, summary)
    except Exception as error:
        _outcomes.append(report(error))


def _hydra_main(arguments: list[str]) -> int:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from mlm_lightning.compose import CONFIG_NAME, config_folder

    GlobalHydra.instance().clear()
    sys.argv = ["mlm train", *arguments]
    _outcomes.clear()
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)(_task)()
    return max(_outcomes, default=0)


def check_job(config: DictConfig) -> None:
    """Raises UserError with all problems, before anything is created."""
    from mlm_lightning.commands.launch import check_environment
    from mlm_lightning.compose import to_plain
    from mlm_lightning.runs import locate

    plain = to_plain(config)
    check(plain)
    check_environment(TrainerSettings(**plain["trainer"]))
    if plain["resume"] not in ("auto", "never"):
        locate(plain["resume"], "resume")


def _flags_only(arguments: list[str], overrides: list[str]) -> list[str]:
    remaining = list(overrides)
    flags = []
    for argument in arguments:
        if argument in remaining:
            remaining.remove(argument)
        else:
            flags.append(argument)
    return flags


def show(folder: Path, summary: dict[str, Any]) -> None:
    """The table at the end of a run."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=None, show_header=False, box=None, padding=(0, 2))
    rows = [
        ("val/loss", "validation loss", "nats a token"),
        ("val/oracle_loss", "best possible loss", "nats a token (oracle)"),
        ("val/excess_loss", "excess over the oracle", ""),
        ("val/perplexity", "perplexity", ""),
        ("val/accuracy", "accuracy", ""),
        ("val/oracle_accuracy", "best possible accuracy", "(oracle)"),
        ("best/val/loss", "best validation loss", f"at step {summary.get('best/step', 0)}"),
        ("steps", "steps", f"{summary.get('tokens', 0):,} tokens"),
        ("tokens_per_second", "tokens a second", ""),
        ("seconds", "seconds", ""),
    ]
    for key, label, unit in rows:
        if key in summary:
            value = summary[key]
            if key == "val/excess_loss":
                unit = f"± {summary['val/excess_loss_se']:.4f} (standard error)"
            shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
            table.add_row(label, shown, unit)
    console = Console()
    console.print(table)
    console.print(f"\nrun          {folder}", highlight=False, soft_wrap=True)
    console.print(f"curves       tensorboard --logdir {folder.parent}", highlight=False, soft_wrap=True)

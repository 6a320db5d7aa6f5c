"""One run from its settings to its summary: its folder, where it begins, then one process or several.

settings ─► the folder of this identity ─ complete? ─► its summary
                  │ locked
                  └► data prepared ─► its last checkpoint, a parent's, or the first step ─► fit, here or in ranks
"""

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from mlm_lightning.config.build import prepare
from mlm_lightning.config.located import locate
from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import Interrupted, PrunedError, UserError, mistakes, refuse
from mlm_lightning.files import run_disk_named
from mlm_lightning.messages import speak
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.resume import begin, check_complete, check_tokens, parent_of
from mlm_lightning.training import ranks
from mlm_lightning.training.check import check_training, schedule_errors
from mlm_lightning.training.contracts import try_own_parts
from mlm_lightning.training.nodes import Nodes, check_environment, node_rank

log = logging.getLogger(__name__)


def announce(settings: Settings, naming: Sequence[str] | None = None) -> None:
    """Says where the run of these settings is or will be."""
    log.info("%-12s %s", "run", Run.find(settings, naming).folder)


def train(settings: Settings, naming: Sequence[str] | None = None, announced: bool = False) -> dict[str, Any]:
    """Trains the run of these settings, or continues it, and returns its summary (on the first machine of several).

    A new folder is named after the overrides `naming`, by default those of the settings; it is `announced`, or that is done
    here. Raises UserError for what can't be,
    `errors.Interrupted` where a signal stopped the run, and whatever stops the training; error.json then says why.
    """
    speak()
    check_start(settings)
    if not announced:
        announce(settings, naming)
    run, machines = Run.find(settings, naming), Nodes(settings, {each.partition("=")[0] for each in naming or ()})
    if settings.trainer.num_nodes > 1 and node_rank() > 0:
        return ranks.follow(settings.trainer, machines)
    try:
        with machines.leading():
            return _train(run, settings, machines)
    except Interrupted as error:
        if settings.trainer.auto_requeue and error.signum == signal.SIGUSR1:
            _requeue()
        raise


def check_start(settings: Settings) -> None:
    """Raises UserError where the environment or the run to resume from can't be, or a complete run is not this one; creates
    nothing."""
    check_environment(settings.trainer)
    check_complete(Run.find(settings), settings)
    check_training(settings)
    if settings.resume not in ("auto", "never"):
        locate(settings.resume, "resume")


def _train(run: Run, settings: Settings, nodes: Nodes) -> dict[str, Any]:
    parent = parent_of(settings)
    again = settings.resume == "never"
    if not again and run.summary is not None:  # of which the disk may be read-only
        return _complete(run)
    with mistakes():  # downloads, builds caches, and finds what is wrong with the data, before there is a folder
        conditions = prepare(settings, evaluated="val")
        try_own_parts(settings, conditions)
        if settings.trainer.time_budget is None:
            total = settings.trainer.plan(conditions[0].source.num_rows(), settings.loader.batch_size).total_steps
            refuse(schedule_errors(settings, total))
        if again or not any(run.checkpoints.glob("*.ckpt")):
            check_tokens(settings, parent, conditions[0].source.vocab)
    if again and run.folder.exists():
        with run.locked():
            aside = run.move_aside()
        log.info("starting again; the old run is in %s", aside)
    with run.locked():
        if run.summary is not None:  # another process has completed it
            return _complete(run)
        try:
            position = begin(run, settings, parent, conditions)
            with run_disk_named(run.folder):
                if settings.trainer.world_size() > 1:
                    return ranks.lead(run, settings, position, nodes)
                from mlm_lightning.training.fit import fit  # Lightning, which a complete run does without

                return fit(run, settings, position, conditions)
        except Exception as error:
            if not isinstance(error, UserError | PrunedError):
                run.fail(error)
            raise


def _complete(run: Run) -> dict[str, Any]:
    log.info("complete: %s (resume=never runs it again)", run.folder)
    return run.summary or {}


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
        log.info("SLURM will run job %s again", job)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.warning("scontrol requeue %s: %s; submit the job again, and it continues", job, reason)

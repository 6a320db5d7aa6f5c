"""Where a run begins: at its own last checkpoint, at that of a parent, or at its first step.

own checkpoint?  ─ yes ─► does it compute what this command computes? ─► go on, as if nothing had happened
      │ no
resume=FOLDER?   ─ yes ─► weights, optimizer state and position of that run; what differs is listed
      │ no
a run that differs in its length alone?  ─► named, with the command that goes on from it
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from mlm_lightning.config.compose import read_config
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.condition import Condition, fingerprint
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, Position, differences, flat, record_of
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import deciding
from mlm_lightning.runs.load import locate

log = logging.getLogger(__name__)


def parent_of(settings: Settings) -> Position | None:
    """The position of the run that `resume` names: its last one, or that of the checkpoint that is named."""
    if settings.resume in ("auto", "never"):
        return None
    folder, checkpoint = locate(settings.resume, "resume")
    if Path(settings.resume).is_dir():
        return Run(folder).last_checkpoint()
    try:
        return Position.read(checkpoint)
    except DamagedCheckpointError as error:
        raise ConfigError("resume", str(checkpoint), str(error)) from error


def begin(run: Run, settings: Settings, parent: Position | None, conditions: Sequence[Condition]) -> Position | None:
    """Where the run begins: its own last checkpoint, that of its parent, or None. Raises UserError where that can't be."""
    record = record_of(settings, fingerprint(conditions))
    if position := run.last_checkpoint():
        if changes := position.changes(record):
            raise UserError(
                f"{position.path}: is a checkpoint of something else than this command computes (there → here):\n"
                + "".join(f"  {each}\n" for each in changes)
                + f"resume=never starts the run again and moves {run.folder} aside"
            )
        _check_ranks(position, settings)
        return position
    total = settings.trainer.plan(conditions[0].source.num_rows(), settings.loader.batch_size).total_steps
    if parent:
        there, here = flat(parent.record["config"]).get("optim._target_"), settings.optim.target
        if there != here:
            problem = f"the state of {there} can't be continued with it, and resume={settings.resume} has that"
            raise ConfigError("optim._target_", here, problem)
        if parent.step >= total:
            problem = f"has {parent.step:,} steps, and this run ends after {total:,}"
            raise ConfigError("resume", settings.resume, problem, "raise trainer.max_steps or trainer.max_epochs above that")
        _check_ranks(parent, settings)
        log.info("starting %s after step %s of %s", run.folder, f"{parent.step:,}", parent.path)
        for each in parent.changes(record):
            log.info("  %s", each)
        return parent
    if settings.resume == "auto" and (sibling := run.longest_sibling(settings, below=total)):
        folder, step = sibling
        changed = ", ".join(differences(deciding(read_config(folder).config), record["config"]))
        log.info(
            "%s differs in %s alone, and has %s steps. To go on from there, add resume=%s", folder, changed, f"{step:,}", folder
        )
    return None


def _check_ranks(position: Position, settings: Settings) -> None:
    """Another number of processes may continue a run whose steps keep their rows; UserError names the values that keep them."""
    before_ranks, rows = position.record["world_size"], position.record["rows_per_step"]
    ranks, rows_now = settings.trainer.world_size(), settings.rows_per_step
    if before_ranks == ranks or rows == rows_now:
        return
    batch_size, accumulation = settings.loader.batch_size, settings.trainer.accumulate_grad_batches
    folder = position.path.parent.parent
    ways = []
    if rows % (ranks * accumulation) == 0:
        ways.append(f"data.batch_size={rows // (ranks * accumulation)} resume={folder}")
    if rows % (ranks * batch_size) == 0:
        ways.append(f"trainer.accumulate_grad_batches={rows // (ranks * batch_size)} resume={folder}")
    ways.append(f"{before_ranks} process(es) again")
    problem = (
        f"with {ranks} process(es) x {batch_size} rows x {accumulation} a step would have {rows_now} rows, and those of "
        f"{folder} have {rows}, on {before_ranks} process(es)"
    )
    raise ConfigError("trainer.devices", settings.trainer.devices, f"{problem}. It goes on with {', or '.join(ways)}")

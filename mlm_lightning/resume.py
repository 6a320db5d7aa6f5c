"""Where a run begins: at its own last checkpoint, at that of a parent, or at its first step.

own checkpoint?  ─ yes ─► does it compute what this command computes? ─► go on, as if nothing had happened
      │ no
resume=FOLDER?   ─ yes ─► weights, optimizer state and position of that run; what differs is listed
      │ no
a run that differs in its length alone?  ─► named, with the command that goes on from it
"""

from pathlib import Path
from typing import Any

from mlm_lightning.checkpoints import DamagedCheckpointError, differences
from mlm_lightning.config import Config, TrainerSettings
from mlm_lightning.data.source import Source, Sources
from mlm_lightning.errors import UserError, say
from mlm_lightning.runs import Position, Run, deciding, locate, read_config, record_of


def parent_of(config: Config) -> Position | None:
    """The position of the run that `resume` names: its last one, or that of the checkpoint that is named."""
    if config["resume"] in ("auto", "never"):
        return None
    folder, checkpoint = locate(config["resume"], "resume")
    if Path(config["resume"]).is_dir():
        return Run(folder, {}).last_checkpoint()
    try:
        return Position.read(checkpoint)
    except DamagedCheckpointError as error:
        raise UserError(f"resume={checkpoint}: {error}") from error


def begin(run: Run, parent: Position | None, sources: Sources) -> Position | None:
    """Where the run begins: its own last checkpoint, that of its parent, or None. Raises UserError where that can't be."""
    record = record_of(run.config, sources.fingerprint())
    if position := run.last_checkpoint():
        if changes := position.changes(record):
            raise UserError(
                f"{position.path}: is a checkpoint of something else than this command computes (there → here):\n"
                + "".join(f"  {each}\n" for each in changes)
                + f"resume=never starts the run again and moves {run.folder} aside"
            )
        _check_ranks(position, record, run.config)
        return position
    if parent:
        _check_parent(parent, record, run.config, sources.own)
        say(f"starting {run.folder} after step {parent.step:,} of {parent.path}")
        for each in parent.changes(record):
            say(f"  {each}")
        return parent
    if run.config["resume"] == "auto" and (kin := run.kin(below=_total_steps(run.config, sources.own))):
        folder, step = kin
        alone = ", ".join(differences(deciding(read_config(folder)), record["config"]))
        say(f"{folder} differs in {alone} alone, and has {step:,} steps. To go on from there, add resume={folder}")
    return None


def _check_parent(parent: Position, record: dict[str, Any], config: Config, source: Source) -> None:
    there, here = parent.record["config"]["optim"]["_target_"], config["optim"]["_target_"]
    if there != here:
        raise UserError(
            f"optim._target_={here}: the state of {there} can't be continued with it, and resume={config['resume']} has that"
        )
    total = _total_steps(config, source)
    if parent.step >= total:
        raise UserError(
            f"resume={config['resume']}: has {parent.step:,} steps, and this run ends after {total:,}; raise trainer.max_steps "
            "or trainer.max_epochs above that"
        )
    _check_ranks(parent, record, config)


def _total_steps(config: Config, source: Source) -> int:
    return TrainerSettings(**config["trainer"]).plan(source.num_rows(), config["data"]["batch_size"]).total_steps


def _check_ranks(position: Position, record: dict[str, Any], config: Config) -> None:
    """Another number of processes may continue a run whose steps keep their rows; UserError names the values that keep them."""
    before, now = position.record, record
    if before["world_size"] == now["world_size"] or before["rows_per_step"] == now["rows_per_step"]:
        return
    rows, ranks = before["rows_per_step"], now["world_size"]
    batch_size, accumulation = config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    folder = position.path.parent.parent
    ways = []
    if rows % (ranks * accumulation) == 0:
        ways.append(f"data.batch_size={rows // (ranks * accumulation)} resume={folder}")
    if rows % (ranks * batch_size) == 0:
        ways.append(f"trainer.accumulate_grad_batches={rows // (ranks * batch_size)} resume={folder}")
    ways.append(f"{before['world_size']} process(es) again")
    devices, before_ranks = config["trainer"]["devices"], before["world_size"]
    raise UserError(
        f"trainer.devices={devices}: with {ranks} process(es) x {batch_size} rows x {accumulation} a step would have "
        f"{now['rows_per_step']} rows, and those of {folder} have {rows}, on {before_ranks} process(es). It goes on with "
        f"{', or '.join(ways)}"
    )

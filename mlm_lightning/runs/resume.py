"""Where a run begins: at its own last checkpoint, at that of a parent, or at its first step.

own checkpoint?  ─ yes ─► does it compute what this command computes? ─► go on, as if nothing had happened
      │ no
resume=FOLDER?   ─ yes ─► weights, optimizer state and position of that run; what differs is listed
      │ no
a run that differs in its length alone?  ─► named, with the command that goes on from it
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlm_lightning.config.build import eval_data_key
from mlm_lightning.config.compose import read_config
from mlm_lightning.config.located import locate
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.condition import Condition, fingerprint
from mlm_lightning.data.text.prepare.cache import as_first_read
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, Position, flat, record_of
from mlm_lightning.runs.folder import Run, processes_of

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
            kept = f"trainer.precision={position.record.get('precision')} resume={run.folder} goes on in another folder; "
            raise UserError(
                f"{position.path}: is a checkpoint of something else than this command computes (there → here):\n"
                + "".join(f"  {each}\n" for each in changes)
                + kept * any(each.startswith("trainer.precision=auto") for each in changes)
                + f"resume=never starts the run again and moves {run.folder} aside"
            )
        return position
    total: float = math.inf  # with a time budget it is long enough in any case
    if settings.trainer.time_budget is None:
        total = settings.trainer.plan(conditions[0].source.num_rows(), settings.loader.batch_size).total_steps
    if parent:
        before = flat(parent.record["config"])
        there, here = before.get("optim._target_"), settings.optim.target
        if there != here:
            problem = f"the state of {there} can't be continued with it, and resume={settings.resume} has that"
            raise ConfigError("optim._target_", here, problem)
        decay_there, decay = before.get("optim.layer_decay"), settings.optimization.layer_decay
        if (decay_there is None) != (decay is None):  # a number divides the optimizer's state by layers
            problem = f"resume={settings.resume} has {'none' if decay_there is None else decay_there}"
            remedy = f"give {'null' if decay_there is None else 'a number, 1.0 for one rate of all layers'}"
            raise ConfigError("optim.layer_decay", "null" if decay is None else decay, problem, remedy)
        if parent.step >= total:
            problem = f"has {parent.step:,} steps, and this run ends after {total:,}"
            raise ConfigError("resume", settings.resume, problem, "raise trainer.max_steps or trainer.max_epochs above that")
        _check_ranks(parent, settings)
        log.info("starting %s after step %s of %s", run.folder, f"{parent.step:,}", parent.path)
        for each in parent.changes(record):
            log.info("  %s", each)
        return parent
    if settings.resume == "auto" and (sibling := run.longest_sibling(settings, below=total)):
        changed, ways = ", ".join(sibling.changes(record)), _ways_on(sibling, settings)
        if ways:
            log.info(
                "%s differs in %s alone, and has %s steps. To go on from there, add %s",
                *(sibling.path.parent.parent, changed, f"{sibling.step:,}", " or ".join(ways)),
            )
    return None


def check_complete(run: Run, settings: Settings) -> None:
    """Raises UserError where a complete run is of other data than the files that are there now, or of another number of
    processes (an earlier version took no notice of it). Of files that can't be read it says nothing."""
    again = "resume=never trains it again, and moves this one aside"
    processes, there = settings.trainer.world_size(), processes_of(run.manifest, read_config(run.folder).config)
    if there != processes:
        raise UserError(f"{run.folder}: is complete, but it was trained on {there} process(es), not on {processes}; {again}")
    trained_on = {each.partition(":")[0] for each in (run.manifest.get("data") or "").split("+")}
    for names, node in settings.sources.items():
        try:
            if node is not settings.data and node.arguments.get("tokenizer") == "train":  # as `prepare` reads it
                node = replace(node, arguments=node.arguments | settings.data.instance.tokenizer_keys())
            now = node.instance.expected_fingerprint()
        except (ValueError, OSError, RuntimeError):  # RuntimeError: the cache with the tokenizer is gone
            continue
        if now is not None and trained_on != {""} and now not in trained_on:
            key = "data" if node is settings.data else eval_data_key(names)
            what = "have changed since"
            if as_first_read(now) in trained_on:
                what = "are read otherwise now: the reading of quotes, columns, labels and carriage returns was mended"
            raise UserError(f"{run.folder}: is complete, but the files of {key} {what}; {again}")


def _check_ranks(position: Position, settings: Settings) -> None:
    """Another number of processes may continue a run whose steps keep their rows; UserError names the values that keep them."""
    before_ranks, rows = position.record["world_size"], position.record["rows_per_step"]
    ranks, rows_now = settings.trainer.world_size(), settings.rows_per_step
    if before_ranks == ranks or rows == rows_now:
        return
    batch_size, accumulation = settings.loader.batch_size, settings.trainer.accumulate_grad_batches
    problem = (
        f"with {ranks} process(es) x {batch_size} rows x {accumulation} a step would have {rows_now} rows, and those of "
        f"{position.path.parent.parent} have {rows}, on {before_ranks} process(es)"
    )
    ways = [*_ways_on(position, settings), f"{before_ranks} process(es) again"]
    raise ConfigError("trainer.devices", settings.trainer.devices, f"{problem}. It goes on with {', or '.join(ways)}")


def _ways_on(position: Position, settings: Settings) -> list[str]:
    """The overrides with which this command goes on from another run: a step keeps its rows, whoever shares them."""
    rows, processes = position.record["rows_per_step"], settings.trainer.world_size()
    batch_size, accumulation = settings.loader.batch_size, settings.trainer.accumulate_grad_batches
    resume = f"resume={position.path.parent.parent}"
    if rows == settings.rows_per_step:
        return [resume]
    ways = []
    if rows % (processes * accumulation) == 0:
        ways.append(f"data.batch_size={rows // (processes * accumulation)} {resume}")
    if rows % (processes * batch_size) == 0:
        ways.append(f"trainer.accumulate_grad_batches={rows // (processes * batch_size)} {resume}")
    return ways

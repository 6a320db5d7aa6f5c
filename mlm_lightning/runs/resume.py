"""Where a run begins: at its own last checkpoint, at that of a parent, or at its first step.

own checkpoint?  ─ yes ─► does it compute what this command computes? ─► go on, as if nothing had happened
      │                   (by code that was edited: only where resume=FOLDER names this very run)
      │ no
resume=FOLDER?   ─ yes ─► weights, optimizer state and position of that run; what differs is listed
      │ no
a run that differs in its length alone?  ─► named, with the command that goes on from it
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from mlm_lightning.batch import Vocab
from mlm_lightning.config.build import eval_data_key
from mlm_lightning.config.compose import WRITTEN_AGAIN, read_config
from mlm_lightning.config.located import LAST, locate
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.condition import Condition, fingerprint
from mlm_lightning.data.text.tokenizer.load import TRAIN, open_tokenizer, read_vocab
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, Position, differences, flat, record_of
from mlm_lightning.runs.folder import Run, processes_of
from mlm_lightning.runs.identity import identity, sibling_hash
from mlm_lightning.runs.load import stored_vocab
from mlm_lightning.values import expanded

log = logging.getLogger(__name__)

_MENDED = "the reading of text was mended since: an earlier version made other rows of these files"


def parent_of(settings: Settings) -> Position | None:
    """The position of the run that `resume` names: its last one, or that of the checkpoint that is named."""
    if settings.resume in ("auto", "never"):
        return None
    folder, checkpoint = locate(settings.resume, "resume")
    if expanded(settings.resume).is_dir():
        return Run(folder).last_checkpoint()
    try:
        return Position.read(checkpoint)
    except DamagedCheckpointError as error:
        raise ConfigError("resume", str(checkpoint), str(error)) from error


def begin(run: Run, settings: Settings, parent: Position | None, conditions: Sequence[Condition]) -> Position | None:
    """Where the run begins: its own last checkpoint, that of its parent, or None. Raises UserError where that can't be."""
    record = record_of(settings, fingerprint(conditions))
    if position := run.last_checkpoint():
        changes = position.changes(record)
        is_edit = all(each.startswith("own_code") for each in changes)
        if changes and not (is_edit and expanded(settings.resume).resolve() == run.folder.resolve()):
            kept = f"trainer.precision={position.record.get('precision')} resume={run.folder} goes on in another folder; "
            raise UserError(
                f"{position.path}: is a checkpoint of something else than this command computes (there → here):\n"
                + "".join(f"  {each}\n" for each in changes)
                + f"{_MENDED}\n" * any(each.source.mended_since(_names(position.record["data"])) for each in conditions)
                + kept * any(each.startswith("trainer.precision=auto") for each in changes)
                + f"resume={run.folder} goes on with the code that is here now; " * is_edit
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
    if settings.resume == "auto" and (sibling := longest_sibling(run, settings, below=total)):
        changed, ways = ", ".join(sibling.changes(record)), _ways_on(sibling, settings)
        if ways:
            log.info(
                "%s differs in %s alone, and has %s steps. To go on from there, add %s",
                *(sibling.path.parent.parent, changed, f"{sibling.step:,}", " or ".join(ways)),
            )
    return None


def check_tokens(settings: Settings, parent: Position | None, vocab: Vocab) -> None:
    """Raises ConfigError where the weights that a new run begins with are of other tokens than its prepared data. To a model's
    checkpoint a tokenizer may be chosen freely, which is said, but none trained."""
    key, origin, there = "model.checkpoint", settings.model.arguments.get("checkpoint"), None
    tokenizer = origin
    if parent is not None or settings.init.from_run is not None:
        key, origin = ("resume", settings.resume) if parent else ("init.from_run", settings.init.from_run)
        folder, _ = locate(str(origin), key)
        tokenizer = folder / "tokenizer"
        if (folder / "vocab.json").is_file():
            there = stored_vocab(folder / "vocab.json", WRITTEN_AGAIN)
    elif origin is not None and vocab.tokens is not None:
        try:
            there = read_vocab(open_tokenizer(origin, settings.model.arguments.get("revision")))
        except ConfigError:
            log.info("%s=%s brings no tokenizer: the number of its tokens alone is compared with that of data", key, origin)
    if there is None or vocab.has_tokens_of(there):
        return
    problem = f"its tokens are not those of data (there → here: {vocab.difference_from(there)})"
    remedy = f"choose data with its tokens: of text, data.tokenizer={tokenizer} without data.vocab_size"
    error = ConfigError(key, origin, problem, remedy)
    if key == "model.checkpoint" and settings.data.arguments.get("tokenizer") != TRAIN:
        log.warning("%s", error)
    else:
        raise error


def longest_sibling(run: Run, settings: Settings, below: float) -> Position | None:
    """Another run that this one could go on from: the longest of those that differ in their length alone, or in their number of
    processes and how these divide the rows of a step, with less than `below` steps; of copies of one the original."""
    found, kinship, parent = list[Any](), sibling_hash(settings), run.folder.parent
    alone = identity(settings.composed.config)  # what it would be on one process
    own = identity(settings.composed.config, settings.trainer.world_size())
    for each in map(Run, parent.glob("*")):
        manifest, last = each.manifest, each.checkpoints / LAST
        is_sibling = manifest.get("kinship") == kinship or manifest.get("on_one_process", each.folder.name[-8:]) == alone
        if manifest and is_sibling and last.exists() and each.identity != own:  # itself, or a copy of it
            with contextlib.suppress(Exception):  # whatever is wrong with it, it's not this run's
                step = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"]
                found += [(-step, each.originality, last)] if step < below else []
    return Position.read(min(found)[-1]) if found else None


def check_complete(run: Run, settings: Settings) -> None:
    """Raises UserError where a run is complete, but of other data or own code than the files that are there now, or of another
    number of processes (an earlier version took no notice of it). Of files that can't be read it says nothing."""
    searches = settings.sweep is not None and settings.sweep.trials is not None  # and trains no complete trial again
    if run.summary is None or (settings.resume == "never" and not searches):
        return
    again = "name=OTHER searches again" if searches else "resume=never trains it again, and moves this one aside"
    processes, there = settings.trainer.world_size(), processes_of(run.manifest, read_config(run.folder).config)
    if there != processes:
        raise UserError(f"{run.folder}: is complete, but it was trained on {there} process(es), not on {processes}; {again}")
    code = run.manifest.get("own_code")
    if code and (edits := differences(code, record_of(settings, None).get("own_code", {}))):
        raise UserError(f"{run.folder}: is complete, but its code has been edited since ({', '.join(edits)}); {again}")
    trained_on = _names(run.manifest.get("data"))
    for names, node in settings.sources.items():
        try:
            if node is not settings.data and node.arguments.get("tokenizer") == TRAIN:  # as `prepare` reads it
                node = replace(node, arguments=node.arguments | settings.data.instance.tokenizer_keys())
            now = node.instance.expected_fingerprint()
        except (ValueError, OSError, RuntimeError):  # RuntimeError: the cache with the tokenizer is gone
            continue
        if now is not None and trained_on != {""} and now not in trained_on:
            key = "data" if node is settings.data else eval_data_key(names)
            if node.instance.mended_since(trained_on):
                raise UserError(f"{run.folder}: is complete, but {_MENDED}; {again}")
            raise UserError(f"{run.folder}: is complete, but the files of {key} have changed since; {again}")


def _names(fingerprint: str | None) -> set[str]:
    """Those of the data of all conditions, without what a hub sent."""
    return {each.partition(":")[0] for each in (fingerprint or "").split("+")}


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

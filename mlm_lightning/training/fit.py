"""One run in this process: its objects from its config, Lightning's Trainer around them, the summary at the end.

config ─► Source, Masking ─► MLMDataModule ┐
       └► model, optimizer ─► MLMModule ───┴► Trainer.fit ─► summary.json
"""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from mlm_lightning.config.build import build_each, build_model, build_optimizer, prepare
from mlm_lightning.config.feasible import asked_metrics
from mlm_lightning.config.settings import Settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.condition import Condition, fingerprint, packs_documents, sources
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.ngrams import VERSION, NGramCounts
from mlm_lightning.errors import ConfigError, mistakes
from mlm_lightning.messages import speak
from mlm_lightning.models.layers import detach_token
from mlm_lightning.models.protocol import HasEmbeddings
from mlm_lightning.runs.checkpoint import Position, differences, flat, read_checkpoint, record_of
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import deciding, identity, sibling_hash
from mlm_lightning.runs.load import describe_model
from mlm_lightning.training.auto import Clock, Settled, settle
from mlm_lightning.training.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint, Pruning
from mlm_lightning.training.callbacks.logged import Logged
from mlm_lightning.training.callbacks.progress import ProgressReport
from mlm_lightning.training.callbacks.throughput import Throughput
from mlm_lightning.training.compiled import compile_layers, compiles
from mlm_lightning.training.lightning_internals import NEVER, leave_signals_alone
from mlm_lightning.training.loggers import fill_hparams
from mlm_lightning.training.module import MLMModule, Origin
from mlm_lightning.training.transfer import freeze, take_weights

log = logging.getLogger(__name__)


def fit(
    run: Run, settings: Settings, position: Position | None = None, conditions: list[Condition] | None = None
) -> dict[str, Any]:
    """Trains a run from a position (None: from its beginning) in this process, which is the run's only one or one of its ranks.
    Returns the summary. `conditions` are the settings', prepared, if they are at hand."""
    quiet()
    keep_freed_memory()
    if conditions is None:
        conditions = prepare(settings)
    parent = position if position and position.path.parent != run.checkpoints else None
    settings, settled = settle(run, settings, conditions, position, _step_seconds)
    module, datamodule = assemble(settings, conditions, from_parent=parent is not None, settled=settled)
    if parent:
        _check_weights(module, parent)
    with mistakes():  # also of a user's callbacks, before there is anything in the folder
        callbacks = build_each(settings.callbacks.values(), folder=str(run.checkpoints))
    callbacks.insert(0, Logged(asked_metrics(settings.callbacks, settings.sweep)))
    taken = take_weights(module.model, settings) if settings.init.from_run and position is None else None
    is_first_rank = int(os.environ.get("LOCAL_RANK", 0)) == int(os.environ.get("NODE_RANK", 0)) == 0
    if settings.trainer.world_size() == 1 or is_first_rank:
        _describe(run, settings, module, conditions, position, taken)
    step = 0 if position is None else position.step
    # curves that a killed process drew beyond its last checkpoint, or before its first, are drawn again
    loggers = build_each(settings.logger.values(), save_dir=str(run.folder), purge_step=step + 1 if position else 0)
    decided = deciding(settings.composed.config, settings.trainer.world_size(), without=frozenset({"callbacks"}))
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger):  # whose table wants the results beside them
            logger.log_hyperparams(decided)
    if settings.sweep and settings.sweep.trial is not None:
        callbacks.append(Pruning(run.folder.parent, settings.sweep))
    trainer: Any = build_trainer(settings.trainer, callbacks, loggers)
    if settings.trainer.profiler:  # without a file it would speak by Lightning's logger
        trainer.profiler.dirpath, trainer.profiler.filename = run.folder / "profile", settings.trainer.profiler
    if position and not parent and trainer.is_global_zero:
        log.info("continuing %s after step %s of %s", run.folder, f"{step:,}", f"{module.plan.total_steps:,}")
    try:
        trainer.fit(module, datamodule, ckpt_path=position.path if position else None)
    except SystemExit as error:  # Lightning's answer to a second Ctrl-C
        raise KeyboardInterrupt from error
    if not module.last_metrics:  # everything was trained before, and only the summary is missing
        trainer.validate(module, datamodule, verbose=False)
    summary = _summary(trainer, module)
    if trainer.is_global_zero:
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                fill_hparams(logger, flat(decided), summary, compared=run.is_of_sweep)
            logger.finalize("success")
        run.write_json("summary.json", summary)
        if settings.trainer.profiler:
            log.info("%-12s %s", "profile", trainer.profiler.dirpath)
    return summary


def _step_seconds(settings: Settings, conditions: Sequence[Condition]) -> float:
    """How long a step of whole rows and full batches takes, measured; nothing is left of it."""
    assert settings.trainer.time_budget is not None
    clock = Clock(seconds=min(10.0, 0.6 * settings.trainer.time_budget))  # a hundredth of it
    without: dict[str, Any] = {"time_budget": None, "max_epochs": None, "max_time": None, "batch_schedule": None}
    timed = replace(settings.trainer, **without, max_steps=2**31, limit_val_batches=0, profiler=None)
    loader = replace(settings.loader, length_schedule=None)
    module, datamodule = assemble(settings.settled(trainer=timed, loader=loader), conditions, from_parent=False)
    try:
        build_trainer(timed, [clock], []).fit(module, datamodule)
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from error
    return clock.step_seconds


def assemble(
    settings: Settings, conditions: Sequence[Condition], from_parent: bool, settled: Settled | None = None
) -> tuple[MLMModule, MLMDataModule]:
    """The LightningModule and the LightningDataModule of a run."""
    source, masking = conditions[0].source, settings.masking.instance
    plan = settings.trainer.plan(source.num_rows(), settings.loader.batch_size)
    with mistakes():
        model = build_model(settings.model, settings.seed, source, packs_documents(conditions), settings.task)
        freeze(model, settings.init)
        if masking.hiding == "token_detached":
            detach_token(cast(HasEmbeddings, model).get_input_embeddings(), source.vocab.mask_id)
        if compiled := compiles(settings, model, plan):
            compile_layers(model)
    module = MLMModule(
        model,
        conditions,
        optimizer=build_optimizer(settings.optim, settings.trainer.precision),
        schedule=settings.schedule.instance,
        plan=plan,
        seed=settings.seed,
        mask_rate=masking.rate_at if masking.is_scheduled else None,
        origin=Origin(record_of(settings, fingerprint(conditions)) | ({"settled": settled} if settled else {}), from_parent),
        layer_decay=settings.optimization.layer_decay,
        z_loss=settings.optimization.z_loss,
        compiled=compiled,
        task=settings.task,
    )
    datamodule = MLMDataModule(
        source,
        masking,
        conditions,
        batch_size=settings.loader.batch_size,
        seed=settings.seed,
        eval_seed=settings.eval.seed,
        num_workers=settings.loader.num_workers,
        plan=plan,
        length_schedule=settings.loader.length_schedule,
        task=settings.task,
    )
    return module, datamodule


def _check_weights(module: MLMModule, parent: Position) -> None:
    """Raises UserError where another run's weights are not those of this model."""
    there = read_checkpoint(parent.path)
    shapes = [
        {name: str(tuple(tensor.shape)) for name, tensor in state.items()}
        for state in (there["state_dict"], module.state_dict())
    ]
    if found := differences(*shapes):
        first = "\n".join(f"  {each}" for each in found[:5])
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
        raise ConfigError("resume", str(parent.path), f"its weights don't fit this model (there → here):\n{first}{more}")


def _describe(
    run: Run,
    settings: Settings,
    module: MLMModule,
    conditions: list[Condition],
    position: Position | None,
    taken: dict[str, Any] | None,
) -> None:
    """Writes all of the run's folder that is known before training."""
    origin = module.origin
    manifest: dict[str, Any] = {
        "data": fingerprint(conditions),
        "kinship": sibling_hash(settings),
        "on_one_process": identity(settings.composed.config),
        "processes": settings.trainer.world_size(),
        "precision": settings.trainer.resolved_precision(),
        "splits": conditions[0].source.summary(),
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
    }
    manifest |= {"compiled": True} if module.compiled else {}
    manifest |= {"ngrams": VERSION} if any(isinstance(each.ngrams, NGramCounts) for each in conditions) else {}
    noted = ("settled", "own_code", "code_folders", "classes_of")
    manifest |= {name: origin.record[name] for name in noted if name in origin.record}
    manifest |= {"init": taken or run.manifest.get("init")} if settings.init.from_run else {}
    changes = position.changes(origin.record) if position else []
    edits = run.manifest.get("own_code_edited", {})
    if position and origin.from_parent:
        manifest |= {"parent": {"checkpoint": str(position.path), "step": position.step, "changes": changes}}
    elif position and changes:
        log.warning("from here on, it computes with code that was edited: %s", ", ".join(changes))
        edits |= {f"step {position.step}": changes}
    manifest |= {"own_code_edited": edits} if edits and position else {}
    run.open(settings)
    changed = run.describe(**manifest)
    if position and not origin.from_parent and changed:
        log.warning("from here on, the last digits may not be those of an uninterrupted run: %s", ", ".join(changed))
    for source in sources(conditions):
        source.note_run(run.folder)
    describe_model(run, settings, module.model, conditions)
    conditions[0].source.save_tokenizer(run.folder / "tokenizer")


def _summary(trainer: Any, module: Any) -> dict[str, Any]:
    summary: dict[str, Any] = dict(module.last_metrics)
    for callback in trainer.callbacks:
        if isinstance(callback, Checkpoint) and callback.best_step:
            summary |= {"best/val/loss": callback.best_score, "best/step": callback.best_step}
        if isinstance(callback, Throughput):
            callback.state_dict()  # adds the time since the last checkpoint
            summary |= {"tokens_per_second": callback.tokens_per_second, "seconds": callback.seconds}
    return summary | {"steps": trainer.global_step, "tokens": module.tokens_trained}


def build_trainer(settings: TrainerSettings, callbacks: list[Any], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer. One Lightning "epoch" is the whole run: the loader is one stream over all epochs."""
    # `mlm train` starts the ranks; what else a scheduler's variables could make Lightning believe doesn't hold
    plugins: list[Any] = [AtomicCheckpointIO(), LightningEnvironment()]
    if not settings.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressReport)]
    owned = (
        "max_steps",
        "limit_train_batches",
        "batch_schedule",
        "time_budget",
        "auto_requeue",
        "compile",
        "val_steps",
    )  # the plan's, and the signal handler's
    arguments: dict[str, Any] = {name: value for name, value in vars(settings).items() if name not in owned}
    arguments |= {
        "precision": settings.resolved_precision(),
        "max_time": settings.max_duration,
        "max_epochs": 1,
        "val_check_interval": NEVER,  # MLMModule says when
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": bool(settings.enable_model_summary),
        "enable_checkpointing": any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
        "use_distributed_sampler": False,
    }
    trainer = L.Trainer(**arguments, callbacks=callbacks, logger=loggers or False, plugins=plugins)
    leave_signals_alone(trainer)
    return trainer


def quiet() -> None:
    """Lightning's own advice does not apply to how it is used here, and a full disk is reported once, by the main thread."""
    speak()
    threading.excepthook = _report_unless_the_main_thread_does
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*ended before the epoch ended and your dataloader is not resumable.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*is smaller than the logging interval.*",
        ".*Found keys that are not in the model state dict.*",
        ".*The `srun` command is available.*",
        ".*lr_scheduler.step\\(\\)` before `optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _report_unless_the_main_thread_does(failed: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer hands its error to whoever logs next
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def keep_freed_memory() -> None:
    """Makes glibc reuse large blocks. By default it gives each back to the system, which then has to clear its pages for the
    next step: with the logits of a vocabulary of 30,000 that is half of the time of a step on a CPU."""
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)

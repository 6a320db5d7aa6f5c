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
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from mlm_lightning.callbacks import AtomicCheckpointIO, Checkpoint, CheckpointError, Progress, Throughput
from mlm_lightning.checkpoints import differences, flat, read_checkpoint
from mlm_lightning.config import (
    TrainerSettings,
    build_each,
    build_eval_maskings,
    build_masking,
    build_model,
    build_optimizer,
    build_schedule,
    prepare_sources,
)
from mlm_lightning.data.datamodule import MLMDataModule, progress_of_run
from mlm_lightning.data.source import Sources
from mlm_lightning.errors import UserError, mistakes, say
from mlm_lightning.files import UNWRITABLE
from mlm_lightning.masking import Masking, RateSchedule
from mlm_lightning.module import MLMModule
from mlm_lightning.runs import Position, Run, deciding, describe_model, kinship, record_of
from mlm_lightning.sweeps import swept_values


def fit(run: Run, position: Position | None = None, sources: Sources | None = None) -> dict[str, Any]:
    """Trains a run from a position (None: from its beginning) in this process, which is the run's only one or one of its ranks.
    Returns the summary. `sources` are the config's, prepared, if they are at hand."""
    quiet()
    _keep_freed_memory()
    if sources is None:
        sources = prepare_sources(run.config)
    from_parent = position is not None and position.path.parent != run.checkpoints
    module, datamodule = _assemble(run, sources, from_parent)
    if from_parent:
        assert position is not None
        _check_weights(module, position)
    if TrainerSettings(**run.config["trainer"]).world_size() == 1 or _is_first_rank():
        _describe(run, module, sources, position)
    step = 0 if position is None else position.step
    # curves that a killed process drew beyond its last checkpoint, or before its first, are drawn again
    loggers = build_each(run.config["logger"], save_dir=str(run.folder), purge_step=step + 1 if position else 0)
    callbacks = build_each(run.config["callbacks"], folder=str(run.checkpoints))
    if run.config["sweep"] and run.config["sweep"].get("trial") is not None:
        from mlm_lightning.search import Pruning

        callbacks.append(Pruning(run.folder.parent, run.config["sweep"]))
    trainer = build_trainer(TrainerSettings(**run.config["trainer"]), callbacks, loggers)
    if position and not from_parent and trainer.is_global_zero:
        say(f"continuing {run.folder} after step {step:,} of {module.total_steps:,}")
    with _disk_named(run):
        try:
            trainer.fit(module, datamodule, ckpt_path=position.path if position else None)
        except SystemExit as error:  # Lightning's answer to a second Ctrl-C
            raise KeyboardInterrupt from error
        if not module.last_metrics:  # everything was trained before, and only the summary is missing
            trainer.validate(module, datamodule, verbose=False)
        summary = _summary(trainer, module)
        if trainer.is_global_zero:
            _log_hyperparameters(loggers, run, summary)
            for logger in loggers:
                logger.finalize("success")
            run.write_json("summary.json", summary)
    return summary


@contextlib.contextmanager
def _disk_named(run: Run) -> Iterator[None]:
    """An OSError of a full or read-only disk says what that means for the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename or run.folder
        raise CheckpointError(
            f"{where}: {error.strerror}. The checkpoints in {run.checkpoints} are whole: free space or give access, and the "
            "same command continues"
        ) from error


def _is_first_rank() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == int(os.environ.get("NODE_RANK", 0)) == 0


def _assemble(run: Run, sources: Sources, from_parent: bool) -> tuple[MLMModule, MLMDataModule]:
    """The LightningModule and the LightningDataModule of a run."""
    config, settings, source = run.config, TrainerSettings(**run.config["trainer"]), sources.own
    plan = settings.plan(source.num_rows(), config["data"]["batch_size"])
    eval_maskings = build_eval_maskings(config)
    with mistakes():
        model = build_model(config, source.vocab, source.seq_len, separate_documents=sources.packs_documents)
    masking = build_masking(config)
    module = MLMModule(
        model,
        oracle=source.oracle(),
        optimizer=build_optimizer(config),
        weight_decay=config["optim"].get("weight_decay", 0.0),
        schedule=build_schedule(config),
        total_steps=plan.total_steps,
        validate_every=plan.validate_every,
        steps_per_epoch=plan.steps_per_epoch,
        log_every_n_steps=settings.log_every_n_steps,
        seed=config["seed"],
        suffixes=list(eval_maskings),
        record=record_of(config, sources.fingerprint()),
        from_parent=from_parent,
        eval_oracles=sources.oracles(),
        mask_rate=_scheduled_rate(masking, plan.total_steps),
    )
    datamodule = MLMDataModule(
        source,
        masking,
        eval_maskings,
        batch_size=config["data"]["batch_size"],
        seed=config["seed"],
        eval_seed=config["eval"]["seed"],
        num_workers=config["data"]["num_workers"],
        accumulate_grad_batches=settings.accumulate_grad_batches,
        rows_per_epoch=plan.rows_per_epoch,
        total_steps=plan.total_steps,
        eval_sources=sources.further,
    )
    return module, datamodule


def _scheduled_rate(masking: Masking, total_steps: int) -> Callable[[int], float] | None:
    """The mask rate at an optimizer step, where it changes."""
    rate = getattr(masking, "rate", None)
    return (lambda step: rate.at(progress_of_run(step, total_steps))) if isinstance(rate, RateSchedule) else None


def _check_weights(module: MLMModule, parent: Position) -> None:
    """Raises UserError where another run's weights are not those of this model."""
    there = read_checkpoint(parent.path)
    shapes = [
        {name: str(tuple(tensor.shape)) for name, tensor in state.items()}
        for state in (there["state_dict"], module.state_dict())
    ]
    if found := differences(*shapes):
        shown = "\n".join(f"  {each}" for each in found[:5])
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(f"resume={parent.path}: its weights don't fit this model (there → here):\n{shown}{more}")


def _describe(run: Run, module: MLMModule, sources: Sources, position: Position | None) -> None:
    """Writes all of the run's folder that is known before training."""
    source = sources.own
    manifest: dict[str, Any] = {"data": sources.fingerprint(), "kinship": kinship(run.config)}
    manifest |= {"num_parameters": sum(parameter.numel() for parameter in module.parameters())}
    if module.from_parent:
        assert position is not None
        manifest |= {
            "parent": {"checkpoint": str(position.path), "step": position.step, "changes": position.changes(module.record)}
        }
    run.open()
    changed = run.describe(**manifest)
    if position and not module.from_parent and changed:
        say(f"from here on, the last digits may not be those of an uninterrupted run: {', '.join(changed)}")
    describe_model(run, module.model, source.vocab, source.seq_len, sources.packs_documents)
    if hasattr(source, "save_tokenizer"):
        source.save_tokenizer(run.folder / "tokenizer")


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
        callbacks = [callback for callback in callbacks if not isinstance(callback, Progress)]
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=settings.resolved_precision(),  # type: ignore[arg-type]
        max_epochs=1,
        max_time=settings.max_time,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val,
        gradient_clip_algorithm=settings.gradient_clip_algorithm,
        val_check_interval=2**62,  # MLMModule says when
        check_val_every_n_epoch=None,
        limit_val_batches=settings.limit_val_batches,
        limit_test_batches=settings.limit_test_batches,
        num_sanity_val_steps=settings.num_sanity_val_steps,
        log_every_n_steps=1,
        deterministic=settings.deterministic,
        benchmark=settings.benchmark,
        detect_anomaly=settings.detect_anomaly,
        inference_mode=settings.inference_mode,
        sync_batchnorm=settings.sync_batchnorm,
        profiler=settings.profiler,
        enable_progress_bar=False,
        enable_model_summary=bool(settings.enable_model_summary),
        enable_checkpointing=any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=plugins,
    )


def _log_hyperparameters(loggers: list[Any], run: Run, summary: dict[str, Any]) -> None:
    """Fills TensorBoard's HParams tab: the settings (of a sweep's run: those that the sweep varies), beside the last values of
    curves that are there already. Lightning's own way shows -1, or draws a further one-point curve for each metric."""
    from torch.utils.tensorboard.summary import hparams

    settings = swept_values(run) or flat(deciding(run.config, without=frozenset({"callbacks"})))
    plain = {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in settings.items()}
    metrics = {name: value for name, value in summary.items() if name.startswith("val/")}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for part in hparams(plain, metrics):
                logger.experiment._get_file_writer().add_summary(part)


def _keep_freed_memory() -> None:
    """Makes glibc reuse large blocks. By default it gives each back to the system, which then has to clear its pages for the
    next step: with the logits of a vocabulary of 30,000 that is half of the time of a step on a CPU."""
    if not sys.platform.startswith("linux"):
        return
    mmap_threshold, trim_threshold = -3, -1  # of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def quiet() -> None:
    """Lightning's own advice does not apply to how it is used here, and a full disk is reported once, by the main thread."""
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

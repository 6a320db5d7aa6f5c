"""Checkpoints, and what ends a run after one: a signal, or a search that gives it up.

step ─ … ─ step ─ validation ─ step          a checkpoint is written between two optimizer steps,
     │          │            │               after the validation where one is due
   last       (due)     last, best
"""

import logging
import os
import shutil
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge, Gt
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from mlm_lightning.config.feasible import no_metric
from mlm_lightning.config.located import BEST, LAST, PREVIOUS
from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.errors import Interrupted, PrunedError, handle, restore
from mlm_lightning.files import sync
from mlm_lightning.runs.checkpoint import write_checkpoint
from mlm_lightning.runs.study import open_study
from mlm_lightning.training.loggers import sync_logs
from mlm_lightning.training.module import MLMModule, TrainingDivergedError
from mlm_lightning.values import checked

log = logging.getLogger(__name__)

_NEW = "new.ckpt"  # whole, and not yet named


class CheckpointError(RuntimeError):
    """The disk refuses what the run can't go on without."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and sealed. Lightning's own goes through the system's temporary folder and is
    not atomic across file systems.

    Where the disk refuses, `failure` says why: raising would leave the other ranks waiting at the barrier behind the write.
    """

    def __init__(self) -> None:
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.failure = None
        try:
            write_checkpoint(Path(path), checkpoint)
        except OSError as error:
            self.failure = error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Checkpoint(LightningCheckpoint):
    """Writes `last.ckpt` (the one before it stays as `previous.ckpt`) every `every_n_train_steps` optimizer steps, every
    `every_minutes` minutes, after a validation, at the end, and on SIGTERM, SIGUSR1, SIGHUP and Ctrl-C; `best.ckpt` where
    `monitor` is lowest; `epoch-N.ckpt` every `every_n_epochs` epochs, all of which are kept.

    A validation that was not the best is followed by a checkpoint only if that costs less than 2 % of the time since the last.
    On a signal the optimizer step is finished, everything is saved, and `Interrupted` is raised; a validation is broken off,
    and is the first thing that a resumed run does. A second Ctrl-C stops at once. Where the disk refuses a checkpoint, training
    goes on until the next one is due; the last one must be written, or CheckpointError says why it was not.
    """

    @checked("callbacks.checkpoint")
    def __init__(
        self,
        folder: str,
        every_n_train_steps: Annotated[int, Ge(1), "null is never"] | None = None,
        every_minutes: Annotated[float, Gt(0), "null is never"] | None = 10.0,
        every_n_epochs: Annotated[int, Ge(1), "null is never"] | None = None,
        monitor: str = "val/loss",
    ) -> None:
        self.folder = Path(folder)
        self.every_n_train_steps, self.every_minutes, self.every_n_epochs = every_n_train_steps, every_minutes, every_n_epochs
        self.monitor = monitor
        self.best_score, self.best_step = float("inf"), 0
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._seconds_of_a_save = 0.0
        self._signum = 0
        # the step that a run begins at, until its first batch is there: reading it may take long, and there is nothing to save
        self._before_first_batch: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._group: Any = None

    # signals

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.world_size > 1:
            # of the CPUs: asking an accelerator at every step would wait for it at every step
            self._group = torch.distributed.new_group(backend="gloo")
        else:  # other ranks would wait for one that has gone
            self._before_first_batch = trainer.global_step
        self._handlers = handle(self._remember)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        restore(self._handlers)
        self._handlers = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signum = signum
        if self._before_first_batch is not None:
            raise Interrupted(signum, self._before_first_batch or None)
        if signum == signal.SIGINT:
            log.info("\nCtrl-C: finishing this step and saving (once more: stop at once)")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._before_first_batch = None

    # saving

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, last = trainer.global_step, trainer.global_step >= pl_module.plan.total_steps
        if not pl_module.at_step_boundary(batch_idx) or (trainer.enable_validation and pl_module.plan.validation_due(step)):
            return  # where a validation is due, the checkpoint is written after it
        signum, due = self._agree(self._signum, self._due(step))
        if signum or due or last or self._crosses_epoch(pl_module, step):
            self._save(trainer, pl_module, must=bool(signum or last))
        if signum and not last:
            raise Interrupted(signum, step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        (signum,) = self._agree(self._signum)
        if signum:
            pl_module.validation_pending = True
            self._save(trainer, pl_module, must=True)
            raise Interrupted(signum, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in pl_module.last_metrics:
            raise no_metric("callbacks.checkpoint.monitor", self.monitor, pl_module.last_metrics)
        step, score = trainer.global_step, pl_module.last_metrics[self.monitor]
        if best := score < self.best_score:
            self.best_score, self.best_step = score, step
        last = step >= pl_module.plan.total_steps or trainer.should_stop
        cheap = time.monotonic() - self._saved_at >= 50 * self._seconds_of_a_save
        signum, due = self._agree(self._signum, cheap or self._due(step))
        if signum or due or last or best or self._crosses_epoch(pl_module, step):
            self._save(trainer, pl_module, best, must=bool(signum or last))
        if signum and not last:
            raise Interrupted(signum, step)

    def _due(self, step: int) -> bool:
        by_steps = self.every_n_train_steps is not None and step % self.every_n_train_steps == 0
        by_time = self.every_minutes is not None and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return by_steps or by_time

    def _crosses_epoch(self, module: MLMModule, step: int) -> int:
        """The epoch that ended with this step, if its checkpoint is to be kept; else 0."""
        if self.every_n_epochs is None:
            return 0
        plan = module.plan
        epoch, before = (int(plan.full_steps(each) // plan.steps_per_epoch) for each in (step, step - 1))
        return epoch if epoch > before and epoch % self.every_n_epochs == 0 else 0

    def _agree(self, *values: int) -> list[int]:
        """The highest of each value over all ranks: a signal may reach one of them only, and clocks differ."""
        if self._group is None:
            return list(values)
        highest = torch.tensor(values)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return highest.tolist()

    def _save(self, trainer: L.Trainer, module: MLMModule, best: bool = False, must: bool = False) -> None:
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            raise TrainingDivergedError(f"a weight is no longer a number at step {trainer.global_step}; nothing was saved")
        began = time.monotonic()
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            sync_logs(self.folder.parent)
        trainer.save_checkpoint(self.folder / _NEW)
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if trainer.is_global_zero and failure is None:
            try:
                self._put_in_place(best, self._crosses_epoch(module, trainer.global_step))
            except OSError as error:
                failure = error
        if (failure := trainer.strategy.broadcast(failure)) is None:  # which all ranks name
            self._saved_step = trainer.global_step
        else:
            message = f"{self.folder}: the checkpoint of step {trainer.global_step} could not be written: "
            message += f"{failure.strerror or failure}. "
            message += f"The one of step {self._saved_step} is kept" if self._saved_step else "There is none before it"
            if must:
                raise CheckpointError(f"{message}; free space or give access, and the same command continues.") from failure
            if trainer.is_global_zero:
                log.warning("%s; training goes on until the next is due.", message)
        self._saved_at = time.monotonic()
        self._seconds_of_a_save = self._saved_at - began

    def _put_in_place(self, best: bool, epoch: int) -> None:
        """Names the new file: at each moment there is a `last.ckpt`. It is renamed last: a run that is killed before continues
        from an older one, and gives the other names again."""
        new, last = self.folder / _NEW, self.folder / LAST
        if best:
            _link(new, self.folder / BEST)
        if epoch:
            _link(new, self.folder / f"epoch-{epoch}.ckpt")
        if last.exists():
            _link(last, self.folder / PREVIOUS)
        new.replace(last)
        sync(self.folder)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]


class Pruning(Callback):
    """Reports each validation to the search, and ends a run that falls behind once its checkpoint is written."""

    def __init__(self, folder: Path, settings: SweepSettings) -> None:
        assert settings.trial is not None
        self._folder, self._settings, self._trial = folder, settings, settings.trial
        self._message = ""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.global_step >= pl_module.plan.total_steps:
            return
        message = ""
        if trainer.is_global_zero:
            from optuna.trial import Trial

            study = open_study(self._folder, self._settings)
            trial = Trial(study, study.trials[self._trial]._trial_id)
            name, step = self._settings.objective, trainer.global_step
            trial.report(pl_module.last_metrics[name], step)
            if trial.should_prune():
                message = f"given up after step {step}: {name} {pl_module.last_metrics[name]:.4g} is worse than the median"
        self._message = trainer.strategy.broadcast(message)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._message:
            raise PrunedError(self._message)


def _link(source: Path, target: Path) -> None:
    """A second name for the same bytes; a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing

"""Lightning's Trainer as it is used here, and silent where its advice does not apply."""

import logging
import threading
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.messages import speak
from mlm_lightning.training.callbacks.checkpoint import AtomicCheckpointIO
from mlm_lightning.training.callbacks.progress import ProgressReport
from mlm_lightning.training.lightning_internals import NEVER


def build_trainer(settings: TrainerSettings, callbacks: list[Any], loggers: list[Any]) -> L.Trainer:
    """Lightning's Trainer. One Lightning "epoch" is the whole run: the loader is one stream over all epochs."""
    # `mlm train` starts the ranks; what else a scheduler's variables could make Lightning believe doesn't hold
    plugins: list[Any] = [AtomicCheckpointIO(), LightningEnvironment()]
    if not settings.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressReport)]
    owned = ("max_steps", "limit_train_batches", "auto_requeue")  # the plan's, and the signal handler's
    arguments: dict[str, Any] = {name: value for name, value in vars(settings).items() if name not in owned}
    arguments |= {
        "precision": settings.resolved_precision(),
        "max_epochs": 1,
        "val_check_interval": NEVER,  # MLMModule says when
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": bool(settings.enable_model_summary),
        "enable_checkpointing": any(isinstance(callback, LightningCheckpoint) for callback in callbacks),
        "use_distributed_sampler": False,
    }
    return L.Trainer(**arguments, callbacks=callbacks, logger=loggers or False, plugins=plugins)


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

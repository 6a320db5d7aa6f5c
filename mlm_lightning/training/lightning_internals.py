"""What this package takes from the inside of Lightning and of torch's TensorBoard writer: all of it, and only here.

    Trainer.val_check_batch                    a validation where we say, after any optimizer step
    Trainer.fit_loop.epoch_loop.val_loop       a validation before the first step of a resumed run
    ….epoch_loop._batches_that_stepped         the step at which what callbacks log in a validation is drawn
    Trainer._signal_connector                  no handlers of Lightning's, one of which waits for all ranks
    Trainer._accelerator_connector             ranks that divide the rows themselves, under a plain Trainer
    checkpoint["loops"]["fit_loop"]            the counters, where Lightning would continue them wrongly
    Trainer.progress_bar_metrics               what a progress bar shows
    SummaryWriter._get_file_writer             a record that the writer has no method for

An upgrade may move any of these; tests/test_lightning_internals.py names each, and fails with a sentence.
"""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

NEVER = 2**62
"""As `Trainer(val_check_interval=…)`: Lightning never validates on its own."""


def take_over_length(trainer: L.Trainer) -> dict[str, Any]:
    """How long a plain Trainer is to train and when to validate, as TrainerSettings names it. From here on, its one "epoch" is
    the whole run, and we say when: called in `setup`."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    taken: dict[str, Any] = {
        "max_epochs": None if epochs == -1 or (steps != -1 and epochs is None) else epochs,
        "max_steps": None if steps == -1 else steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        "limit_train_batches": trainer.limit_train_batches,
        "log_every_n_steps": max(1, trainer.log_every_n_steps),  # type: ignore[attr-defined]
    }
    interval = trainer.val_check_interval
    if isinstance(interval, int):  # in micro-batches
        interval = max(1, interval // trainer.accumulate_grad_batches)
    trainer.fit_loop.max_epochs, trainer.check_val_every_n_epoch = 1, None
    trainer.val_check_interval, trainer.limit_train_batches = NEVER, 1.0
    trainer._accelerator_connector.use_distributed_sampler = False
    return taken | {"val_check_interval": interval}


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Lightning's handler of SIGTERM would hold it back until training begins, and wait for a message of rank 0 meanwhile."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def schedule_validation(trainer: L.Trainer, due: bool) -> None:
    """Whether a validation follows the batch at hand; called in `on_train_start` and `on_train_batch_end`.

    Lightning validates where the number of batches is a multiple of `val_check_batch`, and reads that after each batch. Our
    intervals count optimizer steps, may be a fraction (epochs end where they end), and the last step is validated, too.
    """
    trainer.val_check_batch = 1 if due else NEVER


def validate_now(trainer: L.Trainer) -> None:
    """A validation inside of `on_train_start`: the one that a signal cut off. Lightning would go on in the middle of it, or
    leave it out."""
    epoch_loop = trainer.fit_loop.epoch_loop
    epoch_loop.val_loop.restarting = False
    trainer.validating = True
    epoch_loop._batches_that_stepped -= 1  # which counts a step after its validation
    epoch_loop.val_loop.run()
    epoch_loop._batches_that_stepped += 1
    trainer.training = True


def mend_counters(checkpoint: dict[str, Any], validation_pending: bool) -> None:
    """Changes the counters of a loaded checkpoint to what an uninterrupted run has; called in `on_load_checkpoint`."""
    loop = checkpoint["loops"]["fit_loop"]
    total = loop["epoch_loop.batch_progress"]["total"]
    if total["completed"] == total["processed"]:
        # written after a validation: Lightning counts the last step of every other checkpoint when it continues, but not
        # that of this one, and from then on LearningRateMonitor would draw a step too early
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
    if validation_pending:  # it starts again from its first batch
        progress = loop["epoch_loop.val_loop.batch_progress"]
        progress["total"] = {name: value - progress["current"][name] for name, value in progress["total"].items()}


def count_step(trainer: L.Trainer, by: int) -> None:
    """Moves the step at which Lightning draws what callbacks log: in a validation it is one behind."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += by


def show_in_progress_bar(trainer: L.Trainer, name: str, value: float) -> None:
    """Beside the bar, ours or Lightning's, which read the same dict; without the bookkeeping of `log(…, prog_bar=True)`."""
    trainer.progress_bar_metrics[name] = value


def shown_in_progress_bar(trainer: L.Trainer) -> dict[str, Any]:
    return trainer.progress_bar_metrics


def add_summary(logger: TensorBoardLogger, summary: Any) -> None:
    """Adds a record to TensorBoard's events. The writer's `add_hparams` would open a further run in a folder of its own."""
    logger.experiment._get_file_writer().add_summary(summary)

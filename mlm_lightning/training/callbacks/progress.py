"""How far a run is."""

import logging
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mlm_lightning.training.lightning_internals import shown_in_progress_bar

log = logging.getLogger(__name__)


class ProgressReport(Callback):
    """A bar with the step, the loss, tokens/s and the time left on a terminal; elsewhere a line at each validation."""

    def __init__(self, refresh_per_second: float = 4.0) -> None:
        self.refresh_per_second = refresh_per_second
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=self.refresh_per_second,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=pl_module.plan.total_steps, completed=trainer.global_step, loss="", rate="")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._bar is None:
            return
        metrics = shown_in_progress_bar(trainer)
        loss = f"loss {metrics['train/loss']:.3f}" if "train/loss" in metrics else ""
        rate = f"{metrics['tokens/s']:,.0f} tokens/s" if "tokens/s" in metrics else ""
        self._bar.update(self._task, completed=trainer.global_step, loss=loss, rate=rate)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        names = ("val/loss", "val/perplexity", "val/accuracy", "val/excess_loss")
        metrics = "  ".join(f"{n} {pl_module.last_metrics[n]:.4g}" for n in names if n in pl_module.last_metrics)
        line = f"step {trainer.global_step}/{pl_module.plan.total_steps}  {metrics}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            log.info(line)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

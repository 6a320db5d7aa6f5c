"""How far a run is: what it is about at its start, then a bar on a terminal, and a line now and then elsewhere."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mlm_lightning.data.batches import Plan
from mlm_lightning.messages import duration
from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.training.lightning_internals import shown_in_progress_bar

log = logging.getLogger(__name__)

_FIRST_LINE, _BETWEEN_LINES, _BETWEEN_FILES = 2.0, 30.0, 1.0  # seconds
_SHOWN = ("val/loss", "val/excess_loss", "val/gain_over_unigram", "val/accuracy", "val/macro_f1", "val/perplexity")


class ProgressReport(Callback):
    """A bar with the step, the loss, tokens/s and the time left on a terminal. Elsewhere, such as in a log file, the first line
    comes after two seconds of training, and then one in 30 s at most, beside those of the first and the last validation."""

    def __init__(self, refresh_per_second: float = 4.0, folder: str | None = None) -> None:
        self.refresh_per_second = refresh_per_second
        self._folder = None if folder is None else Path(folder).parent
        self._bar: Any = None
        self._left: TimeLeft | None = None  # in the process that reports
        self._val_loss: float | None = None
        self._unsaid = ""  # the results of a validation that no line has shown yet
        self._said_at = self._written_at = 0.0
        self._said: set[str] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        for name, what in _about(trainer, pl_module):
            log.info("%-12s %s", name, what)
        self._left = TimeLeft(pl_module.plan)
        self._said, self._unsaid = set(), ""
        self._said_at = time.monotonic()
        if sys.stderr.isatty():
            self._start_bar(trainer.global_step, pl_module.plan.total_steps)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._left is not None:
            self._left.validated(time.monotonic())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._left is None or not pl_module.at_step_boundary(batch_idx):
            return
        now, step = time.monotonic(), trainer.global_step
        self._left.stepped(now)
        if self._bar is not None:
            metrics = shown_in_progress_bar(trainer)
            loss = f"loss {metrics['train/loss']:.3f}" if "train/loss" in metrics else ""
            fields = {"loss": loss, "rate": _rate(metrics), "left": self._left.text(step)}
            self._bar.update(self._task, completed=step, description="step", count=_count(step, pl_module.plan), **fields)
        elif now - self._said_at >= (_BETWEEN_LINES if "line" in self._said else _FIRST_LINE):
            self._say(trainer, pl_module)
        if now - self._written_at >= _BETWEEN_FILES and self._folder is not None:
            self._written_at = now
            # reading a loss that isn't logged waits for an accelerator: once a second is rare enough
            progress = RunProgress(
                step, pl_module.plan.total_steps, _loss(trainer, pl_module), self._val_loss, self._left.seconds(step)
            )
            progress.write(self._folder)
        if "time" not in self._said and self._left.is_known and now - self._said_at >= _FIRST_LINE:
            self._said.add("time")
            if self._bar is not None:
                log.info("%-12s about %s", "time", self._left.text(step))

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._left is not None and trainer.state.fn == "fit":
            self._left.validation_began(time.monotonic())
            if self._bar is not None:
                self._bar.update(self._task, description="validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or self._left is None:
            return
        metrics = pl_module.last_metrics
        self._val_loss = metrics.get("val/loss")
        results = "  ".join(f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics)
        line = f"step {_count(trainer.global_step, pl_module.plan)}  {results}"
        if self._bar is not None:
            while len(line) > self._bar.console.width and "  " in line:  # the last of the metrics, before lines are wrapped
                line = line.rpartition("  ")[0]
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        elif "validation" not in self._said or trainer.global_step >= pl_module.plan.total_steps:
            self._said |= {"line", "validation"}
            self._said_at = time.monotonic()
            log.info(line)
        else:
            self._unsaid = results

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._left is not None and self._folder is not None:
            RunProgress.clear(self._folder)
        self._left = None

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _say(self, trainer: L.Trainer, module: Any) -> None:
        assert self._left is not None
        loss, left = _loss(trainer, module), self._left.text(trainer.global_step)
        parts = [
            f"step {_count(trainer.global_step, module.plan)}",
            "" if loss is None else f"loss {loss:.4g}",
            self._unsaid,
            _rate(shown_in_progress_bar(trainer)),
            f"{left} left" if left else "",
        ]
        log.info("  ".join(filter(None, parts)))
        self._said.add("line")
        self._said_at, self._unsaid = time.monotonic(), ""

    def _start_bar(self, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        names = ("description", "fields[count]", "bar", "fields[loss]", "fields[rate]", "fields[left]")
        columns = [BarColumn(bar_width=None) if name == "bar" else TextColumn(f"{{task.{name}}}") for name in names]
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, refresh_per_second=self.refresh_per_second, transient=True, expand=True)
        self._bar.start()
        fields = {"count": f"{step:,}/{total:,}", "loss": "", "rate": "", "left": ""}
        self._task = self._bar.add_task("step", total=total, completed=step, **fields)


class TimeLeft:
    """Of a run, by what was measured so far: the time of a step (not of the first, which warms up), and of a validation, with
    the checkpoint after it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._mark: float | None = None  # when the last step, or the validation after it, was done
        self._validating_since: float | None = None
        self._steps, self._train_seconds = 0, 0.0
        self._validations, self._validation_seconds = 0, 0.0

    def stepped(self, now: float) -> None:
        if self._mark is not None:
            self._train_seconds += now - self._mark
            self._steps += 1
        self._mark = now

    def validation_began(self, now: float) -> None:
        self._validating_since = now

    def validated(self, now: float) -> None:
        """Called before each step; does something after a validation."""
        if self._validating_since is not None:
            self._validation_seconds += now - self._validating_since
            self._validations += 1
            self._validating_since = None
            self._mark = None if self._mark is None else now

    @property
    def is_known(self) -> bool:
        return self._steps > 0

    def seconds(self, step: int) -> float | None:
        """As far as it is known: without validations before the first one."""
        if not self.is_known:
            return None
        validations = self._validation_seconds / max(1, self._validations) * self._plan.validations_after(step)
        return (self._plan.total_steps - step) * self._train_seconds / self._steps + validations

    def text(self, step: int) -> str:
        """`1:23`, or `1:23 + 4 validations` where nothing is known of them; empty where nothing is known at all."""
        if (seconds := self.seconds(step)) is None:
            return ""
        number = 0 if self._validations else self._plan.validations_after(step)
        return duration(seconds) + (f" + {number:,} validation{'s' * (number > 1)}" if number else "")


def _about(trainer: L.Trainer, module: Any) -> list[tuple[str, str]]:
    """What a run computes, with what and for how long."""
    plan, source, device = module.plan, module.conditions[0].source, trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" and torch.get_num_threads() > 1 else ""
    number = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    rows, length = plan.rows_per_epoch, source.seq_len
    data = f"without end, {length:,} tokens each"
    if rows is not None:
        data = f"{rows:,} of {length:,} tokens an epoch, {rows * length:,} tokens"
    epochs = f", {plan.epoch(plan.total_steps):.3g} epochs" if rows is not None else ""
    validations = plan.validations_after(trainer.global_step)
    per_step = round(rows / plan.steps_per_epoch) if rows is not None else None
    steps = (
        f"{plan.total_steps:,}"
        + (f" of {'up to ' * (plan.batch_sizes is not None)}{per_step:,} rows" if per_step else "")
        + epochs
    )
    return [
        ("device", f"{number}{name}{threads}, precision {trainer.precision}"),
        ("model", f"{type(module.model).__name__}, {parameters:,} parameters"),
        ("rows", data),
        ("steps", f"{steps}; {validations:,} validation{'s' * (validations != 1)}"),
    ]


def _count(step: int, plan: Plan) -> str:
    return f"{step:,}/{plan.total_steps:,}"


def _rate(metrics: dict[str, Any]) -> str:
    if "tokens/s" not in metrics:
        return ""
    rate = metrics["tokens/s"]
    return f"{rate / 1e6:.2f}M tokens/s" if rate >= 1e6 else f"{rate:,.0f} tokens/s"


def _loss(trainer: L.Trainer, module: Any) -> float | None:
    """Of the steps since the last that was logged, or the logged one."""
    recent = module.recent_loss
    return shown_in_progress_bar(trainer).get("train/loss") if recent is None else recent

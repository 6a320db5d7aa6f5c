"""What happens around the steps: checkpoints and signals, throughput, a progress bar, samples as text.

step ─ … ─ step ─ validation ─ step          a checkpoint is written between two optimizer steps,
     │          │            │               after the validation where one is due
   last       (due)     last, best
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.checkpoints import write_checkpoint
from mlm_lightning.errors import Interrupted
from mlm_lightning.files import sync_folder
from mlm_lightning.lightning_internals import show_in_progress_bar, shown_in_progress_bar
from mlm_lightning.module import MLMModule, TrainingDivergedError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
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
    `every_minutes` minutes, after a validation, at the end, and on SIGTERM, SIGUSR1 and Ctrl-C; `best.ckpt` where `monitor` is
    lowest; `epoch-N.ckpt` every `every_n_epochs` epochs, all of which are kept.

    A validation that was not the best is followed by a checkpoint only if that costs less than 2 % of the time since the last.
    On a signal the optimizer step is finished, everything is saved, and `Interrupted` is raised; a validation is broken off,
    and is the first thing that a resumed run does. A second Ctrl-C stops at once. Where the disk refuses a checkpoint, training
    goes on until the next one is due; the last one must be written, or CheckpointError says why it was not.
    """

    def __init__(
        self,
        folder: str,
        every_n_train_steps: int | None = None,
        every_minutes: float | None = 10.0,
        every_n_epochs: int | None = None,
        monitor: str = "val/loss",
    ) -> None:
        for name, value in (
            ("every_n_train_steps", every_n_train_steps),
            ("every_minutes", every_minutes),
            ("every_n_epochs", every_n_epochs),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"callbacks.checkpoint.{name}={value}: give a number above 0, or null for never")
        self.folder = Path(folder)
        self.every_n_train_steps, self.every_minutes, self.every_n_epochs = every_n_train_steps, every_minutes, every_n_epochs
        self.monitor = monitor
        self.best_score, self.best_step = float("inf"), 0
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._seconds_of_a_save = 0.0
        self._signum = 0
        # the step that a run begins at, until its first batch is there: reading it may take long, and there is nothing to save
        self._before_first_batch: int | None = None
        self._handlers: dict[int, Any] = {}
        self._group: Any = None

    # signals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if trainer.world_size > 1:
            # of the CPUs: asking an accelerator at every step would wait for it at every step
            self._group = torch.distributed.new_group(backend="gloo")
        else:  # other ranks would wait for one that has gone
            self._before_first_batch = trainer.global_step
        # Lightning sets its own handlers between on_fit_start and here
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
                if signum := getattr(signal, name, None):
                    self._handlers[signum] = signal.signal(signum, self._remember)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signum = signum
        if self._before_first_batch is not None:
            raise Interrupted(signum, self._before_first_batch or None)
        if signum == signal.SIGINT:
            print("\nCtrl-C: finishing this step and saving (once more: stop at once)", file=sys.stderr, flush=True)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._before_first_batch = None

    # saving

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MLMModule)
        step, last = trainer.global_step, trainer.global_step >= pl_module.total_steps
        if not pl_module.at_step_boundary(batch_idx) or (trainer.enable_validation and pl_module.validation_due(step)):
            return  # where a validation is due, the checkpoint is written after it
        signum, due = self._agree(self._signum, self._due(step))
        if signum or due or last or self._crosses_epoch(pl_module, step):
            self._save(trainer, pl_module, must=bool(signum or last))
        if signum and not last:
            raise Interrupted(signum, step)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, MLMModule)
        (signum,) = self._agree(self._signum)
        if signum:
            pl_module.validation_pending = True
            self._save(trainer, pl_module, must=True)
            raise Interrupted(signum, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, MLMModule)
        if self.monitor not in pl_module.last_metrics:
            there = ", ".join(pl_module.last_metrics)
            raise ValueError(f"callbacks.checkpoint.monitor={self.monitor}: is none of the metrics, which are {there}")
        step, score = trainer.global_step, pl_module.last_metrics[self.monitor]
        if best := score < self.best_score:
            self.best_score, self.best_step = score, step
        last = step >= pl_module.total_steps or trainer.should_stop
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
        epoch, before = int(step // module.steps_per_epoch), int((step - 1) // module.steps_per_epoch)
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
        trainer.save_checkpoint(self.folder / _NEW)
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if trainer.is_global_zero and failure is None:
            try:
                self._put_in_place(best, self._crosses_epoch(module, trainer.global_step))
            except OSError as error:
                failure = error
        if failure is None:
            self._saved_step = trainer.global_step
        else:
            self._report(failure, trainer.global_step, must)
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
        sync_folder(self.folder)

    def _report(self, failure: OSError, step: int, must: bool) -> None:
        message = f"{self.folder}: the checkpoint of step {step} could not be written: {failure.strerror or failure}."
        kept = f"The one of step {self._saved_step} is kept" if self._saved_step else "There is none before it"
        if must:
            raise CheckpointError(f"{message} {kept}; free space or give access, and the same command continues.") from failure
        print(f"{message} {kept}; training goes on until the next is due.", file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]


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


class Throughput(Callback):
    """Logs `perf/tokens_per_second` (input positions, all ranks) and `perf/step_seconds`, and adds up the time of training
    alone: without validations, checkpoints, and the first step after a start."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the whole run, over all resumes
        self.train_seconds, self.train_tokens = 0.0, 0.0
        self._clock = self._mark = time.monotonic()
        self._tokens_before: float | None = None
        self._logged = (0, 0.0, 0.0)  # step, train_seconds, train_tokens

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = time.monotonic()
        self._tokens_before = None
        self._logged = (trainer.global_step, self.train_seconds, self.train_tokens)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MLMModule)
        step = trainer.global_step
        if not pl_module.at_step_boundary(batch_idx):
            return
        reading = step % pl_module.log_every_n_steps == 0 or pl_module.validation_due(step)
        if self._tokens_before is None or reading:
            tokens = pl_module.tokens_trained  # waits for the accelerator
            now = time.monotonic()
            if self._tokens_before is not None:
                self.train_seconds += now - self._mark
                self.train_tokens += tokens - self._tokens_before
            self._tokens_before, self._mark = tokens, now
        if step % pl_module.log_every_n_steps == 0 and step > self._logged[0]:
            logged_step, seconds, tokens_then = self._logged
            elapsed = self.train_seconds - seconds
            if elapsed > 0 and self.train_tokens > tokens_then:
                rate = (self.train_tokens - tokens_then) / elapsed
                metrics = {"perf/tokens_per_second": rate, "perf/step_seconds": elapsed / (step - logged_step)}
                pl_module.log_scalars(metrics, step)
                show_in_progress_bar(trainer, "tokens/s", rate)
            self._logged = (step, self.train_seconds, self.train_tokens)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self._tokens_before is not None:
            self._mark = time.monotonic()

    @property
    def tokens_per_second(self) -> float:
        return self.train_tokens / self.train_seconds if self.train_seconds > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return {"seconds": self.seconds, "train_seconds": self.train_seconds, "train_tokens": self.train_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.train_seconds, self.train_tokens = (
            state_dict["seconds"],
            state_dict["train_seconds"],
            state_dict["train_tokens"],
        )


class Progress(Callback):
    """A bar with the step, the loss, tokens/s and the time left on a terminal; elsewhere a line at each validation."""

    def __init__(self, refresh_per_second: float = 4.0) -> None:
        self.refresh_per_second = refresh_per_second
        self._bar: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MLMModule)
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
        self._task = self._bar.add_task("", total=pl_module.total_steps, completed=trainer.global_step, loss="", rate="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        metrics = shown_in_progress_bar(trainer)
        loss = f"loss {metrics['train/loss']:.3f}" if "train/loss" in metrics else ""
        rate = f"{metrics['tokens/s']:,.0f} tokens/s" if "tokens/s" in metrics else ""
        self._bar.update(self._task, completed=trainer.global_step, loss=loss, rate=rate)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MLMModule)
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        names = ("val/loss", "val/perplexity", "val/accuracy", "val/excess_loss")
        shown = "  ".join(f"{n} {pl_module.last_metrics[n]:.4g}" for n in names if n in pl_module.last_metrics)
        line = f"step {trainer.global_step}/{pl_module.total_steps}  {shown}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Samples(Callback):
    """Shows the first `num_rows` validation rows in TensorBoard after each validation: as text the masked input, predictions,
    truth, and the probability that the model gave to the truth; with an oracle and a small vocabulary also as an image, the
    model's probabilities beside the exact ones."""

    LARGEST_VOCABULARY = 64  # of the image: a row of it is a token

    def __init__(self, num_rows: int = 4) -> None:
        if num_rows < 1:
            raise ValueError(f"callbacks.samples.num_rows={num_rows}: give a number of rows above 0, or callbacks.samples=null")
        self.num_rows = num_rows

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not boards:
            return
        assert isinstance(pl_module, MLMModule)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = datamodule.eval_batches("val", next(iter(datamodule.eval_maskings)))
        batches.batch_size = min(self.num_rows, len(batches.rows))
        batch = batches[0]
        probs_BKV, oracle_BKV = _probabilities(pl_module, batch), pl_module.oracle_probs(batch, pl_module.oracles[0])
        text = samples_as_markdown(batch, probs_BKV, datamodule.source.vocab.token)
        for board in boards:
            board.experiment.add_text("val/samples", text, trainer.global_step)
            if oracle_BKV is not None and oracle_BKV.shape[-1] <= self.LARGEST_VOCABULARY:
                image_HW = posteriors_as_image(batch, probs_BKV, oracle_BKV)
                board.experiment.add_image("val/model_left_oracle_right", image_HW, trainer.global_step, dataformats="HW")


@torch.no_grad()
def _probabilities(module: MLMModule, batch: Any) -> Tensor:
    training = module.training
    module.eval()
    batch = type(batch)(*(None if each is None else each.to(module.device) for each in batch))
    with module.trainer.precision_plugin.forward_context():
        probs_BKV = module(batch).float().softmax(-1).cpu()
    module.train(training)
    return probs_BKV


def samples_as_markdown(batch: Any, probs_BKV: Tensor, token: Callable[[int], str]) -> str:
    """A table a row: the masked input, then position, truth, its probability, and the best prediction with its probability."""
    parts = []
    for row in range(len(batch.input_ids_BL)):
        tokens = [token(i) for i in batch.input_ids_BL[row].tolist()]
        parts.append(f"**row {int(batch.row_ids_B[row])}**: " + " ".join(f"`{each}`" for each in tokens))
        lines = ["| position | truth | p(truth) | prediction | p(prediction) |", "|---|---|---|---|---|"]
        for place, label in enumerate(batch.labels_BK[row].tolist()):
            if label == IGNORE_INDEX:
                continue
            probability, best = probs_BKV[row, place].max(-1)
            position, p_truth = int(batch.positions_BK[row, place]), probs_BKV[row, place, label]
            lines.append(f"| {position} | `{token(label)}` | {p_truth:.3f} | `{token(int(best))}` | {probability:.3f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def posteriors_as_image(batch: Any, probs_BKV: Tensor, oracle_BKV: Tensor, size: int = 16) -> Tensor:
    """The probabilities of the predicted tokens, black for 0 and white for 1, `image_HW`: the model's left, the oracle's right.

    A line of squares is a masked position, a square a token; a grey bar lies between two rows.
    """
    grey, parts = 0.5, []
    for row, labels_K in enumerate(batch.labels_BK):
        used_K = labels_K != IGNORE_INDEX
        panels = [probs_BKV[row, used_K].cpu(), oracle_BKV[row, used_K].cpu().to(probs_BKV.dtype)]
        squares = torch.cat([panels[0], torch.full((len(panels[0]), 1), grey), panels[1]], dim=1)
        parts += [squares, torch.full((1, squares.shape[1]), grey)]
    return torch.cat(parts[:-1]).nan_to_num().repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)

"""How fast a run trains, beside how fast it could, and in how much memory."""

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mlm_lightning.training.lightning_internals import show_in_progress_bar
from mlm_lightning.training.limit import matrix_peak, matrix_work, peak_memory_gb

log = logging.getLogger(__name__)

_MEASURED_AFTER, _MEASURED_EVERY = 5.0, 60.0  # seconds of training


class Throughput(Callback):
    """Logs `perf/tokens_per_second` (input positions, all ranks), `perf/step_seconds` and `perf/peak_memory_gb`, and adds up
    the time of training alone: without validations, checkpoints, and the first step after a start. Runs of more than some
    seconds also log `perf/share_of_peak`: the matrix work that a step needs, by its time and the rate at which this device
    multiplies matrices, measured in the same minute (of the first rank)."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the whole run, over all resumes
        self.train_seconds, self.train_tokens = 0.0, 0.0
        self._clock = self._mark = time.monotonic()
        self._tokens_before: float | None = None
        self._logged = (0, 0.0, 0.0)  # step, train_seconds, train_tokens
        self._work, self._shape = 0.0, torch.Size()  # of a micro-batch
        self._peak, self._peak_at = 0.0, _MEASURED_AFTER - _MEASURED_EVERY  # of train_seconds of this process
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._clock = time.monotonic()
        self._tokens_before = None
        self._logged, self._began = (trainer.global_step, self.train_seconds, self.train_tokens), self.train_seconds

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not pl_module.at_step_boundary(batch_idx):
            return
        reading = step % pl_module.plan.log_every_n_steps == 0 or pl_module.plan.validation_due(step)
        if self._tokens_before is None or reading:
            tokens = pl_module.tokens_trained  # waits for the accelerator
            now = time.monotonic()
            if self._tokens_before is not None:
                self.train_seconds += now - self._mark
                self.train_tokens += tokens - self._tokens_before
            self._tokens_before, self._mark = tokens, now
        if step % pl_module.plan.log_every_n_steps == 0 and step > self._logged[0]:
            logged_step, seconds_then, tokens_then = self._logged
            elapsed = self.train_seconds - seconds_then
            if elapsed > 0 and self.train_tokens > tokens_then:
                rate = (self.train_tokens - tokens_then) / elapsed
                step_seconds = elapsed / (step - logged_step)
                metrics = {"tokens_per_second": rate, "step_seconds": step_seconds}
                metrics |= peak_memory_gb(pl_module.device) | self._share(trainer, pl_module, batch, step_seconds)
                pl_module.log_scalars({f"perf/{name}": value for name, value in metrics.items()}, step)
                show_in_progress_bar(trainer, "tokens/s", rate)
                self._mark = time.monotonic()
            self._logged = (step, self.train_seconds, self.train_tokens)

    def _share(self, trainer: L.Trainer, module: Any, batch: Any, step_seconds: float) -> dict[str, float]:
        """Of the last steps, each as `batch`."""
        trained = self.train_seconds - self._began
        if not trainer.is_global_zero or trained < _MEASURED_AFTER:
            return {}
        outdated = trained - self._peak_at >= _MEASURED_EVERY
        if outdated or batch.input_ids_BL.shape != self._shape:  # rows and batches may grow, and the masking rate change
            self._shape = batch.input_ids_BL.shape
            try:
                self._work = matrix_work(module.model, batch)
            except Exception as error:  # a model may do anything that can't be done without data
                log.debug("the matrix work of a step is not known: %s", error)
                self._work, self._peak_at = 0.0, trained
        if not self._work:
            return {}
        if outdated:
            self._peak, self._peak_at = matrix_peak(module.device, _dtype_of_products(trainer.precision)), trained
        return {"share_of_peak": self._work * trainer.accumulate_grad_batches / step_seconds / self._peak}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
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
        self.seconds = state_dict["seconds"]
        self.train_seconds, self.train_tokens = state_dict["train_seconds"], state_dict["train_tokens"]


def _dtype_of_products(precision: str) -> torch.dtype:
    """Of the matrices that a Trainer's precision multiplies."""
    return torch.bfloat16 if "bf16" in precision else torch.float16 if precision.startswith("16") else torch.float32

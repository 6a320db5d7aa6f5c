"""How fast a run trains."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from mlm_lightning.training.lightning_internals import show_in_progress_bar


class Throughput(Callback):
    """Logs `perf/tokens_per_second` (input positions, all ranks) and `perf/step_seconds`, and adds up the time of training
    alone: without validations, checkpoints, and the first step after a start."""

    def __init__(self) -> None:
        self.seconds = 0.0  # of the whole run, over all resumes
        self.train_seconds, self.train_tokens = 0.0, 0.0
        self._clock = self._mark = time.monotonic()
        self._tokens_before: float | None = None
        self._logged = (0, 0.0, 0.0)  # step, train_seconds, train_tokens

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._clock = time.monotonic()
        self._tokens_before = None
        self._logged = (trainer.global_step, self.train_seconds, self.train_tokens)

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
                metrics = {"perf/tokens_per_second": rate, "perf/step_seconds": elapsed / (step - logged_step)}
                pl_module.log_scalars(metrics, step)
                show_in_progress_bar(trainer, "tokens/s", rate)
            self._logged = (step, self.train_seconds, self.train_tokens)

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

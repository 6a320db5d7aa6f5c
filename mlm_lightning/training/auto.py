"""What a config leaves open is settled once, before the first step, and kept: in the manifest, and in every checkpoint.

data.vocab_size=auto    ─► by the amount of text, when it is prepared        ─► data.vocab_size=5952
trainer.time_budget=15  ─► a few steps are timed, by a Trainer as the run's  ─► trainer.max_steps=3120
optim.lr=auto           ─► the work of all steps, by the model and the tokens ─► optim.lr=0.0055
                                                    │
      a run that goes on, each of its ranks:  its checkpoint, or its manifest, says what was settled

The identity of a run covers what its config says, the minutes; how many steps they are depends on the machine, and stays what
it was when the run began.
"""

import logging
import signal
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mlm_lightning.config.build import model_for
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.source import Source
from mlm_lightning.errors import Interrupted, handle, restore
from mlm_lightning.runs.checkpoint import Position
from mlm_lightning.runs.folder import Run
from mlm_lightning.training.parameters import hidden_matrices

log = logging.getLogger(__name__)

_ASIDE = 3
"""The first steps of a process, which compile and allocate."""
_AT_LEAST = 5
"""Steps that are timed."""

Settled = dict[str, Any]
"""By the keys of the config."""


def settle(
    run: Run,
    settings: Settings,
    conditions: Sequence[Condition],
    position: Position | None,
    measure: Callable[[Settings, Sequence[Condition]], float],
) -> tuple[Settings, Settled]:
    """The settings with what they leave open settled, and what that is: as when the run began, or now, at its beginning.
    `measure` gives the seconds of an optimizer step."""
    budget, source = settings.trainer.time_budget, conditions[0].source
    settled: Settled = source.chosen()
    if budget is None and not settings.optimization.auto_lr and not settled:
        return settings, {}
    if (before := settled_before(run, position)) is not None:
        return _apply(settings, before), before
    for key, value in settled.items():
        log.info("%-12s %s, by the data", key, f"{value:,}")
    if budget is not None:
        seconds, most = measure(settings, conditions), settings.trainer.max_steps
        steps = steps_within(settings, source.seq_len, seconds) + (position.step if position else 0)
        settled |= {"trainer.max_steps": steps if most is None else min(steps, most), "step_seconds": seconds}
        comes_first = " (trainer.max_steps comes first)" if most is not None and most < steps else ""
        log.info("%-12s %s steps in %g minutes, at %.3g s each%s", "time budget", f"{steps:,}", budget, seconds, comes_first)
    if settings.optimization.auto_lr:
        plan = _apply(settings, settled).trainer.plan(source.num_rows(), settings.loader.batch_size)
        tokens = plan.total_steps * settings.rows_per_step * source.seq_len
        settled["optim.lr"] = learning_rate_for(_inner_parameters(settings, source), tokens)
        log.info("%-12s %.3g for %s tokens", "optim.lr", settled["optim.lr"], f"{tokens:,}")
    return _apply(settings, settled), settled


def learning_rate_for(parameters: int, tokens: int) -> float:
    """The best learning rate of AdamW for 6 · parameters · tokens floating-point operations, embeddings and the output layer
    aside, as it was found for causal models of 10^17 to 10^20 operations (Bi et al. 2024, DeepSeek LLM, arXiv 2401.02954,
    equation 1). Small runs are an extrapolation: at 10^13, where it gives 7.4e-3, Muon's loss on text was 4.25 with 6e-3 and
    4.94 with 2e-3. Three digits of it."""
    return float(f"{0.3118 * (6.0 * parameters * tokens) ** -0.125:.3g}")


def _inner_parameters(settings: Settings, source: Source) -> int:
    with torch.device("meta"):
        model = model_for(settings.model, source.seq_len, False, vocab_size=source.vocab.size, pad_token_id=source.vocab.pad_id)
    return max(1, sum(matrix.numel() for matrix in hidden_matrices(model)))


def settled_before(run: Run, position: Position | None) -> Settled | None:
    """What was settled when the run began; None where it has not begun."""
    if position is not None and position.path.parent == run.checkpoints:
        return position.record.get("settled")
    return run.manifest.get("settled")


def _apply(settings: Settings, settled: Mapping[str, Any]) -> Settings:
    """The settings with what was settled in place of what they left open."""
    trainer = settings.trainer
    if trainer.time_budget is not None:
        trainer = replace(trainer, max_steps=settled["trainer.max_steps"], time_budget=None)
    optim = settings.optim
    if "optim.lr" in settled:
        optim = replace(optim, arguments=optim.arguments | {"lr": settled["optim.lr"]})
    return settings.settled(trainer=trainer, optim=optim)


def steps_within(settings: Settings, seq_len: int, step_seconds: float) -> int:
    """The optimizer steps that the time budget has room for, where one takes `step_seconds` on whole rows and full batches.
    Shorter rows and smaller batches of a warm-up are taken to cost their share of that."""
    assert settings.trainer.time_budget is not None
    room = settings.trainer.time_budget * 60 / step_seconds
    lengths, batches, batch_size = settings.loader.length_schedule, settings.trainer.batch_schedule, settings.loader.batch_size

    def cost(total: int) -> float:
        """Of a run of so many steps, in steps that are whole and full: from a thousand of them."""
        sizes = None if batches is None else batches.sizes(batch_size, total)
        shares = []
        for step in range(0, total, -(-total // 1000)):
            length = seq_len if lengths is None else lengths.at(step, total, seq_len)
            rows = batch_size if sizes is None else sizes.at(step)
            shares.append(length / seq_len * rows / batch_size)
        return total * statistics.fmean(shares)

    # a row has two positions at least, and a batch a row
    return max(1, bisect_right(range(1, int(room * seq_len * batch_size) + 2), room, key=cost))


class Clock(Callback):
    """Times optimizer steps until they have taken `seconds`; `step_seconds` is then their median on the slowest rank."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.step_seconds = seconds, 0.0
        self._times: list[float] = []
        self._mark, self._steps = 0.0, 0
        self._signum = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        alone = trainer.world_size == 1

        def stop(signum: int, frame: Any) -> None:
            self._signum = signum
            if alone:  # other ranks would wait for one that has gone
                raise Interrupted(signum, None)

        self._handlers = handle(stop)
        self._mark = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not pl_module.at_step_boundary(batch_idx):
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = time.monotonic()
        self._steps += 1
        if self._steps > _ASIDE:
            self._times.append(now - self._mark)
        self._mark = now
        done = sum(self._times) >= self.seconds and len(self._times) >= _AT_LEAST
        if trainer.strategy.reduce_boolean_decision(done or bool(self._signum), all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        median = torch.tensor(statistics.median(self._times or [0.0]), device=pl_module.device)
        self.step_seconds = float(trainer.strategy.reduce(median, reduce_op="max"))

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        restore(self._handlers)
        self._handlers = {}
        if self._signum:
            raise Interrupted(self._signum, None)

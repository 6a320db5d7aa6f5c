"""Warm-up of rows and batches: rows begin short, batches begin small, and both grow with the optimizer step.

    positions   │      ╭─── seq_len          rows of a     │     ╭──── data.batch_size
    of a row    │   ╭──╯                     micro-batch   │  ╭──╯
        start   │───╯                              start   │──╯
                └──────┬──────► step                       └─────┬─────► step
                     steps                                     steps

Both are pure functions of the step: a resumed run has the lengths and sizes of the uninterrupted one, and nothing is saved.
Short rows are cheaper by more than their share, and training begins more stably on them (Li, Zhang, He, "The
Stability-Efficiency Dilemma", 2022); small batches take more steps from as many rows while gradients are large against their
noise (McCandlish et al., "An Empirical Model of Large-Batch Training", 2018). Only training is warmed up: evaluation sees whole
rows.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from mlm_lightning.errors import ConfigError, refuse
from mlm_lightning.values import check_fields

STEPS = "give a number of steps, or a share of all steps below 1"
LENGTHS_APART = 8
"""Lengths are multiples of it: an accelerator compiles each shape once, and prefers these."""

_Steps = Annotated[float, Gt(0), STEPS]


def in_steps(steps_or_share: float, total_steps: int) -> int:
    """A number of steps, which may be given as a share of all steps below 1."""
    return round(steps_or_share * total_steps) if steps_or_share < 1 else int(steps_or_share)


@dataclass(frozen=True, kw_only=True)
class LengthSchedule:
    """Rows of the first optimizer step have their first `start` positions alone, and grow in a straight line to their whole
    length over `steps` optimizer steps (below 1: that share of all)."""

    start: Annotated[int, Ge(2), "it is a number of positions, such as 32"]
    steps: _Steps

    def __post_init__(self) -> None:
        check_fields(self, "data.length_schedule")
        refuse(_broken("data.length_schedule.steps", self.steps, STEPS))

    def at(self, step: int, total_steps: int, seq_len: int) -> int:
        """The positions that rows of `seq_len` keep at optimizer step `step`."""
        steps = in_steps(self.steps, total_steps)
        if step >= steps:
            return seq_len
        grown = self.start + (seq_len - self.start) * step // steps
        return max(self.start, grown // LENGTHS_APART * LENGTHS_APART)

    def errors(self, seq_len: int) -> list[ConfigError]:
        """What is wrong with it for rows of `seq_len` positions."""
        if self.start <= seq_len:
            return []
        return [ConfigError("data.length_schedule.start", self.start, f"rows have {seq_len:,} positions", "give fewer")]


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """A micro-batch of the first optimizer step has `start` rows on each device (below 1: that share of `data.batch_size`), and
    grows in a straight line to `data.batch_size` rows over `steps` optimizer steps (below 1: that share of all)."""

    start: Annotated[float, Gt(0), "give a number of rows, or a share of data.batch_size below 1"]
    steps: _Steps

    def __post_init__(self) -> None:
        check_fields(self, "trainer.batch_schedule")
        rows = "give a whole number of rows, or a share of data.batch_size below 1"
        found = _broken("trainer.batch_schedule.start", self.start, rows)
        refuse(found + _broken("trainer.batch_schedule.steps", self.steps, STEPS))

    def sizes(self, batch_size: int, total_steps: int) -> "BatchSizes":
        start = max(1, round(self.start * batch_size)) if self.start < 1 else int(self.start)
        return BatchSizes(full=batch_size, start=start, steps=in_steps(self.steps, total_steps))

    def errors(self, batch_size: int) -> list[ConfigError]:
        """What is wrong with it for batches of `batch_size` rows."""
        if self.start <= batch_size:
            return []
        return [
            ConfigError("trainer.batch_schedule.start", self.start, f"data.batch_size is {batch_size:,}", "give fewer rows")
        ]


@dataclass(frozen=True)
class BatchSizes:
    """The rows of a micro-batch on one device: `start` at the first optimizer step, `full` from step `steps` on."""

    full: int
    start: int
    steps: int

    def __post_init__(self) -> None:
        assert 1 <= self.start <= self.full

    def at(self, step: int) -> int:
        """At optimizer step `step`."""
        return self.full if step >= self.steps else self.start + (self.full - self.start) * step // self.steps

    def before(self, step: int) -> int:
        """In all steps before it, one micro-batch a step: from the few steps where a row is added, however many there are."""
        return self.start * step + int(np.maximum(step - self._growing, 0).sum())

    @cached_property
    def _growing(self) -> np.ndarray:
        """For each row beyond `start`, the first step that has it."""
        rows = self.full - self.start
        return -(-np.arange(1, rows + 1) * self.steps // max(1, rows))


def _broken(key: str, value: float, remedy: str) -> list[ConfigError]:
    """What is above 1, and so a number of something, has to be whole."""
    return [ConfigError(key, value, "is no whole number", remedy)] if value > 1 and value % 1 != 0 else []

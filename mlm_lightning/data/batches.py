"""Rows and masks become batches; batch j is a pure function of (seed, j, rank).

Training reads one endless stream of rows, the epochs' orders one after the other, and cuts it into full batches:

    order of epoch 0          order of epoch 1
    4 0 3 1 5 2               2 5 0 4 1 3                …
    └──────┘└──────┘└────────────┘
    batch 0  batch 1  batch 2                  a micro-batch of `ranks x batch_size` rows; rank r takes its r-th part

So no batch is ever short, `k` accumulated micro-batches or `n` ranks see the rows of one large batch, and a resumed run starts
at batch `steps done x accumulation` without reading what came before. The optimizer step of a batch, which a schedule of mask
rates, lengths or batch sizes depends on, is known by its number, too: micro-batch j belongs to step `j // accumulation`. Where
batches grow, the sums of their sizes say where the stream is cut. Where the rows themselves have no end, blocks of
`shuffle_buffer` consecutive rows take the place of the epochs:

    order of block 0          order of block 1
    1 3 0 5 4 2               8 6 11 9 10 7              …
"""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mlm_lightning.batch import PADDING_ROW
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.source import EndlessRows, Rows
from mlm_lightning.data.warmup import BatchSizes
from mlm_lightning.randomness import Stream, generator
from mlm_lightning.tasks import Batch


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what happens when, in optimizer steps. An epoch ends where its rows end, also in the middle of a
    step; endless rows have none. `rows_per_epoch` (None: all) cuts each epoch's order short. Where `batch_sizes` grow (None:
    they don't), `steps_per_epoch` counts steps of full size, and so does `validate_every` where validation goes `by_epochs`.
    `validate_at` names the steps that are validated instead, ascending."""

    total_steps: int
    steps_per_epoch: float = math.inf
    validate_every: float = math.inf
    rows_per_epoch: int | None = None
    accumulate_grad_batches: int = 1
    log_every_n_steps: int = 50
    batch_sizes: BatchSizes | None = None
    by_epochs: bool = False
    validate_at: tuple[int, ...] | None = None

    def progress(self, step: int) -> float:
        """From 0, at the first optimizer step (step 0), to 1, at the last; a run of a single step is at its end."""
        return min(1.0, step / (self.total_steps - 1)) if self.total_steps > 1 else 1.0

    def full_steps(self, step: int) -> float:
        """How many steps of full size have the rows of the first `step` optimizer steps."""
        return step if self.batch_sizes is None else self.batch_sizes.before(step) / self.batch_sizes.full

    def epoch(self, step: int) -> float:
        """How many epochs have the rows of the first `step` optimizer steps."""
        return self.full_steps(step) / self.steps_per_epoch

    def validation_due(self, step: int) -> bool:
        """Whether validation follows optimizer step `step`."""
        return step >= self.total_steps or self._validations(step) > self._validations(step - 1)

    def validations_after(self, step: int) -> int:
        """How many validations follow the optimizer steps after `step`."""
        if step >= self.total_steps:
            return 0
        last = self.total_steps - 1
        return int(self._validations(last) - self._validations(min(step, last))) + 1

    def _validations(self, step: int) -> float:
        """How many were due by then, that of the last step aside."""
        if self.validate_at is not None:
            return bisect.bisect_right(self.validate_at, step)
        return (self.full_steps(step) if self.by_epochs else step) // self.validate_every


class TrainBatches(Dataset[Batch]):
    """Batch j of a rank's stream; endless rows have one epoch. `make` makes it of rows (Task.maker); `length`
    gives the positions that rows keep at an optimizer step (None: all)."""

    def __init__(
        self,
        rows: Rows | EndlessRows,
        make: Callable[..., Batch],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        plan: Plan = Plan(total_steps=1),
        length: Callable[[int], int] | None = None,
    ) -> None:
        self.rows, self.make, self.seed, self.length = rows, make, seed, length
        self.rank, self.world_size, self.plan = rank, world_size, plan
        self.sizes = plan.batch_sizes or BatchSizes(batch_size, start=batch_size, steps=0)
        self.endless = isinstance(rows, EndlessRows)
        # what is shuffled at a time, an epoch's rows or a block, and how many of them are then taken
        self.rows_per_order = rows.shuffle_buffer if isinstance(rows, EndlessRows) else len(rows)
        self.taken_per_order = plan.rows_per_epoch or self.rows_per_order
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Batch:
        row_ids_B, epochs_B = self.row_ids(index)
        step = index // self.plan.accumulate_grad_batches
        length = None if self.length is None else self.length(step)
        batch = _batch(self.rows, row_ids_B, self.make, epochs_B, self.plan.progress(step), length)
        if self.endless:
            # as many rows of the next block come in as go out of this one
            self.rows.read_ahead(self._rows_before(index + 1) + self.rows_per_order)  # type: ignore[union-attr]
        return batch

    def row_ids(self, index: int) -> tuple[Tensor, Tensor]:
        """The rows of batch `index`, and for each the epoch that it belongs to."""
        size = self.sizes.at(index // self.plan.accumulate_grad_batches)
        first = self._rows_before(index) + self.rank * size
        places_B = torch.arange(first, first + size)
        orders_B = places_B // self.taken_per_order
        offsets_B = places_B % self.taken_per_order
        row_ids_B = torch.empty_like(places_B)
        for number in range(int(orders_B[0]), int(orders_B[-1]) + 1):
            here_B = orders_B == number
            row_ids_B[here_B] = self._order(number)[offsets_B[here_B]]
        if self.endless:
            return row_ids_B + orders_B * self.rows_per_order, torch.zeros_like(orders_B)
        return row_ids_B, orders_B

    def _rows_before(self, index: int) -> int:
        """The rows of the batches before `index`, on all ranks."""
        step, micro_batch = divmod(index, self.plan.accumulate_grad_batches)
        before = self.plan.accumulate_grad_batches * self.sizes.before(step) + micro_batch * self.sizes.at(step)
        return self.world_size * before

    def _order(self, number: int) -> Tensor:
        """The two newest are kept: a batch spans two epochs at most, unless the epoch is shorter than a batch."""
        if number not in self._orders:
            order = torch.randperm(self.rows_per_order, generator=generator(self.seed, Stream.ORDER, number))
            self._orders = dict(list(self._orders.items())[-1:]) | {number: order[: self.taken_per_order]}
        return self._orders[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_orders": {}}


@dataclass(eq=False)
class EvalBatches(Dataset[Batch]):
    """The rows of a split in their own order, each once; ranks get equally many rows, with PADDING_ROW where rows run out."""

    rows: Rows
    make: Callable[..., Batch]
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size * self.world_size
        if index >= len(self):
            raise IndexError(index)
        remaining = min(len(self.rows) - first, self.batch_size * self.world_size)
        share = -(-remaining // self.world_size)
        row_ids_B = torch.arange(first + self.rank * share, first + (self.rank + 1) * share)
        row_ids_B[row_ids_B >= first + remaining] = PADDING_ROW
        return _batch(self.rows, row_ids_B, self.make)


@dataclass(eq=False)
class BatchRange(Sampler[int]):
    """The batches `start … stop - 1`. Its length is `stop`: Lightning counts the batches before `start` as done."""

    start: int
    stop: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


@exactly()
def _batch(
    rows: Rows | EndlessRows,
    row_ids_B: Tensor,
    make: Callable[..., Batch],
    epochs_B: Tensor | None = None,
    progress: float = 1.0,
    length: int | None = None,
) -> Batch:
    read = rows[row_ids_B.clamp(min=0)]  # a PADDING_ROW has the tokens of row 0, and no labels
    tokens_BL, attention_mask_BL = read if isinstance(read, tuple) else (read, None)
    if length is not None:  # before they are masked: what is predicted at least, and at most, is a matter of what is left
        tokens_BL = tokens_BL[:, :length].contiguous()
        attention_mask_BL = None if attention_mask_BL is None else attention_mask_BL[:, :length].contiguous()
    return make(tokens_BL, row_ids_B, epochs_B=epochs_B, attention_mask_BL=attention_mask_BL, progress=progress)

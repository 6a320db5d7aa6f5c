"""Rows and masks become batches; batch j is a pure function of (seed, j, rank).

Training reads one endless stream of rows, the epochs' orders one after the other, and cuts it into full batches:

    order of epoch 0          order of epoch 1
    4 0 3 1 5 2               2 5 0 4 1 3                …
    └──────┘└──────┘└────────────┘
    batch 0  batch 1  batch 2                  a micro-batch of `ranks x batch_size` rows; rank r takes its r-th part

So no batch is ever short, `k` accumulated micro-batches or `n` ranks see the rows of one large batch, and a resumed run starts
at batch `steps done x accumulation` without reading what came before. The optimizer step of a batch, which a scheduled mask
rate depends on, is known by its number, too: micro-batch j belongs to step `j // accumulation`. Where the rows themselves have
no end, blocks of `shuffle_buffer` consecutive rows take the place of the epochs:

    order of block 0          order of block 1
    1 3 0 5 4 2               8 6 11 9 10 7              …
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mlm_lightning.batch import PADDING_ROW, MLMBatch
from mlm_lightning.data.source import SPLITS, EndlessRows, Rows, Source, Split
from mlm_lightning.masking import Masking
from mlm_lightning.randomness import Stream, generator, key

log = logging.getLogger(__name__)


def progress_of_run(step: int, total_steps: int) -> float:
    """From 0, at a run's first optimizer step (step 0), to 1, at its last; a run of a single step is at its end."""
    return min(1.0, step / (total_steps - 1)) if total_steps > 1 else 1.0


class TrainBatches(Dataset[MLMBatch]):
    """Batch j of a rank's stream. `rows_per_epoch` (null: all) cuts each epoch's order short; endless rows have one epoch.

    The run makes `total_steps` optimizer steps of `accumulate_grad_batches` batches each.
    """

    def __init__(
        self,
        rows: Rows | EndlessRows,
        mask: Callable[..., MLMBatch],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        rows_per_epoch: int | None = None,
        accumulate_grad_batches: int = 1,
        total_steps: int = 1,
    ) -> None:
        self.rows, self.mask, self.batch_size, self.seed = rows, mask, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.accumulate_grad_batches, self.total_steps = accumulate_grad_batches, total_steps
        self.endless = isinstance(rows, EndlessRows)
        # what is shuffled at a time, an epoch's rows or a block, and how many of them are then taken
        self.rows_per_order = rows.shuffle_buffer if isinstance(rows, EndlessRows) else len(rows)
        self.places_per_order = rows_per_epoch or self.rows_per_order
        # the two newest orders: a batch spans two epochs at most, unless the epoch is shorter than a batch
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, index: int) -> MLMBatch:
        row_ids_B, epochs_B = self.row_ids(index)
        progress = progress_of_run(index // self.accumulate_grad_batches, self.total_steps)
        batch = _masked(self.rows, row_ids_B, self.mask, epochs_B, progress)
        if self.endless:
            # as many rows of the next block come in as go out of this one
            stop = (index + 1) * self.world_size * self.batch_size + self.rows_per_order
            self.rows.read_ahead(stop)  # type: ignore[union-attr]
        return batch

    def row_ids(self, index: int) -> tuple[Tensor, Tensor]:
        """The rows of batch `index`, and for each the epoch that it belongs to."""
        first = (index * self.world_size + self.rank) * self.batch_size
        places_B = torch.arange(first, first + self.batch_size)
        orders_B = places_B // self.places_per_order
        offsets_B = places_B % self.places_per_order
        row_ids_B = torch.empty_like(places_B)
        for number in range(int(orders_B[0]), int(orders_B[-1]) + 1):
            here_B = orders_B == number
            row_ids_B[here_B] = self._order(number)[offsets_B[here_B]]
        if self.endless:
            return row_ids_B + orders_B * self.rows_per_order, torch.zeros_like(orders_B)
        return row_ids_B, orders_B

    def _shuffled(self, number: int) -> Tensor:
        order = torch.randperm(self.rows_per_order, generator=generator(self.seed, Stream.ORDER, number))
        return order[: self.places_per_order]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._order = lru_cache(maxsize=2)(self._shuffled)


class EvalBatches(Dataset[MLMBatch]):
    """The rows of a split in their own order, each once; ranks get equally many rows, with PADDING_ROW where rows run out."""

    def __init__(self, rows: Rows, mask: Callable[..., MLMBatch], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.rows, self.mask, self.batch_size = rows, mask, batch_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.rows) // (self.batch_size * self.world_size))

    def __getitem__(self, index: int) -> MLMBatch:
        first = index * self.batch_size * self.world_size
        if index >= len(self):
            raise IndexError(index)
        remaining = min(len(self.rows) - first, self.batch_size * self.world_size)
        share = -(-remaining // self.world_size)
        row_ids_B = torch.arange(first + self.rank * share, first + (self.rank + 1) * share)
        row_ids_B[row_ids_B >= first + remaining] = PADDING_ROW
        return _masked(self.rows, row_ids_B, self.mask)


class BatchRange(Sampler[int]):
    """The batches `start … stop - 1`. Its length is `stop`: Lightning counts the batches before `start` as done."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop


class MLMDataModule(L.LightningDataModule):
    """Loaders over a source. `batch_size` is the number of rows of a micro-batch on one device.

    `eval_maskings` holds the conditions that val and test are evaluated under, by the endings of their metrics' names; each has
    a loader of its own, with masks that are frozen: a function of (`eval_seed`, split, row, rate). The rows are those of
    `source`, or, for the conditions in `eval_sources`, of another.
    """

    def __init__(
        self,
        source: Source,
        masking: Masking,
        eval_maskings: dict[tuple[str, ...], Masking],
        batch_size: int,
        seed: int,
        eval_seed: int = 0,
        num_workers: int = 0,
        accumulate_grad_batches: int = 1,
        rows_per_epoch: int | None = None,
        total_steps: int | None = None,
        eval_sources: Mapping[tuple[str, ...], Source] | None = None,
    ) -> None:
        super().__init__()
        self.source, self.masking, self.eval_maskings = source, masking, eval_maskings
        self.eval_sources = eval_sources or {}
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.eval_seed = seed, eval_seed
        self.accumulate_grad_batches, self.rows_per_epoch, self.total_steps = (
            accumulate_grad_batches,
            rows_per_epoch,
            total_steps,
        )

    def train_batches(self, rank: int = 0, world_size: int = 1) -> TrainBatches:
        return TrainBatches(
            self.source.rows("train"),
            _Mask(self.masking, self.source, key(self.seed, SPLITS.index("train"))),
            self.batch_size,
            self.seed,
            rank,
            world_size,
            self.rows_per_epoch,
            self.accumulate_grad_batches,
            self.total_steps or 1,
        )

    def eval_batches(self, split: Split, condition: tuple[str, ...], rank: int = 0, world_size: int = 1) -> EvalBatches:
        source = self.eval_sources.get(condition, self.source)
        mask = _Mask(self.eval_maskings[condition], source, key(self.eval_seed, SPLITS.index(split)))
        rows = source.rows(split)
        assert not isinstance(rows, EndlessRows)
        return EvalBatches(rows, mask, self.batch_size, rank, world_size)

    def train_dataloader(self) -> DataLoader[MLMBatch]:
        assert self.trainer is not None
        assert self.total_steps is not None
        start = self.trainer.global_step * self.accumulate_grad_batches
        batches = self.train_batches(self.trainer.global_rank, self.trainer.world_size)
        sampler = BatchRange(start, self.total_steps * self.accumulate_grad_batches)
        if self.source.endless and self.num_workers > 1:
            log.warning(
                "data.num_workers=%d: each worker reads and tokenises the whole stream, for the same rows; 1 is enough",
                self.num_workers,
            )
        return _loader(batches, sampler, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[MLMBatch]]:
        return self._eval_dataloaders("val")

    def test_dataloader(self) -> list[DataLoader[MLMBatch]]:
        return self._eval_dataloaders("test")

    def _eval_dataloaders(self, split: Split) -> list[DataLoader[MLMBatch]]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = [self.eval_batches(split, condition, rank, world_size) for condition in self.eval_maskings]
        # no workers: a split is read once between training steps, and starting workers would cost more than they save
        return [_loader(each, BatchRange(0, len(each)), num_workers=0) for each in batches]


class _Mask:
    """A masking bound to a source's vocabulary and a key."""

    def __init__(self, masking: Masking, source: Source, mask_key: int) -> None:
        self.masking, self.vocab, self.key = masking, source.vocab, mask_key

    def __call__(
        self,
        tokens_BL: Tensor,
        row_ids_B: Tensor,
        epochs_B: Tensor | None,
        attention_mask_BL: Tensor | None,
        progress: float,
    ) -> MLMBatch:
        return self.masking(
            tokens_BL,
            row_ids_B,
            vocab=self.vocab,
            key=self.key,
            epochs_B=epochs_B,
            attention_mask_BL=attention_mask_BL,
            progress=progress,
        )


def _masked(
    rows: Rows | EndlessRows,
    row_ids_B: Tensor,
    mask: Callable[..., MLMBatch],
    epochs_B: Tensor | None = None,
    progress: float = 1.0,
) -> MLMBatch:
    read = rows[row_ids_B.clamp(min=0)]  # a PADDING_ROW has the tokens of row 0, and no labels
    tokens_BL, attention_mask_BL = read if isinstance(read, tuple) else (read, None)
    return mask(tokens_BL, row_ids_B, epochs_B, attention_mask_BL, progress)


def _loader(batches: Dataset[MLMBatch], sampler: BatchRange, num_workers: int) -> DataLoader[MLMBatch]:
    return DataLoader(
        batches,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_identity,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach the workers too, and the main process still wants the batches of its step."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if signum := getattr(signal, name, None):
            signal.signal(signum, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    return batch

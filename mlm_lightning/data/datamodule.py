"""Lightning's side of the data: a loader over the training batches, and one for each condition of an evaluation."""

import logging
import signal
from collections.abc import Sequence
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from mlm_lightning.data.batches import BatchRange, EvalBatches, Plan, TrainBatches
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.source import SPLITS, EndlessRows, Source, Split
from mlm_lightning.data.warmup import LengthSchedule
from mlm_lightning.errors import handle, refuse
from mlm_lightning.masking import Masking
from mlm_lightning.randomness import key
from mlm_lightning.tasks import MLM, Batch, Task

log = logging.getLogger(__name__)


class MLMDataModule(L.LightningDataModule):
    """Loaders over a source. `batch_size` is the number of rows of a micro-batch on one device.

    Val and test are evaluated under `conditions` (None: that of the training alone), each with a loader of its own and masks
    that are frozen: a function of (`eval_seed`, split, row, rate). `plan` is needed to train; a `length_schedule` cuts the rows
    of training alone. `task` says what is predicted (None: masked tokens).
    """

    def __init__(
        self,
        source: Source,
        masking: Masking,
        conditions: Sequence[Condition] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        eval_seed: int = 0,
        num_workers: int = 0,
        plan: Plan | None = None,
        length_schedule: LengthSchedule | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.source, self.masking, self.task = source, masking, task or MLM()
        self.conditions = [Condition.training(source, masking)] if conditions is None else list(conditions)
        self.batch_size, self.num_workers = batch_size, num_workers
        self.seed, self.eval_seed, self.plan = seed, eval_seed, plan
        self.length_schedule = length_schedule
        refuse(length_schedule.errors(source.seq_len) if length_schedule else [])

    def train_batches(self, rank: int = 0, world_size: int = 1) -> TrainBatches:
        make = self.task.maker(self.source, "train", self.masking, key(self.seed, SPLITS.index("train")))
        plan = self.plan or Plan(total_steps=1)
        length = None
        if self.length_schedule is not None:
            length = partial(self.length_schedule.at, total_steps=plan.total_steps, seq_len=self.source.seq_len)
        return TrainBatches(self.source.rows("train"), make, self.batch_size, self.seed, rank, world_size, plan, length)

    def growing(self, step: int) -> dict[str, float]:
        """What grows in the course of the run, at optimizer step `step` (the first is 0), by the names of their metrics."""
        assert self.trainer is not None
        assert self.plan is not None
        found: dict[str, float] = {}
        if self.length_schedule is not None:
            found["train/seq_len"] = self.length_schedule.at(step, self.plan.total_steps, self.source.seq_len)
        if self.plan.batch_sizes is not None:
            ways = self.trainer.world_size * self.plan.accumulate_grad_batches
            found["train/rows_per_step"] = ways * self.plan.batch_sizes.at(step)
        return found

    def eval_batches(self, split: Split, condition: Condition, rank: int = 0, world_size: int = 1) -> EvalBatches:
        rows = condition.source.rows(split)
        make = self.task.maker(condition.source, split, condition.masking, key(self.eval_seed, SPLITS.index(split)))
        assert not isinstance(rows, EndlessRows)
        return EvalBatches(rows, make, self.batch_size, rank, world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        assert self.plan is not None
        start = self.trainer.global_step * self.plan.accumulate_grad_batches
        batches = self.train_batches(self.trainer.global_rank, self.trainer.world_size)
        sampler = BatchRange(start, self.plan.total_steps * self.plan.accumulate_grad_batches)
        if self.source.endless and self.num_workers > 1:
            why = "each worker reads and tokenises the whole stream, for the same rows; 1 is enough"
            log.warning("data.num_workers=%d: %s", self.num_workers, why)
        return _loader(batches, sampler, self.num_workers)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self._eval_dataloaders("val")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self._eval_dataloaders("test")

    def _eval_dataloaders(self, split: Split) -> list[DataLoader[Batch]]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = [self.eval_batches(split, condition, rank, world_size) for condition in self.conditions]
        # no workers: a split is read once between training steps, and starting workers would cost more than they save
        return [_loader(each, BatchRange(0, len(each)), num_workers=0) for each in batches]


def _loader(batches: Dataset[Batch], sampler: BatchRange, num_workers: int) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's signals reach the workers too, and the main process still wants the batches of its step."""
    handle(signal.SIG_IGN)

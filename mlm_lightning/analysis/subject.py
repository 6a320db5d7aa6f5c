"""Whom an analysis looks into: a trained model, the rows of its run, and the masks of its evaluation.

Subject ─ batches("val", 1024) ─►  masked as in evaluation: frozen masks
        └ unmasked(batch)      ─►  the same rows, whole
        └ run(batch)           ─►  one forward pass at all positions, which hooks and listeners watch
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.data.batches import EvalBatches
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.source import SPLITS, EndlessRows, Rows, Source, Split
from mlm_lightning.errors import NO_VALUE, ConfigError, one_line
from mlm_lightning.randomness import key
from mlm_lightning.tasks import MLM


@dataclass(frozen=True)
class Subject:
    """`model` is in evaluation mode; `condition` the run's own; `num_rows` of a split are looked at, at most."""

    model: nn.Module
    condition: Condition
    eval_seed: int = 0
    batch_size: int = 64
    num_rows: int = 1024
    folder: Path = Path()
    step: int = 0

    @property
    def source(self) -> Source:
        return self.condition.source

    def batches(self, split: Split, count: int | None = None) -> Iterator[MLMBatch]:
        """The first rows of a split, as many as there are of `count` (None: `num_rows`)."""
        mask = MLM().maker(self.source, split, self.condition.masking, key(self.eval_seed, SPLITS.index(split)))
        rows = FirstRows(self.source.rows(split), self.num_rows if count is None else count)
        batches = EvalBatches(rows, mask, self.batch_size)
        for index in range(len(batches)):
            batch = batches[index]
            assert isinstance(batch, MLMBatch)
            yield batch

    def run(self, batch: MLMBatch) -> Tensor:
        """The model's output, at all positions."""
        hidden = () if batch.hidden_BL is None else (batch.hidden_BL,)
        with torch.inference_mode():
            return self.model(batch.input_ids_BL, batch.attention_mask_BL, None, *hidden)

    def check_readable(self) -> None:
        """Raises ConfigError where the model can't read the rows."""
        try:
            self.run(next(iter(self.batches("val", 1))))
        except (ValueError, IndexError, RuntimeError) as error:
            problem = f"the run's model can't read them ({one_line(error)})"
            raise ConfigError("data", NO_VALUE, problem, "give a run whose data is as it was") from error


class FirstRows:
    """No more than `count` rows of a split."""

    def __init__(self, rows: Rows | EndlessRows, count: int) -> None:
        self._rows, self._size = rows, count if isinstance(rows, EndlessRows) else min(count, len(rows))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index_B: Tensor) -> Any:
        return self._rows[index_B]


def original_tokens(batch: MLMBatch) -> Tensor:
    """The rows before they were masked."""
    return torch.where(batch.labels_BL == IGNORE_INDEX, batch.input_ids_BL, batch.labels_BL)


def unmasked(batch: MLMBatch) -> MLMBatch:
    """The same rows with nothing hidden and nothing predicted."""
    labels_BL = torch.full_like(batch.labels_BL, IGNORE_INDEX)
    return batch._replace(input_ids_BL=original_tokens(batch), labels_BL=labels_BL, hidden_BL=None)

"""What is known about a batch beside the model: what oracles and counts say where something is to be predicted.

    batch, condition ─► asked before? ─┬─ yes ──────────────────────────────────────────┬─► answers, on the batch's device
                                       └─ no ─► oracle, further oracles, counts ─► kept ┘

The masks of an evaluation are frozen, so that each validation of a run asks the same: an answer is computed once.
"""

import copy
import hashlib
import pickle

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from mlm_lightning.batch import MLMBatch
from mlm_lightning.data.condition import Condition
from mlm_lightning.data.exact import exactly
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.tasks import Batch, Task

LIMIT = 256 * 2**20
"""Bytes of answers that a module keeps, of all its conditions together."""
_BESIDE = 1024
"""Bytes that a tensor takes beside its values, about: many small answers need memory, too."""

Answers = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The probabilities, BKV, by the names of the oracles (`""`: the condition's own), and what counts give, BK by its names."""


class FrozenAnswers:
    """The answers that evaluations of `task` ask for, kept on the CPU as they were computed, up to `LIMIT` bytes; those that
    there is no room for are computed each time. An answer is known by its condition and the content of the whole batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # by conditions, not their ids: the id of one that is gone may come again
        self._kept: dict[tuple[Condition, bytes], Answers] = {}
        self._size = 0

    def of(self, batch: Batch, condition: Condition) -> Answers:
        """Those of `answers`, the probabilities on the batch's device. Raises as it does, and keeps nothing then."""
        if condition.oracle is None and condition.ngrams is None and not condition.further_oracles:
            return {}, {}  # without waiting for an accelerator
        device = batch.input_ids_BL.device
        batch = move_data_to_device(batch, "cpu")
        arrays = [None if each is None else each.numpy() for each in batch]
        asked = condition, hashlib.blake2b(pickle.dumps(arrays)).digest()
        found = self._kept.get(asked)
        if found is None:
            found = answers(batch, condition, self.task)
            size = sum(value.untyped_storage().nbytes() + _BESIDE for part in found for value in part.values())
            if self._size + size <= LIMIT:
                self._size += size
                self._kept[asked] = copy.deepcopy(found)  # an oracle may use its memory again
        probs, counted = found
        # MPS has no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return {name: probs_BKV.to(dtype).to(device) for name, probs_BKV in probs.items()}, counted


@exactly()
def answers(batch: Batch, condition: Condition, task: Task) -> Answers:
    """What is known about a batch on the CPU. Raises ConfigError where the language of a further oracle can't have its rows."""
    counted = condition.ngrams.losses(batch) if condition.ngrams and isinstance(batch, MLMBatch) else {}
    probs = {}
    if condition.oracle is not None:
        probs[""] = task.oracle_probs(condition.oracle, batch)
    for name, oracle in condition.further_oracles.items():
        try:
            probs[name] = task.oracle_probs(oracle, batch)
        except ValueError as error:
            remedy = "give languages that can have all of this run's rows, such as those of higher filter levels"
            raise ConfigError(f"eval.oracles.{name}", NO_VALUE, f"cannot have a row of this run ({error})", remedy) from error
    return probs, counted

"""What is predicted: masked tokens, or a label of the whole row. A label is one prediction a row, so that losses, sums over
tokens, oracles and their standard errors are the same for both:

                 batch            logits of it       labels_BK           oracle
    MLM          MLMBatch         BKV                K a row             posterior of the hidden tokens
    Classify     LabelledBatch    B1C                1 a row             posterior of a latent variable, all tokens seen

Shapes beyond those of `batch`: C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Protocol

import torch
from annotated_types import Ge
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, PADDING_ROW, LabelledBatch, MLMBatch, Vocab
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.masking import Masking
from mlm_lightning.metrics import LabelSums, MetricSums
from mlm_lightning.values import check_fields

Batch = MLMBatch | LabelledBatch


class Labels(Protocol):
    """What a source offers to a task."""

    @property
    def vocab(self) -> Vocab: ...

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        """The names of the values of a label; ConfigError where the source has no such label."""
        ...

    def labels(self, split: Any, label: str, node: int) -> Callable[[Tensor], Tensor]:
        """Gives the labels of rows, `labels_B` for `index_B`: indices into `classes`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    unit: ClassVar[str]
    """Of which losses are means."""

    @abstractmethod
    def num_outputs(self, source: Labels) -> int:
        """How many classes a prediction has."""

    @abstractmethod
    def model_arguments(self, source: Labels) -> dict[str, Any]:
        """What the constructor of a model is given beside the data's sizes, as far as it takes it."""

    @abstractmethod
    def maker(self, source: Labels, split: Any, masking: Masking, key: int) -> Callable[..., Batch]:
        """Makes a batch of rows: `make(tokens_BL, row_ids_B, epochs_B=, attention_mask_BL=, progress=)`."""

    @abstractmethod
    def oracle_probs(self, oracle: Any, batch: Any) -> Tensor:
        """What an oracle says about a batch on the CPU where something is to be predicted, BKV: a function of the two."""

    @abstractmethod
    def sums(self, num_outputs: int, device: torch.device | str = "cpu", further_oracles: Iterable[str] = ()) -> MetricSums:
        """Empty sums of the metrics of a split."""


@dataclass(frozen=True, kw_only=True)
class MLM(Task):
    """Masked tokens."""

    unit: ClassVar[str] = "token"

    def num_outputs(self, source: Labels) -> int:
        return source.vocab.size

    def model_arguments(self, source: Labels) -> dict[str, Any]:
        return {}

    def maker(self, source: Labels, split: Any, masking: Masking, key: int) -> Callable[..., MLMBatch]:
        return partial(masking, vocab=source.vocab, key=key)

    def oracle_probs(self, oracle: Any, batch: MLMBatch) -> Tensor:
        """Exact where each predicted position is hidden, as frozen masks do."""
        observed_BL = batch.labels_BL == IGNORE_INDEX
        tokens_BL = torch.where(observed_BL, batch.input_ids_BL, batch.labels_BL)
        probs_BLV = oracle.posterior(tokens_BL, observed_BL)
        return probs_BLV.gather(1, batch.positions_BK.unsqueeze(-1).expand(-1, -1, probs_BLV.shape[-1]))

    def sums(self, num_outputs: int, device: torch.device | str = "cpu", further_oracles: Iterable[str] = ()) -> MetricSums:
        return MetricSums(device, further_oracles)


@dataclass(frozen=True, kw_only=True)
class Classify(Task):
    """A label a row: a latent variable of a language (`label`: root, level_2 …, of its nodes the `node`-th from the left), or a
    column of a text's documents (`label_column`), whose classes are those of the documents for training, or `classes`. Rows are
    whole: nothing is masked."""

    unit: ClassVar[str] = "row"

    label: str | None = None
    node: Annotated[int, Ge(0), "nodes count from 0"] = 0
    label_column: str | None = None
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "task")
        if (self.label is None) == (self.label_column is None):
            what = "is null, and so is task.label_column" if self.label is None else "and task.label_column are both set"
            remedy = "give task.label=root for a language, or task.label_column=COLUMN for text"
            raise ConfigError("task.label", NO_VALUE if self.label is None else self.label, what, remedy)
        if self.classes is not None and (self.label_column is None or len(set(self.classes)) < max(2, len(self.classes))):
            remedy = "give two names or more, each once, of values of task.label_column"
            raise ConfigError("task.classes", self.classes, "are not the classes of a column", remedy)

    @property
    def _name(self) -> str:
        return self.label or self.label_column or ""

    def class_names(self, source: Labels) -> tuple[str, ...]:
        return source.classes(self._name, self.node)

    def num_outputs(self, source: Labels) -> int:
        return len(self.class_names(source))

    def model_arguments(self, source: Labels) -> dict[str, Any]:
        names = self.class_names(source)
        return {"num_outputs": len(names), "num_classes": len(names), "class_names": list(names)}

    def maker(self, source: Labels, split: Any, masking: Masking, key: int) -> Callable[..., LabelledBatch]:
        return partial(_labelled, source.labels(split, self._name, self.node))

    def oracle_probs(self, oracle: Any, batch: LabelledBatch) -> Tensor:
        tokens_BL = batch.input_ids_BL
        probs_BNS = oracle.latents(tokens_BL, torch.ones_like(tokens_BL, dtype=torch.bool))[self.label]
        return probs_BNS[:, self.node : self.node + 1]

    def sums(self, num_outputs: int, device: torch.device | str = "cpu", further_oracles: Iterable[str] = ()) -> LabelSums:
        return LabelSums(device, further_oracles, num_outputs)


def _labelled(
    labels: Callable[[Tensor], Tensor],
    tokens_BL: Tensor,
    row_ids_B: Tensor,
    *,
    attention_mask_BL: Tensor | None = None,
    **_: Any,
) -> LabelledBatch:
    labels_B = labels(row_ids_B.clamp(min=0)).masked_fill(row_ids_B == PADDING_ROW, IGNORE_INDEX)
    return LabelledBatch(tokens_BL, labels_B, attention_mask_BL, row_ids_B)

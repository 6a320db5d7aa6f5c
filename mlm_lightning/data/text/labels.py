"""Labels of documents: in a cache a hash of each one's name, in a batch the index of its class.

column      "sport"  "world"  "sport"      meta.json  {"train": {"sport": 2, "world": 1}}
cache       f00d…    1234…    f00d…        classes    ("sport", "world")
labels      0        1        0
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.text.prepare.cache import TokenCache
from mlm_lightning.data.text.prepare.shards import MOST_LABELS, label_hash
from mlm_lightning.errors import ConfigError


def label_names(cache: TokenCache, given: Sequence[str] | None) -> tuple[str, ...]:
    """The classes: those that are given, else the labels for training, sorted, numbers by their values. Raises ConfigError
    where there are less than two or too many, or a split has others."""
    found: dict[str, dict[str, int]] = cache.meta["labels"]
    names = sorted(found["train"], key=lambda name: (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name))
    if given is None and not 2 <= len(names) <= MOST_LABELS:
        problem = f"its documents for training have {len(names):,} different labels"
        few = (
            "give documents of two classes or more"
            if len(names) < 2
            else f"there may be {MOST_LABELS:,}; is it the right column?"
        )
        raise ConfigError("task.label_column", cache.meta["request"]["label_column"], problem, few)
    classes = tuple(names if given is None else given)
    for split, counts in found.items():
        if others := [name for name in counts if name not in classes]:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            shown = ", ".join(map(repr, others[:3])) + more
            problem = f"documents of {split} have the label {shown}, which is no class"
            raise ConfigError(
                "task.classes", list(classes), problem, "name all labels in task.classes, or give other documents"
            )
    return classes


class LabelRows:
    """The labels of a split's rows, a document each."""

    def __init__(self, hash_N: np.ndarray, classes: Sequence[str]) -> None:
        hash_C = np.array([label_hash(name) for name in classes], hash_N.dtype)
        order_C = hash_C.argsort()
        self._label_N = torch.from_numpy(order_C[np.searchsorted(hash_C, hash_N, sorter=order_C)].astype(np.int64))

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return self._label_N[index_B]

"""Labels of documents: in a cache a hash of each one's name, in a batch the index of its class.

column      "sport"  "world"  "sport"      meta.json  {"train": {"sport": 2, "world": 1}}
cache       f00d…    1234…    f00d…        classes    ("sport", "world")
labels      0        1        0
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.text.prepare.cache import TokenCache
from mlm_lightning.data.text.prepare.shards import MOST_LABELS, label_hash, label_value
from mlm_lightning.errors import ConfigError


def label_names(cache: TokenCache, given: Sequence[str] | None) -> tuple[str, ...]:
    """The classes: those that are given, else the labels for training, sorted, numbers by their values, of equal ones the
    first. Raises ConfigError where there are less than two or too many, or a split has others."""
    found: dict[str, dict[str, int]] = cache.meta["labels"]
    names = sorted(found["train"], key=lambda name: (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name))
    firsts: dict[Any, str] = {}
    for name in names:
        firsts.setdefault(label_value(name), name)
    names = list(firsts.values())
    if given is None and not 2 <= len(names) <= MOST_LABELS:
        problem = f"its documents for training have {len(names):,} different labels"
        few = (
            "give documents of two classes or more"
            if len(names) < 2
            else f"there may be {MOST_LABELS:,}; is it the right column?"
        )
        raise ConfigError("task.label_column", cache.meta["request"]["label_column"], problem, few)
    classes = tuple(names if given is None else given)
    values = set(map(label_value, classes))
    for split, counts in found.items():
        if others := [name for name in counts if label_value(name) not in values]:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            shown = ", ".join(map(repr, others[:3])) + more
            problem = f"documents of {split} have the label {shown}, which is no class"
            raise ConfigError(
                "task.classes", list(classes), problem, "name all labels in task.classes, or give other documents"
            )
    return classes


def row_labels(hash_N: np.ndarray, names: Iterable[str], classes: Sequence[str]) -> Tensor:
    """The labels of a split's rows, a document each, whose names are `names`."""
    number = {label_value(name): i for i, name in enumerate(classes)}
    class_of_hash = {label_hash(name): number[label_value(name)] for name in names}
    hash_K, index_N = np.unique(hash_N, return_inverse=True)
    class_K = torch.tensor([class_of_hash[each] for each in hash_K.tolist()])
    return class_K[torch.from_numpy(index_N)]

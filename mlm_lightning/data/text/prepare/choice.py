"""Which documents are for training, validation and test: a choice that depends on their number, the sizes and the seed.

Equal documents are found by the hashes of all documents, a bucket of them at a time:

    train   0 1 2 3    e3b0 98fc e3b0 4ca4        documents 0 and 2 are equal, and so are 3 and the 5 of validation
    val     4 5        77aa 4ca4                  held out comes first: 5 is kept, and 3 is a copy
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.base import UNUSED
from mlm_lightning.data.text.prepare.shards import HASH_DTYPE
from mlm_lightning.errors import ConfigError

_BUCKET = 500_000
"""Hashes that are compared at once, about."""


Size = int | float | None
"""A number of documents, a share of them, or what is said where it is used."""


def choose_documents(
    num_documents: int, *, train_size: Size, val_size: Size, test_size: Size, seed: int, origin: str = "data.path"
) -> dict[Split, np.ndarray]:
    """Which documents are for training, validation and test, as `datasets`' `train_test_split(train_size, test_size=val_size,
    seed=seed)` chooses them; ours for the test come between the two.

        permutation(seed)   |── val ──|── test ──|── train ──|── unused ──|

    Null: none for val and test, the rest for train; in their own order if that is all of them.
    """
    num_val = _number(val_size, num_documents, math.ceil) or 0
    num_test = _number(test_size, num_documents, math.ceil) or 0
    num_train = _number(train_size, num_documents, math.floor)
    asked = num_val + num_test + max(num_train or 0, 1)
    if asked > num_documents or num_train == 0:
        sizes = {"data.train_size": train_size, "data.val_size": val_size, "data.test_size": test_size}
        given = [(key, size) for key, size in sizes.items() if size is not None]
        others = ", ".join(f"{key}={size}" for key, size in given[1:])
        raise ConfigError(
            *given[0],
            f"together {f'with {others} ' if others else ''}at least {max(asked, 1):,} document(s) with one for training at "
            f"the least, but {origin} has {num_documents:,}",
            "lower the sizes (0 sets none aside, a float is a share) or give more documents",
        )
    if num_train is None:
        num_train = num_documents - num_val - num_test
    if num_train == num_documents:
        return {"train": _all(num_documents)}
    parts = np.split(_permutation(num_documents, seed), np.cumsum([num_val, num_test, num_train]))
    chosen: dict[Split, np.ndarray] = {"train": parts[2], "val": parts[0], "test": parts[1]}
    return {split: numbers for split, numbers in chosen.items() if len(numbers)}


def choose_held_out(split: Split, size: Size, num_documents: int, seed: int) -> np.ndarray:
    """Which documents of files that are for this split alone."""
    number = _number(size, num_documents, math.ceil)
    if number is not None and number > num_documents:
        problem = f"more than the {num_documents:,} documents that there are"
        raise ConfigError(f"data.{split}_size", size, problem, "lower it (null: all)")
    return _all(num_documents) if number in (None, num_documents) else _permutation(num_documents, seed)[:number]


def _all(num_documents: int) -> np.ndarray:
    return np.arange(num_documents, dtype=np.uint32 if num_documents < 1 << 32 else np.int64)


def _permutation(num_documents: int, seed: int) -> np.ndarray:
    """`default_rng(seed).permutation(num_documents)`, in half the memory."""
    numbers = _all(num_documents)
    np.random.default_rng(seed).shuffle(numbers)
    return numbers


def _number(size: Size, num_documents: int, rounded: Callable[[float], int]) -> int | None:
    return rounded(size * num_documents) if isinstance(size, float) else size


@dataclass
class Hashes:
    """The hashes of the documents of some origins, in this order; `counts` says how many documents are in each shard, and
    `files` holds the hashes of each as ORIGIN-SHARD.hashes."""

    files: Path
    origins: Sequence[Split]
    counts: dict[Split, list[int]]

    def __post_init__(self) -> None:
        self._num_documents = sum(map(sum, self.counts.values()))

    def is_first(self) -> dict[Split, np.ndarray]:
        """For each document whether it has no equal before it, those held out coming before those for training."""
        is_first_N = np.ones(self._num_documents, dtype=bool)
        for number_M, group_M in self._equal():
            is_first_N[number_M[1:][np.diff(group_M) == 0]] = False
        starts = np.cumsum([sum(self.counts[origin]) for origin in self.origins])[:-1]
        return dict(zip(self.origins, np.split(is_first_N, starts), strict=True))

    def num_shared(self, numbers: dict[Split, dict[Split, np.ndarray]]) -> int:
        """How many different documents are both held out and for training; `numbers` are those chosen, by origin and split."""
        split_N = np.full(self._num_documents, UNUSED, dtype=np.uint8)
        start = 0
        for origin in self.origins:
            for split, chosen in numbers[origin].items():
                split_N[start + chosen] = SPLITS.index(split)
            start += sum(self.counts[origin])
        train, shared = SPLITS.index("train"), 0
        for number_M, group_M in self._equal():
            split_M = split_N[number_M]
            trained, held_out = group_M[split_M == train], group_M[(split_M != train) & (split_M != UNUSED)]
            shared += len(np.intersect1d(trained, held_out))
        return shared

    def _equal(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of documents, over all origins, and for each the group of its equals, bucket by bucket. Groups follow one
        another, and within one the numbers ascend."""
        num_buckets = -(-self._num_documents // _BUCKET)
        for bucket in range(num_buckets):
            numbers, hashes, start = [], [], 0
            for file in (f"{origin}-{shard:06}.hashes" for origin in self.origins for shard in range(len(self.counts[origin]))):
                hash_N = np.fromfile(self.files / file, HASH_DTYPE)
                in_bucket = (hash_N["low"] % num_buckets == bucket) & (hash_N["low"] | hash_N["high"] != 0)
                numbers.append(start + np.flatnonzero(in_bucket))
                hashes.append(hash_N[in_bucket])
                start += len(hash_N)
            number_M, hash_M = np.concatenate(numbers), np.concatenate(hashes)
            order_M = np.lexsort((number_M, hash_M["low"], hash_M["high"]))
            yield number_M[order_M], np.cumsum(np.append(True, hash_M[order_M][1:] != hash_M[order_M][:-1])[: len(order_M)])

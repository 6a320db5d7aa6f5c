"""Equal documents, found by the hashes of all documents, a bucket of them at a time.

train   0 1 2 3    e3b0 98fc e3b0 4ca4        documents 0 and 2 are equal, and so are 3 and the 5 of validation
val     4 5        77aa 4ca4                  held out comes first: 5 is kept, and 3 is a copy
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.base import UNUSED
from mlm_lightning.data.text.prepare.shards import HASH_DTYPE

_BUCKET = 500_000
"""Hashes that are compared at once, about."""


class Hashes:
    """The hashes of the documents of some origins, in this order; `counts` says how many documents are in each shard, and
    `files` holds the hashes of each as ORIGIN-SHARD.hashes."""

    def __init__(self, files: Path, origins: Sequence[Split], counts: dict[Split, list[int]]) -> None:
        self.files, self.origins, self.counts = files, origins, counts
        self._num_documents = sum(map(sum, counts.values()))

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
            found, start = [], 0
            for origin in self.origins:
                for shard, num_documents in enumerate(self.counts[origin]):
                    hash_N = np.fromfile(self.files / f"{origin}-{shard:06}.hashes", HASH_DTYPE)
                    in_bucket = (hash_N["low"] % num_buckets == bucket) & (hash_N["low"] | hash_N["high"] != 0)
                    chosen = np.flatnonzero(in_bucket)
                    found.append((start + chosen, hash_N[chosen]))
                    start += num_documents
            number_M, hash_M = np.concatenate([n for n, _ in found]), np.concatenate([h for _, h in found])
            order_M = np.lexsort((number_M, hash_M["low"], hash_M["high"]))
            yield number_M[order_M], np.cumsum(np.append(True, hash_M[order_M][1:] != hash_M[order_M][:-1])[: len(order_M)])

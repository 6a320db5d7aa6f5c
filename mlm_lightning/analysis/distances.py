"""How far a key is from a query: in the tree whose leaves they are, or in places.

tree of depth 2                 distance of the leaves          their lowest common ancestor
       root                     0 1 2 2                         distance 0: the leaf itself
     ┌──┴──┐                    1 0 2 2                         distance 1: its parent, at level 1 = depth - 1
    ┌┴┐   ┌┴┐                   2 2 0 1                         distance 2: the root, at level 0 = depth - 2
    0 1   2 3                   2 2 1 0
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.source import Source


@dataclass(frozen=True)
class Distances:
    """`apart_LL` is the distance of each query (first) and key, `class_LL` its number among the `labels` of an axis, `name`
    that of the axis. `related` is the largest number at which a query and a key know of each other by more than the root (None:
    all are alike)."""

    apart_LL: Tensor
    class_LL: Tensor
    labels: tuple[str, ...]
    name: str
    related: int | None = None

    @classmethod
    def of(cls, source: Source, length: int) -> "Distances":
        if not isinstance(source, TreeSource):
            place_L = torch.arange(length)
            apart_LL = (place_L[:, None] - place_L).abs()
            return cls(apart_LL, by_powers(apart_LL), _ranges(length), "distance in places")
        depth, k = source.depth, source.filter_level
        above = ["itself", *(f"level {depth - distance}" for distance in range(1, depth)), "root"]
        labels = tuple(f"{distance}\n{name}" for distance, name in enumerate(above[: depth + 1]))
        return cls(
            tree(depth), tree(depth), labels, "tree distance, and the lowest common ancestor", depth - k if k > 0 else None
        )


def tree(depth: int) -> Tensor:
    """How many levels above two leaves their lowest common ancestor is, (2^depth, 2^depth)."""
    leaf_L = torch.arange(2**depth)
    apart_LL = leaf_L[:, None] ^ leaf_L  # its highest bit says where the two paths from the root part
    return torch.stack([(apart_LL >> level) > 0 for level in range(depth)]).sum(0)


def by_powers(apart_LL: Tensor) -> Tensor:
    """Numbers distances by powers of two: 0, 1, 2, 3-4, 5-8 …"""
    return torch.bucketize(apart_LL, torch.tensor(_ends(len(apart_LL))))


def _ends(length: int) -> list[int]:
    powers = (length - 2).bit_length() + 1 if length > 1 else 0
    return [0, *(2**power for power in range(powers))]


def _ranges(length: int) -> tuple[str, ...]:
    ends = _ends(length)
    pairs = [(0, 0), *((low + 1, min(high, length - 1)) for low, high in itertools.pairwise(ends))]
    return tuple(str(high) if low == high else f"{low}-{high}" for low, high in pairs)

"""Counter-based random numbers: every number is a pure function of (seed, stream, epoch, row, position).

Nothing is drawn in an order, so nothing depends on one: batch size, workers, ranks, or where a run was resumed.

    seed ─ stream ─ epoch ─ row          position
      └──────┴───────┴───────┘               │
         key of the row (hashed)  ─►  mix64(key + (position + 1) · γ)  ─►  u in [0, 1)

Each row has its own SplitMix64 sequence, with the hashed key as its initial state; `position` is the place in the sequence.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (γ and the constants of mix64).
"""

from enum import IntEnum

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UINT64 = (1 << 64) - 1


class Stream(IntEnum):
    """What a random number is for. Numbers of different streams are independent; a stream's value never changes, since
    results depend on it."""

    ORDER = 0
    MASK = 1
    REPLACEMENT = 2
    ROWS = 3
    GRAMMAR = 4
    INITIALISATION = 5
    DROPOUT = 6
    SPLIT = 7


def key(*words: int) -> int:
    """Hashes integers (seed, stream, …) to one 64-bit key in -2^63 … 2^63 - 1; their order matters."""
    state = 0
    for word in words:
        state = _mix64_int((state + _GAMMA) ^ _mix64_int(int(word) & _UINT64))
    return _to_signed(state)


def row_keys(seed_key: int, *ids_B: Tensor) -> Tensor:
    """Hashes a key with one or more integers a row, one after the other: the rows' keys, int64 of shape (B,)."""
    keys_B = torch.tensor(seed_key)
    for id_B in ids_B:
        keys_B = _mix64((keys_B + _to_signed(_GAMMA)) ^ _mix64(id_B.to(torch.int64)))
    return keys_B


def random_bits(keys: Tensor, positions: Tensor) -> Tensor:
    """64 random bits (int64) at the given positions of the sequences that start at `keys`; the two shapes broadcast."""
    return _mix64(keys + (positions + 1) * _to_signed(_GAMMA))


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 with 53 random bits; the shapes of `keys` and `positions` broadcast."""
    return _shift_right(random_bits(keys, positions), 11).to(torch.float64).mul_(2.0**-53)


def generator(*words: int) -> torch.Generator:
    """A CPU generator seeded with the hash of `words`, for torch's own distributions (`randperm`, `randn` …)."""
    return torch.Generator().manual_seed(key(*words))


def seed_torch(*words: int) -> None:
    """Seeds torch's global generators with the hash of `words`: before layers of a library draw from them (dropout,
    initialisation), never anywhere else."""
    torch.manual_seed(key(*words))


def _to_signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix64_int(z: int) -> int:
    z &= _UINT64
    z = ((z ^ (z >> 30)) * _MIX_1) & _UINT64
    z = ((z ^ (z >> 27)) * _MIX_2) & _UINT64
    return z ^ (z >> 31)


def _mix64(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _to_signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _to_signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # int64 >> copies the sign bit downwards; an unsigned shift is meant
    return (z >> bits) & ((1 << (64 - bits)) - 1)

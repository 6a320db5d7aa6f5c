"""Counter-based random numbers: every number is a pure function of (seed, stream, epoch, row, position).

Nothing is drawn in an order, so nothing depends on one: batch size, workers, ranks, or where a run was resumed.

    seed ─ stream ─ epoch ─ row          position
      └──────┴───────┴───────┘               │
         key of the row (hashed)  ─►  mix64(key + (position + 1) · γ)  ─►  u in [0, 1)

Each row has its own SplitMix64 sequence, with the hashed key as its initial state; `position` is the place in the sequence.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (γ and the constants of mix64).
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_UINT64 = (1 << 64) - 1
# numpy's own scalars, made once: half of the time of a short array is what surrounds the arithmetic
_GAMMA_NUMPY, _MIX_1_NUMPY, _MIX_2_NUMPY = np.uint64(_GAMMA), np.uint64(_MIX_1), np.uint64(_MIX_2)
_1, _27, _30, _31 = np.uint64(1), np.uint64(27), np.uint64(30), np.uint64(31)


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
    return state - (1 << 64) if state >= 1 << 63 else state


def row_keys(seed_key: int, *ids_B: Tensor) -> Tensor:
    """Hashes a key with one or more integers a row, one after the other: the rows' keys, int64 of shape (B,)."""
    keys_B = row_keys_numpy(np.array(seed_key).view(np.uint64), *map(_to_numpy, ids_B))
    return _to_torch(keys_B, *ids_B)


def random_bits(keys: Tensor, positions: Tensor) -> Tensor:
    """64 random bits (int64) at the given positions of the sequences that start at `keys`; the two shapes broadcast."""
    return _to_torch(random_bits_numpy(_to_numpy(keys), _to_numpy(positions)), keys, positions)


def uniform(keys: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64 with 53 random bits; the shapes of `keys` and `positions` broadcast."""
    bits = random_bits_numpy(_to_numpy(keys), _to_numpy(positions))
    bits >>= np.uint64(11)
    u = bits.view(np.int64).astype(np.float64)
    u *= 2.0**-53
    return torch.from_numpy(u).to(_device(keys, positions))


def row_keys_numpy(seed_keys: np.ndarray, *ids_B: np.ndarray) -> np.ndarray:
    """`row_keys` on numpy's uint64; several keys at once, of shape (S, 1), give (S, B)."""
    keys = np.array(seed_keys)
    for id_B in ids_B:
        keys += _GAMMA_NUMPY
        keys = np.asarray(keys ^ _mix64_(np.array(id_B)))
        _mix64_(keys)
    return keys


def random_bits_numpy(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`random_bits` on numpy's uint64."""
    offsets = np.array(positions)
    offsets += _1
    offsets *= _GAMMA_NUMPY
    return random_bits_at(keys, offsets)


@lru_cache(maxsize=64)
def position_offsets(length: int) -> np.ndarray:
    """Where the positions 0 … length - 1 lie in a row's sequence: for `random_bits_at`, if asked for again and again."""
    return (np.arange(length, dtype=np.uint64) + _1) * _GAMMA_NUMPY


def random_bits_at(keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`random_bits_numpy` at the positions that have these offsets."""
    return _mix64_(np.asarray(keys + offsets))


def generator(*words: int) -> torch.Generator:
    """A CPU generator seeded with the hash of `words`, for torch's own distributions (`randperm`, `randn` …)."""
    return torch.Generator().manual_seed(key(*words))


def dirichlet(concentration: float, shape: tuple[int, ...], *words: int) -> Tensor:
    """Distributions over the last dimension, each drawn from a symmetric Dirichlet, by the hash of `words`; float64."""
    source = np.random.Generator(np.random.PCG64(key(*words) & _UINT64))
    return torch.from_numpy(source.dirichlet(np.full(shape[-1], concentration), shape[:-1]))


def seed_torch(*words: int) -> None:
    """Seeds torch's global generators with the hash of `words`: before layers of a library draw from them (dropout,
    initialisation), never anywhere else."""
    if torch.accelerator.is_available():
        torch.manual_seed(key(*words))
    else:  # the same, but for a note of the call, with its stack, for each accelerator that may yet come: it takes milliseconds
        torch.default_generator.manual_seed(key(*words))


def _mix64_int(z: int) -> int:
    z &= _UINT64
    z = ((z ^ (z >> 30)) * _MIX_1) & _UINT64
    z = ((z ^ (z >> 27)) * _MIX_2) & _UINT64
    return z ^ (z >> 31)


def _mix64_(z: np.ndarray) -> np.ndarray:
    # numpy rather than torch: it shifts unsigned, works in place, and takes a third of the time
    shifted = np.asarray(z >> _30)
    z ^= shifted
    z *= _MIX_1_NUMPY
    z ^= np.right_shift(z, _27, out=shifted)
    z *= _MIX_2_NUMPY
    z ^= np.right_shift(z, _31, out=shifted)
    return z


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.int64).numpy().view(np.uint64)


def _to_torch(values: np.ndarray, *like: Tensor) -> Tensor:
    return torch.from_numpy(values.view(np.int64)).to(_device(*like))


def _device(*tensors: Tensor) -> torch.device:
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))

"""Which documents are for training, validation and test: a choice that depends on their number, the sizes and the seed."""

import math
from collections.abc import Callable

import numpy as np

from mlm_lightning.data.splits import Split
from mlm_lightning.errors import ConfigError


def choose_documents(
    num_documents: int,
    *,
    train_size: int | float | None,
    val_size: int | float | None,
    test_size: int | float | None,
    seed: int,
    origin: str = "data.path",
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
        sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
        given = [(f"data.{name}", size) for name, size in sizes.items() if size is not None]
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
    permutation = _permutation(num_documents, seed)
    val, test, train, _ = np.split(permutation, np.cumsum([num_val, num_test, num_train]))
    chosen: dict[Split, np.ndarray] = {"train": train, "val": val, "test": test}
    return {split: numbers for split, numbers in chosen.items() if len(numbers)}


def choose_held_out(split: Split, size: int | float | None, num_documents: int, seed: int) -> np.ndarray:
    """Which documents of files that are for this split alone."""
    number = _number(size, num_documents, math.ceil)
    if number is None or number == num_documents:
        return _all(num_documents)
    if number > num_documents:
        problem = f"more than the {num_documents:,} documents that there are"
        raise ConfigError(f"data.{split}_size", size, problem, "lower it (null: all)")
    return _permutation(num_documents, seed)[:number]


def _permutation(num_documents: int, seed: int) -> np.ndarray:
    """`default_rng(seed).permutation(num_documents)`, in half the memory."""
    numbers = _all(num_documents)
    np.random.default_rng(seed).shuffle(numbers)
    return numbers


def _all(num_documents: int) -> np.ndarray:
    return np.arange(num_documents, dtype=np.uint32 if num_documents < 1 << 32 else np.int64)


def _number(size: int | float | None, num_documents: int, rounded: Callable[[float], int]) -> int | None:
    return rounded(size * num_documents) if isinstance(size, float) else size

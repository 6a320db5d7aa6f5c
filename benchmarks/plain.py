"""A language row by row in plain NumPy: what the other side of `languages.py` is made of."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Plain(NamedTuple):
    """A row of a language, and the posterior of one, `probs_LQ` (right wherever a token is hidden), by loops in NumPy."""

    row: Callable[[np.random.Generator], object]
    posterior: Callable[[np.ndarray, np.ndarray], np.ndarray]


def drawn(rng: np.random.Generator, weights: np.ndarray) -> int:
    """A place, in proportion to the weights."""
    return drawn_by(rng, weights.cumsum())


def drawn_by(rng: np.random.Generator, sums: np.ndarray) -> int:
    """The same, by the sums of the weights up to each place."""
    return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(sums) - 1)

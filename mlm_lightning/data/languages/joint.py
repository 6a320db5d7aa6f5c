"""All that a row can be, unfolded token by token: what oracles are compared with.

    first        (0.5, 0, A)   (0.5, 1, B)                         (probability, token, state)
    following        ├─ (0.9, 0, A)  ├─ (0.2, 0, A)     …
                     └─ (0.1, 1, B)  └─ (0.8, 1, B)     …

Plain Python on purpose: it shares nothing with the tables and the passes of the oracles.
"""

from collections.abc import Callable, Iterable, Sequence
from math import log
from typing import Any

import torch

from mlm_lightning.data.source import MAX_JOINT, Joint

Step = tuple[float, int, Any]
Path = tuple[float, list[int], list[Any]]
"""The weight of a row, its tokens, and the states that it went through."""


def unfold(seq_len: int, first: Iterable[Step], following: Callable[[Any, int], Iterable[Step]]) -> list[Path]:
    """All rows of `seq_len` tokens; `following(state, position)` gives what may stand at a position. ValueError where there are
    more sequences than `MAX_JOINT`."""
    paths: list[Path] = [(weight, [token], [state]) for weight, token, state in first if weight > 0]
    for position in range(1, seq_len):
        paths = [
            (weight * more, [*tokens, token], [*states, state])
            for weight, tokens, states in paths
            for more, token, state in following(states[-1], position)
            if more > 0
        ]
        check_size(len({tuple(tokens) for _, tokens, _ in paths}))
    return paths


def check_size(num_sequences: int) -> None:
    if num_sequences > MAX_JOINT:
        raise ValueError(f"joint() has more than {MAX_JOINT} sequences; choose a smaller language")


def as_joint(paths: Sequence[Path], latents: dict[str, Callable[[list[Any]], list[int]]]) -> Joint:
    """The weights, which need not sum to 1, as log-probabilities; `latents` give the values that a path's states tell."""
    paths = [path for path in paths if path[0] > 0]
    total = sum(weight for weight, _, _ in paths)
    values = {name: torch.tensor([read(states) for _, _, states in paths]) for name, read in latents.items()}
    log_prob_S = torch.tensor([log(weight / total) for weight, _, _ in paths], dtype=torch.float64)
    return torch.tensor([tokens for _, tokens, _ in paths]), values, log_prob_S

"""Parse trees from the root down, span by span: each chooses where it is split, and the nonterminals of both parts.

length 4        S                       number of a span's random number: start · L + length - 1
length 3        .     VP                symbol_LLB[length - 1, start, row], -1 where a tree has no such span
…               NP . V . NP .
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mlm_lightning.data.languages.oracle import cdf
from mlm_lightning.randomness import uniform

Choose = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""For M spans of a length, by their rows, starts and nonterminals and a random number each: the length of the left part, and
the nonterminals of both parts."""
_BELOW_1 = 1 - 2**-40


def grow(keys_B: Tensor, seq_len: int, device: torch.device, choose_split: Choose) -> Tensor:
    """`symbol_LLB`, the nonterminal of each span (int16)."""
    symbol_LLB = torch.full((seq_len, seq_len, len(keys_B)), -1, dtype=torch.int16, device=device)
    symbol_LLB[seq_len - 1, 0] = 0
    for length in range(seq_len, 1, -1):
        start_M, row_M = (symbol_LLB[length - 1, : seq_len - length + 1] >= 0).nonzero(as_tuple=True)
        u_M = uniform(keys_B[row_M.to(keys_B.device)], start_M * seq_len + length - 1).to(device)
        symbol_M = symbol_LLB[length - 1, start_M, row_M].long()
        split_M, left_M, right_M = choose_split(length, row_M, start_M, symbol_M, u_M)
        symbol_LLB[split_M - 1, start_M, row_M] = left_M.short()
        symbol_LLB[length - split_M - 1, start_M + split_M, row_M] = right_M.short()
    return symbol_LLB


class Choices:
    """Draws one of C outcomes from each of R distributions: a search among the sums of their weights, r + sum."""

    def __init__(self, weight_RC: Tensor) -> None:
        num_rows, self._num_outcomes = weight_RC.shape
        sums_RC = cdf(weight_RC).nan_to_num(1.0)  # rows without any weight are never asked for
        self._sums = (sums_RC + torch.arange(num_rows)[:, None]).flatten()

    def draw(self, row: Tensor, u: Tensor) -> Tensor:
        place = (row + u.clamp(max=_BELOW_1)).contiguous()
        return torch.searchsorted(self._sums, place, right=True) - row * self._num_outcomes

"""Oracles whose posterior is a table: some distributions, and for each token which one it has. Mostly, writing takes longest.

tokens     2  .  1  0  .        "." is hidden
index      2  3  1  0  5        below q = 3, all on a symbol; from there on, one of T distributions of the block's own
"""

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.languages.oracle import LanguageOracle, pick_rows


class HiddenOracle(LanguageOracle):
    """A subclass has `_hidden` instead of `_posterior`, and its own `_log_likelihood` and `_sample`."""

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`index_BL` (int32): an observed token, and q + t where a token is hidden and has distribution t; `probs_TV` of those,
        0 at `[MASK]`; and `possible_B`."""
        raise NotImplementedError

    def _write(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        index_BL, probs_TV, possible_B = self._hidden(said_BL)
        pick_rows(torch.cat((self._one_hot_VV[:-1], probs_TV)), index_BL, probs_BLV)
        return possible_B


def each_its_own(said_BL: Tensor, cell_N: Tensor, probs_NQ: Tensor) -> tuple[Tensor, Tensor]:
    """`index_BL` and `probs_NV` where each hidden token, at `cell_N` of the block, has a distribution that no other has."""
    index_BL, q = said_BL.int(), probs_NQ.shape[1]
    index_BL.view(-1)[cell_N] = torch.arange(q, q + len(cell_N), dtype=torch.int32, device=cell_N.device)
    return index_BL, torch.nn.functional.pad(probs_NQ, (0, 1))


def nonzero_flat(mask: Tensor) -> Tensor:
    """The places where it is True, counted through all dimensions."""
    if mask.device.type == "cpu":  # a fifth of the time of torch's
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]

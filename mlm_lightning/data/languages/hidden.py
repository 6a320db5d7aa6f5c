"""Oracles that work out the posterior of hidden tokens alone: mostly they are few.

tokens     2  .  1  0  .        "." is hidden
cells         0        1        N of them in a block, each with its row and its place
"""

from torch import Tensor

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle


class HiddenOracle(LanguageOracle):
    """A subclass has `_hidden` instead of `_posterior`, and its own `_log_likelihood` and `_sample`."""

    def _hidden(self, said_BL: Tensor, row_N: Tensor, place_N: Tensor) -> Answer:
        """`probs_NV` of the hidden tokens, 0 at `[MASK]`; and `possible_B`."""
        raise NotImplementedError

    def _fill(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        row_N, place_N = (said_BL == self.num_symbols).nonzero(as_tuple=True)
        probs_NV, possible_B = self._hidden(said_BL, row_N, place_N)
        probs_BLV.view(-1, self.num_symbols + 1).index_copy_(0, row_N * self.seq_len + place_N, probs_NV)
        return possible_B

"""Potts spins on a ring (Ising: two symbols): neighbours like to be equal.

    tokens    0  0  0  2  2  1  …  0 ┐        P(x)  ∝  exp(coupling · #{t: x_t = x_t+1} + field · #{t: x_t = 0})
              └──────────────────────┘        neighbours in a ring, so that no position is special

A gap depends on its nearest visible neighbours on both sides; how far they reach grows with `coupling`: near 0 there is nothing
to see, far above it whole rows are of one symbol. Negative, neighbours like to differ. It is Potts' coupling, per pair of equal
neighbours: of spins ±1 with energy -J Σ s_t · s_t+1 at the inverse temperature β, it is 2βJ.

Source: Ising, "Beitrag zur Theorie des Ferromagnetismus", Zeitschrift für Physik 1925; Wu, "The Potts model", Reviews of Modern
Physics 1982 (transfer matrix).
"""

from functools import cached_property
from math import hypot
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.chain_source import MAX_STATES, ChainLanguage
from mlm_lightning.data.languages.stationary import entropy_rate
from mlm_lightning.data.languages.synthetic import Errors, NumSymbols, SeqLen, language

Energy = Annotated[float, Interval(ge=-50, le=50), "it is an energy, in units of the temperature"]


@language
class IsingSource(ChainLanguage):
    """Rows of a ring of `seq_len` spins."""

    num_symbols: NumSymbols = 2
    coupling: Energy = 1.0
    field: Energy = 0.0
    seq_len: SeqLen = 64

    def errors(self) -> Errors:
        remedy = f"use data.num_symbols={int(MAX_STATES**0.5)} or fewer"
        return self.too_large(self.num_symbols**2, "num_symbols", "num_symbols²", remedy)

    @cached_property
    def _transfer_QQ(self) -> Tensor:
        """The weight of a pair of neighbours, with half of the field on each side."""
        q = self.num_symbols
        field_Q = self.field * one_hot(torch.tensor(0), q).double()
        energy_QQ = self.coupling * torch.eye(q, dtype=torch.float64) + (field_Q[:, None] + field_Q) / 2
        return (energy_QQ - energy_QQ.max()).exp()

    @cached_property
    def chain(self) -> Chain:
        """One for each first spin, so that the last can be tied to it; states are spins."""
        q = self.num_symbols
        eye_QQ = torch.eye(q, dtype=torch.float64)
        return Chain(eye_QQ, self._transfer_QQ.expand(q, q, q), eye_QQ, self.seq_len, final_MS=self._transfer_QQ.T)

    def entropy_rate(self) -> float:
        """That of an endless ring: a Markov chain whose steps are those of the transfer matrix, weighted by its first
        eigenvector. All symbols but 0 have the same share of that, which leaves two unknowns:

            a v + b (q - 1) w  =  λ v            a, b: 0 beside 0, and beside another symbol
            b v + c w          =  λ w            c: another symbol beside all but 0
        """
        q, weight_QQ = self.num_symbols, self._transfer_QQ
        a, b, c = float(weight_QQ[0, 0]), float(weight_QQ[0, 1]), float(weight_QQ[1, 1:].sum())
        root = hypot(a - c, 2 * b * (q - 1) ** 0.5)
        largest = (a + c + root) / 2
        # (λ - a)(λ - c) = b² (q - 1): the smaller factor by the larger one, lest digits cancel
        less_c = (a - c + root) / 2 if a > c else b**2 * (q - 1) / ((c - a + root) / 2)
        right_Q = torch.tensor([less_c, *[b] * (q - 1)], dtype=torch.float64)
        right_Q = right_Q / right_Q.norm()
        return entropy_rate(weight_QQ * right_Q / (largest * right_Q[:, None]), right_Q**2)

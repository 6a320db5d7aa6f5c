"""Potts spins on a ring (Ising: two symbols): neighbours like to be equal.

    tokens    0  0  0  2  2  1  …  0 ┐        P(x)  ∝  exp(coupling · #{t: x_t = x_t+1} + field · #{t: x_t = 0})
              └──────────────────────┘        neighbours in a ring, so that no position is special

A gap is told by its nearest visible neighbours on both sides; how far they reach grows with `coupling`: near 0 there is nothing
to see, far above it whole rows are of one symbol. Negative, neighbours like to differ.

Source: Ising, "Beitrag zur Theorie des Ferromagnetismus", Zeitschrift für Physik 1925; Wu, "The Potts model", Reviews of Modern
Physics 1982 (transfer matrix).
"""

from functools import cached_property
from math import exp
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.chain import MAX_STATES, Chain, check_memory, entropy_rate
from mlm_lightning.data.languages.chain_source import ChainSource
from mlm_lightning.data.languages.joint import as_joint, unfold
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SeqLen
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.values import checked

Energy = Annotated[float, Interval(ge=-50, le=50), "it is an energy, in units of the temperature"]


class IsingSource(ChainSource):
    """Rows of a ring of `seq_len` spins."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 2,
        coupling: Energy = 1.0,
        field: Energy = 0.0,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if num_symbols**2 > MAX_STATES:
            problem, most = f"num_symbols² is above {MAX_STATES}, for lack of memory", int(MAX_STATES**0.5)
            raise ConfigError("data.num_symbols", num_symbols, problem, f"use data.num_symbols={most} or fewer")
        check_memory(seq_len, num_symbols**2)
        self.coupling, self.field, self._length = coupling, field, seq_len

    @cached_property
    def _transfer_QQ(self) -> Tensor:
        """What a pair of neighbours weighs, and half of the field on each side."""
        q = self.num_symbols
        field_Q = self.field * torch.nn.functional.one_hot(torch.tensor(0), q).double()
        energy_QQ = self.coupling * torch.eye(q, dtype=torch.float64) + (field_Q[:, None] + field_Q) / 2
        return (energy_QQ - energy_QQ.max()).exp()

    @cached_property
    def chain(self) -> Chain:
        """Its states are the first spin of the row and the one at hand, so that the last can be tied to the first."""
        q, weight_QQ = self.num_symbols, self._transfer_QQ
        first_S, here_S = torch.arange(q * q) // q, torch.arange(q * q) % q
        successor_SR = first_S[:, None] * q + torch.arange(q)
        emission_SQ = torch.nn.functional.one_hot(here_S, q).double()
        initial_S = (first_S == here_S).double()
        final_S = weight_QQ[here_S, first_S]
        return Chain(initial_S, successor_SR, weight_QQ[here_S], emission_SQ, self._length, final_S)

    def entropy_rate(self) -> float:
        """Of an endless ring: a Markov chain whose steps are those of the transfer matrix, weighed by its first eigenvector."""
        values_Q, vectors_QQ = torch.linalg.eigh(self._transfer_QQ)
        right_Q = vectors_QQ[:, -1].abs()
        transition_QQ = self._transfer_QQ * right_Q / (values_Q[-1] * right_Q[:, None])
        return entropy_rate(transition_QQ, right_Q**2)

    def joint(self) -> Joint:
        symbols = range(self.num_symbols)

        def weight(spin: int, *neighbours: int) -> float:
            return exp(self.field * (spin == 0) + self.coupling * sum(spin == other for other in neighbours))

        # a state is the first spin and the one at hand; the last spin meets both of its neighbours
        paths = unfold(
            self._length,
            [(weight(spin), spin, (spin, spin)) for spin in symbols],
            lambda state, place: [
                (weight(spin, state[1], *([state[0]] if place == self._length - 1 else [])), spin, (state[0], spin))
                for spin in symbols
            ],
        )
        return as_joint(paths, {})

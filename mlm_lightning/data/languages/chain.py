"""Chains: what comes next depends on a hidden state alone. Six languages are chains.

    state    s_1 ─T─► s_2 ─T─► s_3 ─T─► … s_L      P(m, s, x)  ∝  initial[m, s_1] · Π step[m, s_t, s_t+1]
              │E       │E       │E         │                      · Π emission[s_t, x_t] · final[m, s_L]
    token    x_1      x_2      x_3        x_L

A row goes along one of M chains: a mixture has as many as components, a ring of spins one for each first spin, all others one.
Where `final` weights the last state (brackets that must end closed, a ring that must close), steps need not sum to 1: the
weights of whole rows are normalised.

Shapes beyond those of `batch`: M chains, S states of each, R successors of a state, F = M · S states of all chains together, Q
symbols.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.oracle import cdf
from mlm_lightning.randomness import uniform

CONCENTRATION = "it is a Dirichlet's: below 1 a few outcomes have most of the probability, above 1 they are much alike"
Concentration = Annotated[float, Interval(ge=0.01, le=1e6), CONCENTRATION]


@dataclass(frozen=True, eq=False)
class Latent:
    """A variable that chain and state determine: `value_MS`, one of `num_values`. Where it is of the whole row (`once`), it is
    the same at each step."""

    value_MS: Tensor
    num_values: int
    once: bool = False


@dataclass(frozen=True, eq=False)
class Chain:
    """`step_MSR` are the weights of the steps to `successor_SR` (0 where a state has fewer); without it, to all states in their
    order. Rows of `step_MSR` and of `emission_SQ`, and `initial_MS`, sum to 1; where `final_MS` is given, the former and the
    last need not."""

    initial_MS: Tensor
    step_MSR: Tensor
    emission_SQ: Tensor
    seq_len: int
    final_MS: Tensor | None = None
    successor_SR: Tensor | None = None
    latents: Mapping[str, Latent] = field(default_factory=dict)

    @cached_property
    def successors_FR(self) -> Tensor:
        """The successors of each state, numbered through all chains: m · S + s."""
        num_chains, num_states, num_successors = self.step_MSR.shape
        successor_SR = torch.arange(num_successors).expand(num_states, -1) if self.successor_SR is None else self.successor_SR
        return (torch.arange(num_chains)[:, None, None] * num_states + successor_SR).flatten(0, 1)

    @cached_property
    def future_LF(self) -> Tensor:
        """The weight of all that may come after each step, by the state; up to a factor a step."""
        if self.final_MS is None:
            return torch.ones(self.initial_MS.numel(), dtype=torch.float64).expand(self.seq_len, -1)
        future = [self.final_MS.flatten()]
        for _ in range(self.seq_len - 1):
            future_F = (self.step_MSR.flatten(0, 1) * future[-1][self.successors_FR]).sum(1)
            future.append(future_F / future_F.max())
        return torch.stack(future[::-1])

    def cdf_FR(self, step: int) -> Tensor:
        """The distribution function of the successors at a step, given nothing of what follows."""
        return cdf(self.step_MSR.flatten(0, 1) * self.future_LF[step][self.successors_FR])

    def draw(self, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """`(states_BL, tokens_BL)`, states numbered through all chains. Number t of a row is the state's at step t, number
        L + t the token's."""
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len))
        first_F = cdf(self.initial_MS.flatten() * self.future_LF[0])
        state_B = torch.searchsorted(first_F, u_BL[:, 0].contiguous(), right=True)
        states = [state_B]
        cdf_FR = self.cdf_FR(0)
        for step in range(1, self.seq_len):
            if self.final_MS is not None:
                cdf_FR = self.cdf_FR(step)
            taken_B = (cdf_FR[state_B] <= u_BL[:, step, None]).sum(1)
            state_B = self.successors_FR[state_B, taken_B]
            states.append(state_B)
        states_BL = torch.stack(states, dim=1)
        return states_BL, self.emitted(states_BL % len(self.emission_SQ), keys_B)

    def emitted(self, states_BL: Tensor, keys_B: Tensor) -> Tensor:
        """The tokens of the states (each within its chain), drawn where a state has several symbols."""
        highest_S, token_S = self.emission_SQ.max(1)
        if bool((highest_S == 1).all()):
            return token_S[states_BL]
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len, 2 * self.seq_len))
        return (cdf(self.emission_SQ)[states_BL] <= u_BL[..., None]).sum(-1)

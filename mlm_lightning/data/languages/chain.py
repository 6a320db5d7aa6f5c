"""Chains: what comes next depends on a hidden state alone, one of S. The engine of six languages.

    state    s_1 ─T─► s_2 ─T─► s_3 ─T─► … s_L          P(s, x)  ∝  initial[s_1] · Π T[s_t, s_t+1] · Π E[s_t, x_t] · final[s_L]
              │E       │E       │E         │
    token    x_1      x_2      x_3        x_L

Where `final` weighs the last state (brackets that must end closed, a ring that must close), T's rows need not sum to 1: the
weights of whole rows are normalised.

Shapes beyond those of `batch`: S states, R successors of a state, Q symbols, X = Q + 1 things that a token can say.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.oracle import cdf
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform

CONCENTRATION = "it is a Dirichlet's: below 1 a few outcomes have most of the probability, above 1 they are much alike"
Concentration = Annotated[float, Interval(ge=0.01, le=1e6), CONCENTRATION]

MAX_STATES = 4096
MAX_MESSAGES = 2**22
"""Numbers of the messages of a row, one a state and position."""


@dataclass(frozen=True, eq=False)
class Latent:
    """A variable that the state tells: `value_S`, one of `num_values`. Of the whole row (`once`), it is the same at each
    step."""

    value_S: Tensor
    num_values: int
    once: bool = False


@dataclass(frozen=True, eq=False)
class Chain:
    """`weight_SR` are those of the transitions to `successor_SR` (0 where a state has fewer). Rows of `weight_SR` and of
    `emission_SQ`, and `initial_S`, sum to 1; where `final_S` is given, the former and the last need not."""

    initial_S: Tensor
    successor_SR: Tensor
    weight_SR: Tensor
    emission_SQ: Tensor
    seq_len: int
    final_S: Tensor | None = None
    latents: Mapping[str, Latent] = field(default_factory=dict)

    @classmethod
    def full(cls, initial_S: Tensor, transition_SS: Tensor, emission_SQ: Tensor, seq_len: int, **more: Any) -> "Chain":
        """From a matrix `transition_SS`, from the row's state to the column's."""
        num_states = len(initial_S)
        return cls(initial_S, torch.arange(num_states).expand(num_states, -1), transition_SS, emission_SQ, seq_len, **more)

    @classmethod
    def of_words(
        cls,
        first: Iterable[tuple[Any, int]],
        following: Callable[[Any], Iterable[tuple[Any, int]]],
        ends: Callable[[Any], bool],
        num_symbols: int,
        seq_len: int,
        latents: Callable[[Any], Mapping[str, tuple[int, int]]],
    ) -> "Chain":
        """All words alike that an automaton allows: `first` and `following` say which (state, token) may come, and `ends` in
        which states a word may end. Its states are those pairs. `latents` of a state: by name, value and number of values."""
        pairs: dict[tuple[Any, int], int] = {}
        successors: list[list[int]] = []
        waiting = list(dict.fromkeys(first))
        for pair in waiting:
            pairs[pair] = len(pairs)
        num_first = len(pairs)
        for state, _ in waiting:  # grows while it is read
            row = []
            for pair in following(state):
                if pair not in pairs:
                    pairs[pair] = len(pairs)
                    waiting.append(pair)
                row.append(pairs[pair])
            successors.append(row)
        widest = max(map(len, successors))
        successor_SR = torch.tensor([row + [0] * (widest - len(row)) for row in successors])
        weight_SR = torch.tensor([[1.0] * len(row) + [0.0] * (widest - len(row)) for row in successors], dtype=torch.float64)
        emission_SQ = torch.nn.functional.one_hot(torch.tensor([token for _, token in pairs]), num_symbols).double()
        initial_S = (torch.arange(len(pairs)) < num_first).double()
        final_S = torch.tensor([float(ends(state)) for state, _ in pairs], dtype=torch.float64)
        values = [latents(state) for state, _ in pairs]
        named = {
            name: Latent(torch.tensor([each[name][0] for each in values]), num_values)
            for name, (_, num_values) in values[0].items()
        }
        return cls(initial_S, successor_SR, weight_SR, emission_SQ, seq_len, final_S, named)

    @cached_property
    def classes(self) -> list[Tensor]:
        """The states that a row can be in at steps 0, d, 2d, …; at 1, d + 1, …; up to d - 1. Where d = 1, all that it reaches.

        d is the greatest common divisor of the lengths of all cycles, found from how far each state is from the start."""
        successors = [row_R[weight_R > 0].tolist() for row_R, weight_R in zip(self.successor_SR, self.weight_SR, strict=True)]
        waiting = self.initial_S.nonzero()[:, 0].tolist()
        distance = dict.fromkeys(waiting, 0)
        for state in waiting:  # grows while it is read
            for after in successors[state]:
                if after not in distance:
                    distance[after] = distance[state] + 1
                    waiting.append(after)
        period = gcd(*(distance[state] + 1 - distance[after] for state in waiting for after in successors[state])) or 1
        return [torch.tensor(sorted(s for s in waiting if distance[s] % period == c)) for c in range(period)]

    @cached_property
    def last_S(self) -> Tensor:
        """The weight of each state as the last one."""
        return torch.ones_like(self.initial_S) if self.final_S is None else self.final_S

    @cached_property
    def future_LS(self) -> Tensor:
        """The weight of all that may come after each step, by the state; up to a factor a step."""
        future = [self.last_S]
        for _ in range(self.seq_len - 1 if self.final_S is not None else 0):
            future_S = (self.weight_SR * future[-1][self.successor_SR]).sum(1)
            future.append(future_S / future_S.max())
        return torch.stack(future[::-1]).expand(self.seq_len, -1)

    def cdf_SR(self, step: int) -> Tensor:
        """Of the successors that a state has at a step, given nothing of what follows."""
        return cdf(self.weight_SR * self.future_LS[step][self.successor_SR], dim=1)

    def draw(self, keys_B: Tensor) -> tuple[Tensor, Tensor]:
        """`(states_BL, tokens_BL)`. Number t of a row is the state's at step t, number L + t the token's."""
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len))
        state_B = torch.searchsorted(cdf(self.initial_S * self.future_LS[0], dim=0), u_BL[:, 0].contiguous(), right=True)
        states = [state_B]
        same = self.final_S is None  # at each step
        cdf_SR = self.cdf_SR(0)
        for step in range(1, self.seq_len):
            if not same:
                cdf_SR = self.cdf_SR(step)
            taken_B = (cdf_SR[state_B] <= u_BL[:, step, None]).sum(1)
            state_B = self.successor_SR[state_B, taken_B]
            states.append(state_B)
        states_BL = torch.stack(states, dim=1)
        return states_BL, self.tokens(states_BL, keys_B)

    def tokens(self, states_BL: Tensor, keys_B: Tensor) -> Tensor:
        """What the states emit, drawn where they may emit several symbols."""
        if self.token_S is not None:
            return self.token_S[states_BL]
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len, 2 * self.seq_len))
        return (cdf(self.emission_SQ, dim=1)[states_BL] <= u_BL[..., None]).sum(-1)

    @cached_property
    def token_S(self) -> Tensor | None:
        """The symbol of each state, where each has one."""
        highest_S, token_S = self.emission_SQ.max(1)
        return token_S if bool((highest_S == 1).all()) else None


def check_memory(seq_len: int, num_states: int) -> None:
    """Raises ConfigError where the messages of a single row would be too many."""
    if seq_len * num_states > MAX_MESSAGES:
        problem = f"with {num_states} states, seq_len · states is above {MAX_MESSAGES}, for lack of memory"
        raise ConfigError("data.seq_len", seq_len, problem, f"use data.seq_len={MAX_MESSAGES // num_states} or less")


def stationary(transition_SS: Tensor) -> Tensor:
    """The distribution that a step leaves as it is (of a chain that has one)."""
    num_states = len(transition_SS)
    balance_SS = torch.eye(num_states, dtype=torch.float64) - transition_SS.T
    balance_SS[-1] = 1.0  # one of the equations follows from the others: in its place, the sum
    return torch.linalg.solve(balance_SS, torch.eye(num_states, dtype=torch.float64)[-1]).clamp_(min=0)


def entropy_rate(transition_SS: Tensor, stationary_S: Tensor) -> float:
    """Nats a step of a Markov chain: Σ_s π_s · H(T[s])."""
    return float(stationary_S @ torch.special.entr(transition_SS).sum(1))

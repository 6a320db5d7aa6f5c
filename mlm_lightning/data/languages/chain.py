"""Chains: what comes next depends on a hidden state alone, one of S. The engine of six languages.

    state    s_1 ─T─► s_2 ─T─► s_3 ─T─► … s_L          P(s, x)  ∝  initial[s_1] · Π T[s_t, s_t+1] · Π E[s_t, x_t] · final[s_L]
              │E       │E       │E         │
    token    x_1      x_2      x_3        x_L

    forward     a_t[s]  the evidence up to x_t-1, as a function of s_t
    backward    b_t[s]  the evidence after x_t                           P(s_t | observed)  ∝  a_t · E[., x_t] · b_t

Where `final` weighs the last state (brackets that must end closed, a ring that must close), T's rows need not sum to 1: the
weights of whole rows are normalised.

Source: Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the statistical analysis of probabilistic functions
of Markov chains", Annals of Mathematical Statistics 1970 (forward-backward; the messages scaled at each step).
Shapes beyond those of `batch`: S states, R successors of a state, Q symbols, X = Q + 1 things that a token can say. The batch
is the last dimension of all messages (SB): picking what a token says copies whole columns.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, cdf
from mlm_lightning.data.languages.synthetic import SyntheticSource
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform

CONCENTRATION = "it is a Dirichlet's: below 1 a few outcomes have most of the probability, above 1 they are much alike"
Concentration = Annotated[float, Interval(ge=0.01, le=1e6), CONCENTRATION]

MAX_STATES = 4096
MAX_MESSAGES = 2**22
"""Numbers of the messages of a row, one a state and position."""
_DENSE = 256
"""States up to which a step is a product with a full matrix, whatever its zeros."""
_TINY = torch.finfo(torch.float64).tiny
_DRAWN = 2**21  # random numbers of a block of rows that are drawn


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
    def transition_SS(self) -> Tensor:
        """Of few states a matrix, of many a sparse one (CSR)."""
        num_states = len(self.initial_S)
        from_SR = torch.arange(num_states)[:, None].expand_as(self.successor_SR)
        there_SR = self.weight_SR > 0
        indices = torch.stack((from_SR[there_SR], self.successor_SR[there_SR]))
        size = (num_states, num_states)
        sparse_SS = torch.sparse_coo_tensor(indices, self.weight_SR[there_SR], size, check_invariants=False).coalesce()
        return sparse_SS.to_dense() if num_states <= _DENSE else _csr(sparse_SS)

    @cached_property
    def future_LS(self) -> Tensor:
        """The weight of all that may come after each step, by the state; up to a factor a step."""
        future_S = torch.ones_like(self.initial_S) if self.final_S is None else self.final_S
        future = [future_S]
        for _ in range(self.seq_len - 1 if self.final_S is not None else 0):
            future_S = self.transition_SS @ future_S
            future.append(future_S := future_S / future_S.max())
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


class ChainSource(SyntheticSource):
    """A language whose rows are those of a `Chain`."""

    @property
    def seq_len(self) -> int:
        return self.chain.seq_len

    @cached_property
    def chain(self) -> Chain:
        raise NotImplementedError

    def draw(self, keys_B: Tensor) -> Tensor:
        return torch.cat([self.chain.draw(part_B)[1] for part_B in self._parts(keys_B)])

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        states_BL = torch.cat([self.chain.draw(part_B)[0] for part_B in self._parts(keys_B)])
        return {
            name: latent.value_S[states_BL[:, :1] if latent.once else states_BL] for name, latent in self.chain.latents.items()
        }

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {name: (1 if latent.once else self.seq_len, latent.num_values) for name, latent in self.chain.latents.items()}

    def oracle(self) -> "ChainOracle":
        return ChainOracle(self.chain)

    def _parts(self, keys_B: Tensor) -> tuple[Tensor, ...]:
        return keys_B.split(max(1, _DRAWN // (self.seq_len * self.chain.successor_SR.shape[1])))


class ChainOracle(LanguageOracle):
    """Forward-backward for a whole block of rows at once."""

    def __init__(self, chain: Chain) -> None:
        num_states, num_symbols = chain.emission_SQ.shape
        super().__init__(num_symbols, chain.seq_len, row_elements=chain.seq_len * (num_states + num_symbols))
        self._chain = chain
        self._forward_SS = _transposed(chain.transition_SS)
        self._backward_SS = chain.transition_SS
        self._emission_QS = chain.emission_SQ.T.contiguous()
        self._emission_SX = torch.cat((chain.emission_SQ, torch.ones(num_states, 1, dtype=torch.float64)), dim=1)
        self._initial_S = chain.initial_S
        self._final_S = torch.ones(num_states, dtype=torch.float64) if chain.final_S is None else chain.final_S
        self._log_total = 0.0
        nothing_L1 = torch.full((chain.seq_len, 1), num_symbols)
        if chain.final_S is not None:
            self._log_total = float(self._forward(nothing_L1)[1])

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return self._forward(said_BL.T)[1]

    def _posterior(self, said_BL: Tensor) -> Answer:
        said_LB = said_BL.T.contiguous()
        predicted_LSB, log_prob_B = self._forward(said_LB)
        probs_BLQ = torch.empty(*said_BL.shape, self.num_symbols, dtype=torch.float64, device=said_BL.device)
        possible_B = log_prob_B > -torch.inf
        for step, after_SB in self._backward(said_LB):
            probs_QB = self._emission_QS @ predicted_LSB[step].mul_(after_SB)
            total_B = probs_QB.sum(0)
            possible_B &= total_B > 0  # where messages in both directions underflow each other
            probs_BLQ[:, step] = (probs_QB / total_B).T
        return probs_BLQ, possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        said_LB = said_BL.T.contiguous()
        predicted_LSB, log_prob_B = self._forward(said_LB)
        latents = self._chain.latents
        one_hots = {
            name: torch.nn.functional.one_hot(latent.value_S, latent.num_values).T.to(predicted_LSB)
            for name, latent in latents.items()
        }
        found: dict[str, list[Tensor]] = {name: [] for name in latents}
        possible_B = log_prob_B > -torch.inf
        for step, after_SB in self._backward(said_LB):
            belief_SB = predicted_LSB[step] * self._emission_SX.index_select(1, said_LB[step]) * after_SB
            belief_SB /= (total_B := belief_SB.sum(0))
            possible_B &= total_B > 0
            for name, latent in latents.items():
                if step == 0 or not latent.once:
                    found[name].append((one_hots[name] @ belief_SB).T)
        return {name: torch.stack(steps[::-1], dim=1) for name, steps in found.items()}, possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        said_LB, chain = said_BL.T.contiguous(), self._chain
        # the weight of each state at each step, given what it and all later steps say
        weight_LSB = torch.empty(self.seq_len, len(self._initial_S), len(said_BL), dtype=torch.float64, device=said_BL.device)
        for step, after_SB in self._backward(said_LB):
            torch.mul(self._emission_SX.index_select(1, said_LB[step]), after_SB, out=weight_LSB[step])
        u_LB = uniform(keys_B[:, None], torch.arange(self.seq_len)).T.to(said_BL.device)
        first_SB = weight_LSB[0].mul_(self._initial_S[:, None])
        possible_B = first_SB.sum(0) > 0
        state_B = (cdf(first_SB, dim=0) <= u_LB[0]).sum(0).clamp_(max=len(first_SB) - 1)
        states = [state_B]
        successor_SR, transition_SR = chain.successor_SR.to(said_BL.device), chain.weight_SR.to(said_BL.device)
        for step in range(1, self.seq_len):
            successor_RB = successor_SR[state_B].T
            cdf_RB = cdf(transition_SR[state_B].T * weight_LSB[step].gather(0, successor_RB), dim=0)
            taken_1B = (cdf_RB <= u_LB[step]).sum(0, keepdim=True).clamp_(max=len(cdf_RB) - 1)
            state_B = successor_RB.gather(0, taken_1B)[0]
            states.append(state_B)
        states_BL = torch.stack(states, dim=1).cpu()
        return chain.tokens(states_BL, keys_B.cpu()).to(said_BL.device), possible_B

    def _forward(self, said_LB: Tensor) -> tuple[Tensor, Tensor]:
        """`predicted_LSB`, the states given what was said before each step (up to a factor), and the log of the probability of
        all that is said."""
        seq_len, num_rows = said_LB.shape
        predicted_LSB = torch.empty(seq_len, len(self._initial_S), num_rows, dtype=torch.float64, device=said_LB.device)
        predicted_LSB[0] = self._initial_S[:, None]
        log_prob_B = torch.full((num_rows,), -self._log_total, dtype=torch.float64, device=said_LB.device)
        for step in range(seq_len):
            told_SB = predicted_LSB[step] * self._emission_SX.index_select(1, said_LB[step])
            total_B = told_SB.sum(0)
            log_prob_B += total_B.log()
            told_SB /= total_B.clamp_min_(_TINY)
            if step + 1 < seq_len:
                predicted_LSB[step + 1] = self._forward_SS @ told_SB
        return predicted_LSB, log_prob_B + (self._final_S @ told_SB).log()

    def _backward(self, said_LB: Tensor) -> Iterable[tuple[int, Tensor]]:
        """From the last step to the first, `after_SB`: how likely what is said after it is, by its state (up to a factor)."""
        after_SB = self._final_S[:, None].expand(-1, said_LB.shape[1])
        for step in range(len(said_LB) - 1, -1, -1):
            yield step, after_SB
            if step > 0:
                told_SB = after_SB * self._emission_SX.index_select(1, said_LB[step])
                told_SB /= told_SB.sum(0).clamp_min_(_TINY)
                after_SB = self._backward_SS @ told_SB


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


def _transposed(matrix_SS: Tensor) -> Tensor:
    return matrix_SS.T.contiguous() if matrix_SS.layout == torch.strided else _csr(matrix_SS.to_sparse_coo().T)


def _csr(sparse_SS: Tensor) -> Tensor:
    with warnings.catch_warnings():  # that there are things which CSR cannot do yet; a product with a matrix is none of them
        warnings.simplefilter("ignore")
        return sparse_SS.to_sparse_csr()

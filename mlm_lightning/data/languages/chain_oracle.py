"""The exact answers about a chain, for a whole block of rows at once: forward-backward.

    forward     a_t[s]  the evidence up to x_t, as a function of s_t
    backward    b_t[s]  the evidence after x_t                           P(s_t | observed)  ∝  a_t · b_t

Where x_t is hidden it says nothing, so that a_t · b_t times the emissions is its posterior; where it is observed nobody asks.

Source: Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the statistical analysis of probabilistic functions
of Markov chains", Annals of Mathematical Statistics 1970.
Shapes beyond those of `chain`: S are the states of one cyclic class, those that a step can be in. The batch is the last
dimension of all messages (SB): what a token says of all states with its symbol, or what a successor takes from a state, is a
copy of whole rows of them.
"""

import warnings
from collections.abc import Iterable
from math import log10

import torch
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, cdf
from mlm_lightning.randomness import uniform

_TINY = torch.finfo(torch.float64).tiny
_SPARSE = 4
"""A product is one with a sparse matrix (CSR) where so many of its places or more are zero for each that is not."""
_EVERY, _DIGITS = 8, 30
"""Messages are scaled after so many steps, or before they can shrink by so many digits."""


class ChainOracle(LanguageOracle):
    """Tables are lists, one entry for each cyclic class of the chain."""

    def __init__(self, chain: Chain) -> None:
        classes, num_symbols = chain.classes, chain.emission_SQ.shape[1]
        widest = max(map(len, classes))
        # half of what is kept: a step's work on a row is little, so that larger blocks pay
        super().__init__(num_symbols, chain.seq_len, row_elements=chain.seq_len * (widest + 2 * num_symbols) // 2)
        self._chain, self._widest = chain, widest
        self._state_S = list(classes)
        self._place_S = torch.zeros(len(chain.initial_S), dtype=torch.int64)  # of each state in its class
        for states_S in classes:
            self._place_S[states_S] = torch.arange(len(states_S))
        steps = [_step(chain, states_S, self._place_S, classes[(c + 1) % len(classes)]) for c, states_S in enumerate(classes)]
        self._backward_SS, self._forward_SS = [_fast(each) for each in steps], [_fast(each.T) for each in steps]
        emissions = [chain.emission_SQ[states_S] for states_S in classes]
        self._emission_QS = [_fast(emission_SQ.T.to_sparse()) for emission_SQ in emissions]
        # what a token says of each state: where that has one symbol, a look at it; else its emission, or 1
        self._token_S = [] if chain.token_S is None else [chain.token_S[states_S] for states_S in classes]
        self._emission_SX = [] if self._token_S else [torch.nn.functional.pad(each, (0, 1), value=1.0) for each in emissions]
        self._symbol_Q1 = torch.arange(num_symbols)[:, None]
        self._initial_S = chain.initial_S[classes[0]]
        self._final_S = chain.last_S[classes[(chain.seq_len - 1) % len(classes)]]
        self._every = _steps_before_scaling(chain)
        self._log_total = 0.0
        if chain.final_S is not None:
            self._log_total = float(self._forward(self._evidence(torch.full((chain.seq_len, 1), num_symbols)))[1])

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return self._forward(self._evidence(said_BL.T.contiguous()))[1]

    def _posterior(self, said_BL: Tensor) -> Answer:
        evidence = self._evidence(said_BL.T.contiguous())
        reached_LSB, log_prob_B = self._forward(evidence)
        probs_LQB = reached_LSB.new_empty(len(evidence), self.num_symbols, len(said_BL))
        for step, after_SB in self._backward(evidence):
            belief_SB = reached_LSB[step, : len(after_SB)].mul_(after_SB)
            _times(self._emission_QS[self._class(step)], belief_SB, probs_LQB[step])
        total_LB = probs_LQB.sum(1)
        # where messages in both directions underflow each other, nothing is left of a row that is possible
        possible_B = (log_prob_B > -torch.inf) & (total_LB > 0).all(0)
        return probs_LQB.div_(total_LB[:, None]).permute(2, 0, 1), possible_B

    def _write(self, probs_BLV: Tensor, said_BL: Tensor) -> Tensor:
        if not self._token_S:
            return super()._write(probs_BLV, said_BL)
        # states that emit what is observed emit nothing else, so that its posterior is right as well
        probs_BLV[..., :-1], possible_B = self._posterior(said_BL)
        probs_BLV[..., -1] = 0.0
        return possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        evidence, latents = self._evidence(said_BL.T.contiguous()), self._chain.latents
        reached_LSB, log_prob_B = self._forward(evidence)
        one_hots = {
            name: torch.nn.functional.one_hot(latent.value_S, latent.num_values).T.to(reached_LSB)
            for name, latent in latents.items()
        }
        found: dict[str, list[Tensor]] = {name: [] for name in latents}
        possible_B = log_prob_B > -torch.inf
        for step, after_SB in self._backward(evidence):
            belief_SB = reached_LSB[step, : len(after_SB)].mul_(after_SB)
            belief_SB /= (total_B := belief_SB.sum(0))
            possible_B &= total_B > 0
            for name, latent in latents.items():
                if step == 0 or not latent.once:
                    found[name].append((one_hots[name][:, self._state_S[self._class(step)]] @ belief_SB).T)
        return {name: torch.stack(steps[::-1], dim=1) for name, steps in found.items()}, possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        evidence, chain, device = self._evidence(said_BL.T.contiguous()), self._chain, said_BL.device
        # the weight of each state at each step, given what it and all later steps say
        weight_LSB = torch.zeros(self.seq_len, self._widest, len(said_BL), dtype=torch.float64, device=device)
        for step, after_SB in self._backward(evidence):
            torch.mul(self._told(step, evidence), after_SB, out=weight_LSB[step, : len(after_SB)])
        u_LB = uniform(keys_B[:, None], torch.arange(self.seq_len)).T.to(device)
        first_SB = weight_LSB[0, : len(self._initial_S)].mul_(self._initial_S[:, None])
        possible_B = first_SB.sum(0) > 0
        state_B = self._state_S[0][(cdf(first_SB, dim=0) <= u_LB[0]).sum(0).clamp_(max=len(first_SB) - 1)]
        states = [state_B]
        successor_SR, transition_SR = chain.successor_SR.to(device), chain.weight_SR.to(device)
        for step in range(1, self.seq_len):
            successor_RB = successor_SR[state_B].T
            weight_RB = transition_SR[state_B].T * weight_LSB[step].gather(0, self._place_S[successor_RB])
            taken_1B = (cdf(weight_RB, dim=0) <= u_LB[step]).sum(0, keepdim=True).clamp_(max=len(weight_RB) - 1)
            state_B = successor_RB.gather(0, taken_1B)[0]
            states.append(state_B)
        states_BL = torch.stack(states, dim=1).cpu()
        return chain.tokens(states_BL, keys_B.cpu()).to(device), possible_B

    def _forward(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """`reached_LSB`, the states given what is said up to each step (up to a factor), and the log of the probability of all
        that is said."""
        seq_len, num_rows = len(evidence), evidence.shape[-1]
        reached_LSB = torch.empty(seq_len, self._widest, num_rows, dtype=torch.float64, device=evidence.device)
        room_SB = torch.empty_like(reached_LSB[0])
        predicted_SB = self._initial_S[:, None]
        log_prob_B = torch.full((num_rows,), -self._log_total, dtype=torch.float64, device=evidence.device)
        for step in range(seq_len):
            reached_SB = self._told(step, evidence, reached_LSB[step]).mul_(predicted_SB)
            if self._scales(step) or step + 1 == seq_len:
                total_B = reached_SB.sum(0)
                log_prob_B += total_B.log()
                reached_SB /= total_B.clamp_min_(_TINY)
            if step + 1 < seq_len:
                predicted_SB = _times(self._forward_SS[self._class(step)], reached_SB, room_SB)
        return reached_LSB, log_prob_B + (self._final_S @ reached_SB).log()

    def _backward(self, evidence: Tensor) -> Iterable[tuple[int, Tensor]]:
        """From the last step to the first, `after_SB`: how likely what is said after it is, by its state (up to a factor)."""
        after_SB = self._final_S[:, None].expand(-1, evidence.shape[-1])
        told_room_SB, room_SB = torch.empty(2, self._widest, evidence.shape[-1], dtype=torch.float64, device=evidence.device)
        for step in range(len(evidence) - 1, -1, -1):
            yield step, after_SB
            if step > 0:
                told_SB = self._told(step, evidence, told_room_SB).mul_(after_SB)
                if self._scales(step):
                    told_SB /= told_SB.sum(0).clamp_min_(_TINY)
                after_SB = _times(self._backward_SS[self._class(step - 1)], told_SB, room_SB)

    def _evidence(self, said_LB: Tensor) -> Tensor:
        """What `_told` reads: where each state has one symbol, `allowed_LQB`, 1 for each symbol that a token may be."""
        if not self._token_S:
            return said_LB
        return ((said_LB[:, None] == self._symbol_Q1) | (said_LB[:, None] == self.num_symbols)).double()

    def _told(self, step: int, evidence: Tensor, room_SB: Tensor | None = None) -> Tensor:
        """`told_SB`, how likely each state is to emit what is said; written into `room_SB` where it is given."""
        of_class = self._class(step)
        if self._token_S:
            table, dim, index = evidence[step], 0, self._token_S[of_class]
        else:
            table, dim, index = self._emission_SX[of_class], 1, evidence[step]
        out = None if room_SB is None else room_SB[: len(self._state_S[of_class])]
        return torch.index_select(table, dim, index, out=out)

    def _class(self, step: int) -> int:
        return step % len(self._state_S)

    def _scales(self, step: int) -> bool:
        return step % self._every == self._every - 1


def _steps_before_scaling(chain: Chain) -> int:
    """Each may shrink a message by the least transition and emission that are possible."""
    least = min(float(table[table > 0].min()) for table in (chain.weight_SR, chain.emission_SQ))
    return max(1, min(_EVERY, int(_DIGITS / max(1e-9, -2 * log10(min(1.0, least))))))


def _step(chain: Chain, from_S: Tensor, place_S: Tensor, to_S: Tensor) -> Tensor:
    """The transitions from one class to the next, a sparse matrix (COO)."""
    weight_SR = chain.weight_SR[from_S]
    row_A, successor_A = (weight_SR > 0).nonzero(as_tuple=True)
    column_A = place_S[chain.successor_SR[from_S][row_A, successor_A]]
    indices, size = torch.stack((row_A, column_A)), (len(from_S), len(to_S))
    return torch.sparse_coo_tensor(indices, weight_SR[row_A, successor_A], size, check_invariants=False).coalesce()


def _fast(matrix: Tensor) -> Tensor:
    """As it is multiplied fastest: in blocks of its diagonal where others are 0 (MGG), with few entries as CSR, else full."""
    matrix = matrix.coalesce()
    num_rows, num_columns = matrix.shape
    row_A, column_A = matrix.indices()
    for size in range(2, num_rows // 2 + 1):
        if num_rows == num_columns and num_rows % size == 0 and torch.equal(row_A // size, column_A // size):
            return (
                matrix.to_dense().view(num_rows // size, size, -1, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
            )
    if matrix._nnz() * _SPARSE > matrix.numel():
        return matrix.to_dense()
    with warnings.catch_warnings():  # that there are things which CSR cannot do yet; a product with a matrix is none of them
        warnings.simplefilter("ignore")
        csr = matrix.to_sparse_csr()
        # as MKL wants the indices: others are converted in each product
        return torch.sparse_csr_tensor(csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape)


def _times(matrix: Tensor, message_SB: Tensor, room_SB: Tensor) -> Tensor:
    """The product, written into `room_SB`."""
    if matrix.dim() == 3:  # blocks, MGG
        blocks_MGB = message_SB.unflatten(0, matrix.shape[:2])
        torch.bmm(matrix, blocks_MGB, out=(out_SB := room_SB[: len(message_SB)]).view_as(blocks_MGB))
        return out_SB
    out_SB = room_SB[: matrix.shape[0]]
    if matrix.layout == torch.sparse_csr:  # mm would fill the room with zeros first
        return torch.addmm(out_SB, matrix, message_SB, beta=0, out=out_SB)
    return torch.mm(matrix, message_SB, out=out_SB)

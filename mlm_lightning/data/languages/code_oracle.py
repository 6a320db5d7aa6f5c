"""What a linear code leaves open: Gaussian elimination modulo p.

    Σ_l checks[c, l] · x_l  =  0                                    a row satisfies all C checks
    Σ_hidden checks[c, l] · x_l  =  - Σ_seen checks[c, l] · x_l     what is seen goes to the right side

One check after the other is solved for its first unknown, its pivot, and taken off all others, so that none of them has it:

    solved = check / check[pivot]          other' = other - other[pivot] · solved

At the end an unknown is the pivot of one check, which gives it by its other unknowns, or free. All that is free is uniform:

    posterior    =  certain, where a pivot's check has no other unknown; uniform elsewhere
    p(evidence)  =  p^(unknowns that are free) / p^(L - C); 0 where a check has no unknown, and a right side other than 0

The order of unknowns decides which of them are pivots: given places come first, then free places, as rows are drawn.

Shapes beyond those of `batch`: C checks, K free places, P = p symbols, Y = L + 1 columns, the last one the right side.
"""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer


class CodeOracle(LanguageOracle):
    """Each hidden token is certain, or uniform."""

    def __init__(self, checks_CL: Tensor, p: int, given_C: Tensor, free_K: Tensor) -> None:
        num_checks, seq_len = checks_CL.shape
        super().__init__(p, seq_len, row_elements=seq_len * (p + 3 * num_checks))
        self.order_L = torch.cat((given_C, free_K))
        self.checks_CL, self.free_K = checks_CL[:, self.order_L], free_K
        self.inverse_P = torch.tensor([0, *(pow(value, -1, p) for value in range(1, p))])

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        unknown_BCL, right_BC, pivot_BCL, possible_B = self._solved(evidence_BL)
        certain_BCL = pivot_BCL & ((unknown_BCL != 0).sum(2, keepdim=True) == 1)
        value_BL = (certain_BCL * right_BC[..., None]).sum(1)
        certain_BL1 = certain_BCL.any(1)[..., None]
        probs_BLP = torch.where(certain_BL1, one_hot(value_BL, self.num_symbols).double(), 1 / self.num_symbols)
        return probs_BLP[:, self.order_L.argsort()], possible_B

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        _, _, pivot_BCL, possible_B = self._solved(evidence_BL)
        num_free_B = (evidence_BL == self.num_symbols).sum(1) - pivot_BCL.sum((1, 2))
        log_prob_B = (num_free_B - len(self.free_K)).double() * log(self.num_symbols)
        return log_prob_B.masked_fill(~possible_B, -torch.inf)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        """Unknowns that are free are uniform, each by the number of its place, as rows are drawn; the pivots follow."""
        unknown_BCL, right_BC, pivot_BCL, possible_B = self._solved(evidence_BL)
        u_BK = self._uniform(keys_B, self.free_K)
        free_BL = torch.zeros_like(evidence_BL)
        free_BL[:, -len(self.free_K) :] = (u_BK * self.num_symbols).long()
        free_BL = free_BL.masked_fill(pivot_BCL.any(1), 0)
        value_BC = (right_BC - (unknown_BCL * free_BL[:, None]).sum(2)) % self.num_symbols
        sampled_BL = free_BL + (pivot_BCL * value_BC[..., None]).sum(1)
        return sampled_BL[:, self.order_L.argsort()], possible_B

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        probs_BLP, possible_B = self._posterior(evidence_BL)
        hidden_BL1 = (evidence_BL == self.num_symbols)[..., None]
        probs_BLP = torch.where(hidden_BL1, probs_BLP, self._one_hot_VV[evidence_BL][..., :-1])
        return {"message": probs_BLP[:, self.free_K]}, possible_B

    def _solved(self, evidence_BL: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The solved checks: `unknown_BCL`, the coefficients of the unknowns; `right_BC`; `pivot_BCL`, whether a token is the
        pivot of a check; and `possible_B`. Tokens are in the order of the unknowns."""
        p, row_B = self.num_symbols, torch.arange(len(evidence_BL), device=evidence_BL.device)
        evidence_BL = evidence_BL[:, self.order_L]
        hidden_BL = evidence_BL == p
        seen_B1L = evidence_BL.masked_fill(hidden_BL, 0)[:, None]
        right_BC1 = -(seen_B1L * self.checks_CL).sum(2, keepdim=True)
        table_BCY = torch.cat((self.checks_CL * hidden_BL[:, None], right_BC1), dim=2) % p
        for c in range(len(self.checks_CL)):
            check_BY = table_BCY[:, c]
            pivot_B = (check_BY[:, :-1] != 0).int().argmax(1)
            factor_BC = table_BCY[row_B, :, pivot_B]
            solved_BY = check_BY * self.inverse_P[factor_BC[:, c]][:, None] % p  # 0, where it has no unknown
            factor_BC[:, c] -= 1  # of itself, so that `solved` is left
            table_BCY = (table_BCY - factor_BC[..., None] * solved_BY[:, None]) % p
        unknown_BCL, right_BC = table_BCY[..., :-1], table_BCY[..., -1]
        is_unknown_BCL = unknown_BCL != 0
        pivot_BCL = is_unknown_BCL & (is_unknown_BCL.cumsum(2) == 1)
        return unknown_BCL, right_BC, pivot_BCL, (is_unknown_BCL.any(2) | (right_BC == 0)).all(1)

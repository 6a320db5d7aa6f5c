"""The posterior of a pattern of unknown period, by a sum over periods. Given one, the places of the pattern are independent:

    p(period r | evidence)     ∝  Π over places of  Σ over symbols s of  1/q · hit^(n_s) · miss^(n - n_s)
    p(place's symbol s | r, e) ∝  hit^(n_s) · miss^(n - n_s)              s is seen n_s times at the place, all symbols n times
    p(token)                   =  Σ_r p(r | e) · Σ_s p(s | r, e) · (hit if the token is s, else miss)

Shapes beyond those of `batch`: P places of a pattern, C times that it comes, R periods, Q symbols.
"""

from math import log

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from mlm_lightning.data.languages.noise import Noise
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer, choose, possible


class PeriodicOracle(LanguageOracle):
    """Sums over `periods`."""

    def __init__(self, noise: Noise, periods: range, seq_len: int) -> None:
        super().__init__(noise.num_symbols, seq_len, (6 * (seq_len + periods[-1]) + sum(periods)) * noise.num_symbols)
        self.noise, self.periods = noise, periods

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        log_BR, symbols = self._evidence_of_periods(evidence_BL)
        meant_BLQ = log_BR.new_zeros(*evidence_BL.shape, self.num_symbols)
        for period, prob_B, log_BPQ in zip(self.periods, log_BR.softmax(1).T, symbols, strict=True):
            symbol_BPQ = log_BPQ.softmax(2).nan_to_num(0.0)  # of an impossible period
            place_L = torch.arange(self.seq_len, device=evidence_BL.device) % period
            meant_BLQ += prob_B[:, None, None] * symbol_BPQ[:, place_L]
        return self.noise.miss + (1 - self.noise.share) * meant_BLQ, possible(log_BR)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        return self._evidence_of_periods(evidence_BL)[0].logsumexp(1) - log(len(self.periods))

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        log_BR, _ = self._evidence_of_periods(evidence_BL)
        return {"period": log_BR.softmax(1)[:, None]}, possible(log_BR)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        (log_BR, symbols), longest = self._evidence_of_periods(evidence_BL), self.periods[-1]
        u_BN = self._uniform(keys_B, torch.arange(1 + longest + self.seq_len))
        chosen_B = choose(log_BR.softmax(1), u_BN[:, 0])
        pattern_BP = torch.zeros(len(evidence_BL), longest, dtype=torch.int64, device=evidence_BL.device)
        for number, (period, log_BPQ) in enumerate(zip(self.periods, symbols, strict=True)):
            rows = (chosen_B == number).nonzero()[:, 0]
            pattern_BP[rows, :period] = choose(log_BPQ[rows].softmax(2), u_BN[rows, 1 : 1 + period])
        meant_BL = repeated(pattern_BP, self.periods[0] + chosen_B, self.seq_len)
        return self.noise.apply(meant_BL, u_BN[:, 1 + longest :]), possible(log_BR)

    def _evidence_of_periods(self, evidence_BL: Tensor) -> tuple[Tensor, list[Tensor]]:
        """log p(evidence | period), `log_BR`; and by period, log p(the evidence at a place | its symbol), `log_BPQ`."""
        symbols = [self._log_symbols(evidence_BL, period) for period in self.periods]
        log_R = [
            log_BPQ.logsumexp(2).sum(1) - period * log(self.num_symbols)
            for period, log_BPQ in zip(self.periods, symbols, strict=True)
        ]
        return torch.stack(log_R, dim=1), symbols

    def _log_symbols(self, evidence_BL: Tensor, period: int) -> Tensor:
        whole_BL = pad(evidence_BL, (0, -self.seq_len % period), value=self.num_symbols)
        count_BPQ = one_hot(whole_BL.unflatten(1, (-1, period)), self.num_symbols + 1).sum(1)[..., :-1].double()
        return self.noise.log_prob(count_BPQ, count_BPQ.sum(2, keepdim=True) - count_BPQ)


def repeated(pattern_BP: Tensor, period_B: Tensor, seq_len: int) -> Tensor:
    """The first `period_B` symbols of each pattern, again and again."""
    return pattern_BP.gather(1, torch.arange(seq_len, device=pattern_BP.device) % period_B[:, None])

"""The exact answers about a chain, or about one of several chains: forward-backward.

    ahead_t+1[m, s'] =  Σ_s   ahead_t[m, s] · says_t[s] · step[m, s, s']            ahead_1 = initial
    back_t[m, s]     =  Σ_s'  step[m, s, s'] · says_t+1[s'] · back_t+1[m, s']       back_L  = final
    says_t[s]        =  emission[s, x_t], and 1 where x_t is hidden
    belief_t[m, s]   =  p(m, s_t = s | evidence)  ∝  ahead_t · says_t · back_t
    p(x_t | evidence)  =  Σ_m,s  belief_t[m, s] · emission[s, x_t]                  where x_t is hidden
    sample: the first state by its belief, then each by  step[m, s, s'] · says_t+1[s'] · back_t+1[m, s']

Messages of each chain are scaled by themselves at every step, so that none underflows beside another that fits better.

Source: Baum, Petrie, Soules, Weiss, "A maximization technique occurring in the statistical analysis of probabilistic functions
of Markov chains", Annals of Mathematical Statistics 1970. Shapes as in `chain`, and X = Q + 1 values of the evidence.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer, choose, possible

_TINY = torch.finfo(torch.float64).tiny


class ForwardBackward(LanguageOracle):
    """Steps are products with the matrices of the chains."""

    def __init__(self, chain: Chain) -> None:
        num_chains, num_states = chain.initial_MS.shape
        num_symbols = chain.emission_SQ.shape[1]
        super().__init__(num_symbols, chain.seq_len, chain.seq_len * (2 * num_chains * num_states + num_symbols))
        self.chain, self.initial_MS = chain, chain.initial_MS
        self.step_MSR, self.emission_SQ = chain.step_MSR, chain.emission_SQ
        self.final_MS = torch.ones_like(chain.initial_MS) if chain.final_MS is None else chain.final_MS
        self.says_XS = pad(chain.emission_SQ, (0, 1), value=1.0).T

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        ahead, log_BM = self._forward(evidence_BL)
        probs = [
            torch.einsum("bms,sq->bq", belief_BMS, self.emission_SQ) for belief_BMS in self._beliefs(evidence_BL, ahead, log_BM)
        ]
        return torch.stack(probs[::-1], dim=1), possible(log_BM)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        return self._forward(evidence_BL)[1].logsumexp(1) - self._log_total

    @cached_property
    def _log_total(self) -> float:
        nothing_1L = torch.full((1, self.seq_len), self.num_symbols, device=self.says_XS.device)
        return float(self._forward(nothing_1L)[1].logsumexp(1))

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        ahead, log_BM = self._forward(evidence_BL)
        latents = self.chain.latents.items()
        values = {name: one_hot(latent.value_MS, latent.num_values).to(self.emission_SQ) for name, latent in latents}
        found: dict[str, list[Tensor]] = {name: [] for name in values}
        for belief_BMS in self._beliefs(evidence_BL, ahead, log_BM):
            for name, value_MSV in values.items():
                found[name].append(torch.einsum("bms,msv->bv", belief_BMS, value_MSV))
        steps = {name: parts[-1:] if self.chain.latents[name].once else parts[::-1] for name, parts in found.items()}
        return {name: torch.stack(parts, dim=1) for name, parts in steps.items()}, possible(log_BM)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        ahead, log_BM = self._forward(evidence_BL)
        sent = list(self._backward(evidence_BL))[::-1]
        row_B, num_states = torch.arange(len(evidence_BL), device=evidence_BL.device), len(self.emission_SQ)
        u_BL = self._uniform(keys_B, torch.arange(self.seq_len))
        first_BMS = log_BM.softmax(1)[..., None] * _scaled(ahead[0] * sent[0])
        state_B = choose(first_BMS.flatten(1), u_BL[:, 0])
        states = [state_B]
        step_FR, successors_FR = self.step_MSR.flatten(0, 1), self.chain.successors_FR.to(evidence_BL.device)
        for t in range(1, self.seq_len):
            sent_BR = sent[t].flatten(1).gather(1, successors_FR[state_B])
            taken_B = choose(step_FR[state_B] * sent_BR, u_BL[:, t])
            state_B = successors_FR[state_B, taken_B]
            states.append(state_B)
        states_BL = torch.stack(states, dim=1).cpu() % num_states
        return self.chain.emitted(states_BL, keys_B.cpu()).to(row_B), possible(log_BM)

    def _beliefs(self, evidence_BL: Tensor, ahead: list[Tensor], log_BM: Tensor) -> Iterator[Tensor]:
        """p(chain, state | evidence), `belief_BMS`, from the last position to the first."""
        for ahead_BMS, sent_BMS in zip(ahead[::-1], self._backward(evidence_BL), strict=True):
            yield log_BM.softmax(1)[..., None] * _scaled(ahead_BMS * sent_BMS)

    def _forward(self, evidence_BL: Tensor) -> tuple[list[Tensor], Tensor]:
        """`ahead_BMS` at every position, and the log of the weight of the evidence and each chain, `log_BM`."""
        ahead_BMS = self.initial_MS.expand(len(evidence_BL), -1, -1)
        ahead, log_BM = [], torch.zeros_like(ahead_BMS[..., 0])
        for token_B in evidence_BL.T:
            ahead.append(ahead_BMS)
            reached_BMS = ahead_BMS * self._says(token_B)
            log_BM = log_BM + reached_BMS.sum(2).log()
            reached_BMS = _scaled(reached_BMS)
            ahead_BMS = self._step(reached_BMS)
        return ahead, log_BM + (reached_BMS * self.final_MS).sum(2).log()

    def _backward(self, evidence_BL: Tensor) -> Iterator[Tensor]:
        """`sent_BMS` = says · back, up to a factor of each chain, from the last position to the first."""
        back_BMS = self.final_MS
        for t in reversed(range(self.seq_len)):
            sent_BMS = _scaled(self._says(evidence_BL[:, t]) * back_BMS)
            yield sent_BMS
            if t > 0:
                back_BMS = self._step_back(sent_BMS)

    def _says(self, token_B: Tensor) -> Tensor:
        return self.says_XS[token_B][:, None]  # alike in all chains

    def _step(self, message_BMS: Tensor) -> Tensor:
        return torch.einsum("bms,mst->bmt", message_BMS, self.step_MSR)

    def _step_back(self, message_BMS: Tensor) -> Tensor:
        return torch.einsum("bmt,mst->bms", message_BMS, self.step_MSR)


def _scaled(message_BMS: Tensor) -> Tensor:
    return message_BMS / message_BMS.sum(2, keepdim=True).clamp(min=_TINY)

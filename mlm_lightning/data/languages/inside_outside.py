"""The posterior of hidden words under a grammar in Chomsky normal form: inside and outside.

    inside[n][i, A]   =  p(the n words from i on | A)
                      =  Σ over splits k and rules A -> B C  of  p · inside[k][i, B] · inside[n-k][i+k, C]
    outside[n][i, A]  =  p(all other words, A above these)      the same sums, from long spans to short ones

           S             belief of A above a span     ∝  outside · inside
      ┌────┴────┐        posterior of a word          ∝  Σ_A outside[1][i, A] · p(A -> word)
      NP        VP       sample: from the root down, split and rule in proportion to  p · inside[k][i, B] · inside[n-k][i+k, C]
    ┌─┴─┐     ┌─┴─┐
    the M     saw M      inside messages of a span are divided by their largest, whose logarithm is kept: log[n][i]

Source: Lari, Young, "The estimation of stochastic context-free grammars using the inside-outside algorithm", Computer Speech
and Language 1990, after Baker 1979. Shapes beyond those of `batch`: I spans of a length, by their start; N nonterminals, R
rules A -> B C, K splits, Q words, V values of a layer, M some spans of some rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.grammar import Grammar
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, LatentAnswer, choose
from mlm_lightning.data.languages.parse_trees import grow

_TINY = torch.finfo(torch.float64).tiny
_MAX_EXPONENT = 600.0  # beyond it, a split adds nothing, and its weight would overflow
Messages = dict[int, Tensor]
"""By the length of spans."""


class InsideOutside(LanguageOracle):
    """The answers about rows of one length of a grammar, given that length."""

    def __init__(self, grammar: Grammar, seq_len: int) -> None:
        num_rules, num_nonterminals = len(grammar.binary_R4), len(grammar.names)
        super().__init__(grammar.num_words, seq_len, seq_len**2 * num_nonterminals + 4 * seq_len * num_rules)
        parent_R, self.left_R, self.right_R = grammar.binary_R4[:, :3].long().T
        self.rule_RN = one_hot(parent_R, num_nonterminals) * grammar.binary_R4[:, 3:]
        self.grammar, self.word_NQ = grammar, grammar.word_NQ
        self.word_XN = torch.cat((grammar.word_NQ, grammar.word_NQ.sum(1, keepdim=True)), dim=1).T
        self.can_LN = torch.zeros(seq_len + 1, num_nonterminals, dtype=torch.bool)  # whether a nonterminal can have a length
        self.can_LN[1] = (grammar.word_NQ > 0).any(1)
        for n in range(2, seq_len + 1):
            may_KR = self.can_LN[1:n, self.left_R] & self.can_LN[1:n].flip(0)[:, self.right_R]
            self.can_LN[n, parent_R[may_KR.any(0)]] = True

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        nothing_1L = torch.full_like(evidence_BL[:1], self.num_symbols)  # its weight is that of the length
        return self._log_root(*self._inside(evidence_BL)) - self._log_root(*self._inside(nothing_1L))

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        inside, log = self._inside(evidence_BL)
        *_, (_, outside_BLN) = self._outside(inside, log)
        probs_BLQ = outside_BLN @ self.word_NQ
        return probs_BLQ / probs_BLQ.sum(2, keepdim=True), self._log_root(inside, log) > -torch.inf

    def _latents(self, evidence_BL: Tensor) -> LatentAnswer:
        """`split`, the length of the root's left part (0 where the row is one word); each layer's nonterminal above each word,
        or, where there are no layers, `parent`, the one directly above it."""
        (inside, log), seq_len = self._inside(evidence_BL), self.seq_len
        split_B1L = self.word_NQ.new_zeros(len(evidence_BL), 1, seq_len)
        split_B1L[..., 0] = seq_len == 1
        for k, rule_R, weight_BI1, left_BIR, right_BIR in self._parts(inside, log, seq_len, log[seq_len]):
            split_B1L[..., k] = (weight_BI1 * left_BIR * right_BIR) @ self.rule_RN[rule_R, 0]

        layers = {name: one_hot(value_N + 1)[:, 1:].to(self.word_NQ) for name, value_N in self.grammar.layers_N.items()}
        found = {name: self.word_NQ.new_zeros(*evidence_BL.shape, layer_NV.shape[1]) for name, layer_NV in layers.items()}
        for n, outside_BIN in self._outside(inside, log):
            belief_BIN = outside_BIN * inside[n]
            for name, layer_NV in layers.items():
                value_BIV = belief_BIN @ layer_NV
                for place in range(n):
                    found[name][:, place : seq_len - n + 1 + place] += value_BIV
        found = {"split": split_B1L} | (found or {"parent": belief_BIN})
        found = {name: probs_BNS / probs_BNS.sum(2, keepdim=True) for name, probs_BNS in found.items()}
        return found, self._log_root(inside, log) > -torch.inf

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        inside, log = self._inside(evidence_BL)
        num_rules = len(self.left_R)

        def choose_split(
            n: int, row_M: Tensor, start_M: Tensor, symbol_M: Tensor, u_M: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            weight_MKR = self.rule_RN.new_zeros(len(row_M), n - 1, num_rules)
            for k, rule_R, weight_BI1, left_BIR, right_BIR in self._parts(inside, log, n, log[n]):
                weight_MKR[:, k - 1, rule_R] = (weight_BI1 * left_BIR * right_BIR)[row_M, start_M]
            taken_M = choose((weight_MKR * self.rule_RN.T[symbol_M][:, None]).flatten(1), u_M)
            rule_M = taken_M % num_rules
            return taken_M // num_rules + 1, self.left_R[rule_M], self.right_R[rule_M]

        parent_BL = grow(keys_B, self.seq_len, evidence_BL.device, choose_split)[0].T.long()
        u_BL = self._uniform(keys_B, torch.arange(self.seq_len) * self.seq_len)
        return choose(self.word_NQ[parent_BL.clamp(min=0)], u_BL), self._log_root(inside, log) > -torch.inf

    def _inside(self, evidence_BL: Tensor) -> tuple[Messages, Messages]:
        """`inside_BIN`, and `log_BI`, the logarithm of what they are to be multiplied by."""
        inside, log = Messages(), Messages()
        whole_BIN = self.word_XN[evidence_BL]
        log_BI = torch.zeros_like(whole_BIN[..., 0])
        for n in range(1, self.seq_len + 1):
            if n > 1:
                log_BI = torch.stack([_log_parts(log, n, k) for k in range(1, n)]).amax(0)
                rules_BIR = log_BI.new_zeros(*log_BI.shape, len(self.rule_RN))
                for _, rule_R, weight_BI1, left_BIR, right_BIR in self._parts(inside, log, n, log_BI):
                    rules_BIR[..., rule_R] += weight_BI1 * left_BIR * right_BIR
                whole_BIN = rules_BIR @ self.rule_RN
            most_BI = whole_BIN.amax(2)
            inside[n], log[n] = whole_BIN / most_BI.clamp(min=_TINY)[..., None], log_BI + most_BI.log()
        return inside, log

    def _outside(self, inside: Messages, log: Messages) -> Iterator[tuple[int, Tensor]]:
        """From the longest spans to the words, their length and `outside_BIN`: times the inside, it is the belief."""
        outside = {n: torch.zeros_like(inside_BIN) for n, inside_BIN in inside.items()}
        outside[self.seq_len][:, 0, 0] = 1 / inside[self.seq_len][:, 0, 0]
        for n in range(self.seq_len, 1, -1):
            yield n, outside[n]
            above_BIR = outside[n] @ self.rule_RN.T
            for k, rule_R, weight_BI1, left_BIR, right_BIR in self._parts(inside, log, n, log[n]):
                parent_BIR = weight_BI1 * above_BIR[..., rule_R]
                outside[k][:, : parent_BIR.shape[1]].index_add_(2, self.left_R[rule_R], parent_BIR * right_BIR)
                outside[n - k][:, k:].index_add_(2, self.right_R[rule_R], parent_BIR * left_BIR)
        yield 1, outside[1]

    def _parts(
        self, inside: Messages, log: Messages, n: int, log_BI: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
        """For each split k of spans of n words: the rules that they may have there, the weight beside a scale `log_BI`, and the
        messages of both parts, `left_BIR` and `right_BIR`."""
        log_BI = log_BI.masked_fill(log_BI == -torch.inf, torch.inf)
        for k in range(1, n):
            (rule_R,) = (self.can_LN[k, self.left_R] & self.can_LN[n - k, self.right_R]).nonzero(as_tuple=True)
            if len(rule_R) > 0:
                weight_BI = (_log_parts(log, n, k) - log_BI).clamp(max=_MAX_EXPONENT).exp()
                left_BIR = inside[k][:, : log_BI.shape[1], self.left_R[rule_R]]
                right_BIR = inside[n - k][:, k:, self.right_R[rule_R]]
                yield k, rule_R, weight_BI[..., None], left_BIR, right_BIR

    def _log_root(self, inside: Messages, log: Messages) -> Tensor:
        return inside[self.seq_len][:, 0, 0].log() + log[self.seq_len][:, 0]


def _log_parts(log: Messages, n: int, k: int) -> Tensor:
    """`log_BI` of the left and the right part together."""
    right_BI = log[n - k][:, k:]
    return log[k][:, : right_BI.shape[1]] + right_BI

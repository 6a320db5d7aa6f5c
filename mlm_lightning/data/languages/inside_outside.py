"""The exact posterior of hidden words under a grammar: messages from short spans to long ones, and back.

    inside    what a span's words say of the nonterminal above it        S          all splits k of a span, all rules A -> B C:
    outside   what all other words say of it                        ┌────┴────┐       in[A]   = Σ p · in_left[B] · in_right[C]
                                                                    NP        VP      out[B] += Σ p · out[A] · in_right[C]
    posterior of a word  ∝  Σ_A out[A] · p(A -> word)             ┌─┴─┐     ┌─┴─┐
    sample: from the root down, split and rule in                 the M     saw M
    proportion to  p · in_left[B] · in_right[C]                         k

Spans of one length and one split are worked on together, whatever their start. Each span's messages are divided by their
largest, whose logarithm is kept beside them, so that nothing underflows. Pairs of nonterminals that cannot be of some lengths,
or are of no use there, are left out: in a grammar of levels, most of them.

Source: Lari, Young, "The estimation of stochastic context-free grammars using the inside-outside algorithm", Computer Speech
and Language 1990, after Baker 1979. Shapes beyond those of `batch`: N nonterminals, P pairs (left, right) of any rule, R rules,
I of a nonterminal, S spans of a length by their start, K splits, M some spans of some rows, J layers. The batch is the last
dimension of all messages.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mlm_lightning.data.languages.grammar import Grammar
from mlm_lightning.data.languages.hidden import nonzero_flat
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, choose
from mlm_lightning.randomness import uniform

_TINY = torch.finfo(torch.float64).tiny
_MAX_EXPONENT = 600.0
"""Beyond it, what a split adds is too small to be told from 0 (and its factor would overflow)."""
_WEIGHTS = 2**20  # of splits and rules, that are chosen from at once

Choose = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of spans of a length, from the rows, starts and nonterminals of M of them and a random number each: the length of the left
part, and the nonterminals of both parts."""


def grow(keys_B: Tensor, seq_len: int, device: torch.device, choose_split: Choose) -> Tensor:
    """Trees from the root down: `symbol_LLB[length - 1, start, row]`, the nonterminal of each span, -1 where there is none. The
    number of a row's random numbers that a span takes is start · L + length - 1."""
    num_rows = len(keys_B)
    symbol_LC = torch.full((seq_len, seq_len * num_rows), -1, dtype=torch.int16, device=device)  # a cell: start · B + row
    symbol_LC[seq_len - 1, :num_rows] = 0
    for length in range(seq_len, 1, -1):
        cell_M = nonzero_flat(symbol_LC[length - 1, : (seq_len - length + 1) * num_rows] >= 0)
        if len(cell_M) == 0:
            continue
        start_M = cell_M // num_rows
        row_M = cell_M - start_M * num_rows
        u_M = uniform(keys_B.index_select(0, row_M.to(keys_B.device)), start_M * seq_len + length - 1).to(device)
        symbol_M = symbol_LC[length - 1].index_select(0, cell_M).long()
        split_M, left_M, right_M = choose_split(length, row_M, start_M, symbol_M, u_M)
        size = seq_len * num_rows
        symbol_LC.view(-1).scatter_(0, (split_M - 1) * size + cell_M, left_M.short())
        symbol_LC.view(-1).scatter_(0, (length - 1 - split_M) * size + cell_M + split_M * num_rows, right_M.short())
    return symbol_LC.view(seq_len, seq_len, num_rows)


@dataclass
class _Inside:
    """By length - 1 and start: `value_LSNB`, and `log_LSB`, the log of what it is to be multiplied by."""

    value_LSNB: Tensor
    log_LSB: Tensor

    def put(self, length: int, value_SNB: Tensor, log_SB: Tensor | float) -> None:
        scale_SB = value_SNB.amax(1)
        torch.div(value_SNB, scale_SB.clamp_min(_TINY)[:, None], out=self.value_LSNB[length - 1, : len(value_SNB)])
        self.log_LSB[length - 1, : len(value_SNB)] = scale_SB.log_().add_(log_SB)

    def log_parts(self, length: "_Length") -> Tensor:
        """`log_KSB` of the left and the right parts together, of the spans of a length at its splits."""
        length_L, _, num_rows = self.log_LSB.shape
        left_K1 = torch.tensor([k for k, *_ in length.splits], device=self.log_LSB.device)[:, None]
        start_S = torch.arange(length_L - length.length + 1, device=self.log_LSB.device)
        left_KS = (left_K1 - 1) * length_L + start_S
        right_KS = (length.length - left_K1 - 1) * length_L + left_K1 + start_S
        left_ZB, right_ZB = (self.log_LSB.flatten(0, 1).index_select(0, z_KS.flatten()) for z_KS in (left_KS, right_KS))
        return left_ZB.add_(right_ZB).view(*left_KS.shape, num_rows)


_Split = tuple[int, Tensor | None, Tensor, Tensor]
"""The length of the left part, which of the length's pairs may stand there (None: all), and both sides of those."""


@dataclass
class _Length:
    """What spans of a length may consist of: `pair_P` at some split."""

    length: int
    pair_P: Tensor
    splits: list[_Split]

    def to(self, device: torch.device) -> "_Length":
        splits = [
            (k, None if place_P is None else place_P.to(device), left_P.to(device), right_P.to(device))
            for k, place_P, left_P, right_P in self.splits
        ]
        return _Length(self.length, self.pair_P.to(device), splits)


class InsideOutside(LanguageOracle):
    """The answers about rows of one length of a grammar, given that length."""

    def __init__(self, grammar: Grammar, seq_len: int) -> None:
        num_symbols = len(grammar.names)
        super().__init__(grammar.num_words, seq_len, row_elements=seq_len**2 * num_symbols // 4 + 1)
        self._grammar, self._num_nonterminals = grammar, num_symbols
        parent_R, left_R, right_R = grammar.binary_R4[:, :3].long().T
        pair_P, pair_R = (left_R * num_symbols + right_R).unique(return_inverse=True)
        self._left_P, self._right_P = pair_P // num_symbols, pair_P % num_symbols
        rule_PN = torch.zeros(len(pair_P), num_symbols, dtype=torch.float64)
        self._rule_PN = rule_PN.index_put_((pair_R, parent_R), grammar.binary_R4[:, 3], accumulate=True)
        self._rule_NP = self._rule_PN.T.contiguous()
        self._word_NQ = grammar.word_NQ
        self._word_XN = torch.cat((grammar.word_NQ, grammar.word_NQ.sum(1, keepdim=True)), dim=1).T.contiguous()

    @cached_property
    def _lengths(self) -> list[_Length]:
        """Those of spans from 2 on."""
        can_LN = torch.zeros(self.seq_len, self._num_nonterminals, dtype=torch.bool)
        can_LN[0] = (self._word_NQ > 0).any(1).cpu()
        left_P, right_P, rule_PN = self._left_P.cpu(), self._right_P.cpu(), self._rule_PN.cpu() > 0
        can_KP = []
        for length in range(2, self.seq_len + 1):
            can_KP.append(can_LN[: length - 1, left_P] & can_LN[: length - 1, right_P].flip(0))
            can_LN[length - 1] = (can_KP[-1].any(0)[:, None] & rule_PN).any(0)
        useful_LN = torch.zeros_like(can_LN)
        useful_LN[-1, 0] = True
        found = []
        for length in range(self.seq_len, 1, -1):
            may_KP = can_KP[length - 2] & (rule_PN & useful_LN[length - 1]).any(1)
            pair_P = may_KP.any(0).nonzero()[:, 0]
            splits: list[_Split] = []
            for k in may_KP.any(1).nonzero()[:, 0].tolist():
                place_P = may_KP[k, pair_P].nonzero()[:, 0]
                left, right = left_P[pair_P[place_P]], right_P[pair_P[place_P]]
                useful_LN[k, left] = True
                useful_LN[length - k - 2, right] = True
                splits.append((k + 1, None if len(place_P) == len(pair_P) else place_P, left, right))
            found.append(_Length(length, pair_P, splits))
        return found[::-1]

    @cached_property
    def _log_total(self) -> float:
        """Of the probability of the length."""
        nothing_1L = torch.full((1, self.seq_len), self.num_symbols, device=self._word_XN.device)
        return float(self._log_root(self._inside(nothing_1L)))

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return self._log_root(self._inside(said_BL)) - self._log_total

    def _posterior(self, said_BL: Tensor) -> Answer:
        inside = self._inside(said_BL)
        (_, outside_LNB) = deque(self._outside(inside), maxlen=1).pop()
        probs_BLQ = (self._word_NQ.T @ outside_LNB).permute(2, 0, 1)
        total_BL1 = probs_BLQ.sum(-1, keepdim=True)
        possible_BL1 = (total_BL1 > 0) | (said_BL < self.num_symbols)[..., None]
        return probs_BLQ / total_BL1, possible_BL1.all(1)[:, 0] & (self._log_root(inside) > -torch.inf)

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`split`, the length of the root's left part (0 where the row is one word); each layer's nonterminal above each word,
        or, where there are no layers, `parent`, the one directly above it."""
        inside, layers = self._inside(said_BL), self._grammar.layers
        value_JN = self._grammar.layers_JN.to(said_BL.device)
        sizes = [1 + max(layer.values()) for layer in layers.values()]
        one_hots = [torch.nn.functional.one_hot(v + 1, n + 1)[:, 1:].T.double() for v, n in zip(value_JN, sizes, strict=True)]
        # what begins at a position, less what has ended before it: the sums up to a position are what covers it
        changes = [inside.log_LSB.new_zeros(self.seq_len + 1, n, len(said_BL)) for n in sizes]
        for length, outside_SNB in self._outside(inside):
            belief_SNB = outside_SNB * inside.value_LSNB[length - 1, : len(outside_SNB)]
            for change_LVB, one_hot_VN in zip(changes, one_hots, strict=True):
                covers_SVB = one_hot_VN @ belief_SNB
                change_LVB[: len(covers_SVB)] += covers_SVB
                change_LVB[length:] -= covers_SVB
        found = {"split": self._split(inside)}
        if layers:
            found |= {name: each[:-1].cumsum(0).clamp_(min=0) for name, each in zip(layers, changes, strict=True)}
        else:
            found["parent"] = belief_SNB
        possible_B = self._log_root(inside) > -torch.inf
        for name, belief_NVB in found.items():
            total_N1B = belief_NVB.sum(1, keepdim=True)
            possible_B &= (total_N1B > 0).all(0)[0]
            found[name] = (belief_NVB / total_N1B).permute(2, 0, 1).contiguous()
        return found, possible_B

    def _split(self, inside: _Inside) -> Tensor:
        """The weights of the root's splits, `split_1LB`."""
        length = self.seq_len
        split_1LB = inside.log_LSB.new_zeros(1, length, inside.log_LSB.shape[2])
        if length == 1:
            return split_1LB + 1
        last = self._lengths[-1].to(split_1LB.device)
        weight_KB = _weights(inside.log_parts(last))[0][:, 0]
        for (k, place_P, left_P, right_P), weight_B in zip(last.splits, weight_KB, strict=True):
            both_PB = inside.value_LSNB[k - 1, 0, left_P] * inside.value_LSNB[length - k - 1, k, right_P]
            pair_P = last.pair_P if place_P is None else last.pair_P[place_P]
            split_1LB[0, k] = self._rule_PN[pair_P, 0] @ both_PB * weight_B
        return split_1LB

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        inside, length_L = self._inside(said_BL), self.seq_len
        left_NI, right_NI, prob_NI = (table_NI.to(said_BL.device) for table_NI in self._grammar.rules_of_NI)
        num_rules = left_NI.shape[1]

        def choose_some(length: int, row_M: Tensor, start_M: Tensor, symbol_M: Tensor, u_M: Tensor) -> tuple[Tensor, ...]:
            k_K, start_M1, row_M1 = torch.arange(1, length, device=row_M.device), start_M[:, None], row_M[:, None]
            left, right = (k_K - 1, start_M1), (length - k_K - 1, start_M1 + k_K)
            log_KM = (inside.log_LSB[*left, row_M1] + inside.log_LSB[*right, row_M1]).T
            left_MKI, right_MKI = (
                inside.value_LSNB[*part, :, row_M1].gather(2, table_NI[symbol_M][:, None].expand(-1, length - 1, -1))
                for part, table_NI in ((left, left_NI), (right, right_NI))
            )
            weight_MKI = left_MKI * right_MKI * prob_NI[symbol_M][:, None] * _weights(log_KM)[0].T[..., None]
            taken_M = choose(weight_MKI.flatten(1), u_M)
            rule_M = taken_M % num_rules
            return taken_M // num_rules + 1, left_NI[symbol_M, rule_M], right_NI[symbol_M, rule_M]

        def choose_split(length: int, *spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            size = max(1, _WEIGHTS // (length * max(num_rules, self._num_nonterminals)))
            parts = [choose_some(length, *some) for some in zip(*(each_M.split(size) for each_M in spans), strict=True)]
            split_M, left_M, right_M = (torch.cat(each) for each in zip(*parts, strict=True))
            return split_M, left_M, right_M

        parent_BL = grow(keys_B, length_L, said_BL.device, choose_split)[0].T.long()
        u_BL = uniform(keys_B[:, None], torch.arange(length_L) * length_L).to(said_BL.device)
        return choose(self._word_NQ[parent_BL.clamp_(min=0)], u_BL), self._log_root(inside) > -torch.inf

    def _inside(self, said_BL: Tensor) -> _Inside:
        num_rows, length_L = said_BL.shape
        value_LSNB = self._word_NQ.new_zeros(length_L, length_L, self._num_nonterminals, num_rows)
        inside = _Inside(value_LSNB, value_LSNB.new_full((length_L, length_L, num_rows), -torch.inf))
        inside.put(1, self._word_XN[said_BL].permute(1, 2, 0), 0.0)
        for each in self._lengths:
            length, num_starts = each.length, length_L - each.length + 1
            if len(each.pair_P) == 0:
                continue
            each = each.to(said_BL.device)
            told_SPB = value_LSNB.new_zeros(num_starts, len(each.pair_P), num_rows)
            weight_KSB, most_SB = _weights(inside.log_parts(each))
            for (k, place_P, left_P, right_P), weight_SB in zip(each.splits, weight_KSB, strict=True):
                left_SPB = value_LSNB[k - 1, :num_starts].index_select(1, left_P).mul_(weight_SB[:, None])
                right_SPB = value_LSNB[length - k - 1, k : k + num_starts].index_select(1, right_P)
                if place_P is None:
                    told_SPB.addcmul_(left_SPB, right_SPB)
                else:
                    told_SPB.index_add_(1, place_P, left_SPB.mul_(right_SPB))
            inside.put(length, self._rule_NP[:, each.pair_P] @ told_SPB, most_SB)
        return inside

    def _log_root(self, inside: _Inside) -> Tensor:
        return inside.value_LSNB[-1, 0, 0].log() + inside.log_LSB[-1, 0]

    def _outside(self, inside: _Inside) -> Iterator[tuple[int, Tensor]]:
        """From the longest spans to the words, `outside_SNB`: times the inside, it is the posterior of the span's symbol."""
        value_LSNB, length_L = inside.value_LSNB, self.seq_len
        outside_LSNB = torch.zeros_like(value_LSNB)
        outside_LSNB[-1, 0, 0] = 1 / value_LSNB[-1, 0, 0].clamp_min(_TINY)
        for length in range(length_L, 0, -1):
            num_starts = length_L - length + 1
            outside_SNB = outside_LSNB[length - 1, :num_starts]
            yield length, outside_SNB
            if length == 1:
                return
            each = self._lengths[length - 2]
            if len(each.pair_P) == 0:
                continue
            each = each.to(value_LSNB.device)
            log_SB = inside.log_LSB[length - 1, :num_starts]
            factor_KSB = inside.log_parts(each).sub_(log_SB.masked_fill(log_SB == -torch.inf, torch.inf))
            factor_KSB.clamp_(max=_MAX_EXPONENT).exp_()
            told_SPB = self._rule_PN[each.pair_P] @ outside_SNB
            for (k, place_P, left_P, right_P), factor_SB in zip(each.splits, factor_KSB, strict=True):
                some_SPB = told_SPB if place_P is None else told_SPB.index_select(1, place_P)
                some_SPB = some_SPB * factor_SB[:, None]
                right = (length - k - 1, slice(k, k + num_starts))
                to_left_SPB = value_LSNB[right].index_select(1, right_P).mul_(some_SPB)
                to_right_SPB = value_LSNB[k - 1, :num_starts].index_select(1, left_P).mul_(some_SPB)
                outside_LSNB[k - 1, :num_starts].index_add_(1, left_P, to_left_SPB)
                outside_LSNB[right].index_add_(1, right_P, to_right_SPB)


def _weights(log_KSB: Tensor) -> tuple[Tensor, Tensor]:
    """What splits are to be multiplied by, and the log of what all of them were divided by."""
    most_SB = log_KSB.amax(0)
    most_SB = most_SB.masked_fill(most_SB == -torch.inf, 0.0)
    return (log_KSB - most_SB).exp_(), most_SB

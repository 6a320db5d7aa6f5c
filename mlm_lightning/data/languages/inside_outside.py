"""The exact posterior of hidden words under a grammar: messages from short spans to long ones, and back.

    inside    what a span's words say of the nonterminal above it        S          all splits k of a span, all rules A -> B C:
    outside   what all other words say of it                        ┌────┴────┐       in[A]   = Σ p · in_left[B] · in_right[C]
                                                                    NP        VP      out[B] += Σ p · out[A] · in_right[C]
    posterior of a word  ∝  Σ_A out[A] · p(A -> word)             ┌─┴─┐     ┌─┴─┐
    sample: from the root down, split and rule in                 the M     saw M
    proportion to  p · in_left[B] · in_right[C]                         k

For each pair B C that a rule has, all spans of one length and all their splits are worked on together (`span_plan`). Where
messages become small, those of a span are divided by their largest, whose logarithm is kept.

Source: Lari, Young, "The estimation of stochastic context-free grammars using the inside-outside algorithm", Computer Speech
and Language 1990, after Baker 1979. Shapes beyond those of `span_plan` and `batch`: I rules of a nonterminal, J layers, M some
spans of some rows. The batch is the last dimension of all messages.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from mlm_lightning.data.languages.grammar import Grammar
from mlm_lightning.data.languages.hidden import nonzero_flat
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, choose
from mlm_lightning.data.languages.span_plan import Length, SpanPlan
from mlm_lightning.randomness import uniform

_TINY = torch.finfo(torch.float64).tiny
_SMALL = 1e-75
"""A span whose messages are all smaller has them scaled: products of two others are far from underflow."""
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


class _Inside:
    """`value_CB`, and `log_SLB`, by start and length - 1: the log of what a span's messages are to be multiplied by, 0 (-inf
    where nothing is possible) before any are `scaled`."""

    def __init__(self, plan: SpanPlan, said_BL: Tensor) -> None:
        num_rows, length_L = said_BL.shape
        self.value_CB = torch.zeros(plan.num_cells, num_rows, dtype=torch.float64, device=said_BL.device)
        self.log_SLB = self.value_CB.new_full((length_L, length_L, num_rows), -torch.inf)
        self.scaled = False

    def put(self, at: Length, value_ASB: Tensor, log_SB: Tensor | float = 0.0) -> None:
        most_SB = value_ASB.amax(0)
        small_SB = (most_SB < _SMALL) & (most_SB > 0)
        if small_SB.any():
            scale_SB = torch.where(small_SB, most_SB, 1.0)
            value_ASB /= scale_SB
            log_SB = scale_SB.log_().add_(log_SB)
            self.scaled = True
        self.log_SLB[: len(most_SB), at.length - 1] = torch.where(most_SB > 0, log_SB, -torch.inf)
        self.value_CB[at.cell_AS.flatten()] = value_ASB.flatten(0, 1)

    def log_parts(self, at: Length) -> Tensor:
        """`log_KSB` of the left and the right parts together, at all splits."""
        left_KSB, right_KSB = at.whole.parts(self.log_SLB.flatten(0, 1), at.num_starts)
        return left_KSB + right_KSB


class InsideOutside(LanguageOracle):
    """The answers about rows of one length of a grammar, given that length."""

    def __init__(self, grammar: Grammar, seq_len: int) -> None:
        self._plan = SpanPlan.of(grammar, seq_len)
        super().__init__(grammar.num_words, seq_len, row_elements=2 * self._plan.num_cells)
        self._grammar, self._word_NQ = grammar, grammar.word_NQ
        self._word_XN = torch.cat((grammar.word_NQ, grammar.word_NQ.sum(1, keepdim=True)), dim=1).T.contiguous()

    @cached_property
    def _log_total(self) -> float:
        """Of the probability of the length."""
        nothing_1L = torch.full((1, self.seq_len), self.num_symbols, device=self._word_XN.device)
        return float(self._log_root(self._inside(nothing_1L)))

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return self._log_root(self._inside(said_BL)) - self._log_total

    def _posterior(self, said_BL: Tensor) -> Answer:
        inside = self._inside(said_BL)
        at, outside_ALB = deque(self._outside(inside), maxlen=1).pop()
        probs_BLQ = _times(self._word_NQ[at.symbol_A].T, outside_ALB).permute(2, 1, 0)
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
        changes = [inside.value_CB.new_zeros(n, self.seq_len + 1, len(said_BL)) for n in sizes]
        for at, outside_ASB in self._outside(inside):
            belief_ASB = outside_ASB * inside.value_CB[at.cell_AS]
            for change_VLB, one_hot_VN in zip(changes, one_hots, strict=True):
                covers_VSB = _times(one_hot_VN[:, at.symbol_A], belief_ASB)
                change_VLB[:, : covers_VSB.shape[1]] += covers_VSB
                change_VLB[:, at.length :] -= covers_VSB
        found = {"split": self._split(inside)}
        if layers:
            found |= {name: each[:, :-1].cumsum(1).clamp_(min=0) for name, each in zip(layers, changes, strict=True)}
        else:
            parent_NLB = belief_ASB.new_zeros(len(self._word_NQ), *belief_ASB.shape[1:])
            found["parent"] = parent_NLB.index_copy_(0, at.symbol_A, belief_ASB)
        possible_B = self._log_root(inside) > -torch.inf
        for name, belief_VLB in found.items():
            total_LB = belief_VLB.sum(0)
            possible_B &= (total_LB > 0).all(0)
            found[name] = (belief_VLB / total_LB).permute(2, 1, 0).contiguous()
        return found, possible_B

    def _split(self, inside: _Inside) -> Tensor:
        """The weights of the root's splits, `split_K1B`; number 0 is for a row of one word."""
        split_K1B = inside.value_CB.new_zeros(self.seq_len, 1, inside.value_CB.shape[1])
        if self.seq_len == 1:
            return split_K1B + 1
        root = self._plan.lengths[-1]
        for pair, prob, both_KSB in zip(root.pairs, root.rule_AP[0].tolist(), _both(inside, root)[0], strict=True):
            pair.at_splits(split_K1B[1:]).add_(both_KSB, alpha=prob)
        return split_K1B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        inside, length_L = self._inside(said_BL), self.seq_len
        left_NI, right_NI, prob_NI = (table_NI.to(said_BL.device) for table_NI in self._grammar.rules_of_NI)
        num_rules, plan = left_NI.shape[1], self._plan

        def choose_some(length: int, row_M: Tensor, start_M: Tensor, symbol_M: Tensor, u_M: Tensor) -> tuple[Tensor, ...]:
            k_K, start_M1, row_M1 = torch.arange(1, length, device=row_M.device), start_M[:, None], row_M[:, None]
            left, right = (k_K, start_M1), (length - k_K, start_M1 + k_K)
            left_log_MK, right_log_MK = (inside.log_SLB[start, length_K - 1, row_M1] for length_K, start in (left, right))
            left_MKI, right_MKI = (
                inside.value_CB[plan.cell(length_K[:, None], table_NI[symbol_M][:, None], start[..., None]), row_M1[..., None]]
                for (length_K, start), table_NI in ((left, left_NI), (right, right_NI))
            )
            weight_MKI = (
                left_MKI * right_MKI * prob_NI[symbol_M][:, None] * _weights((left_log_MK + right_log_MK).T)[0].T[..., None]
            )
            taken_M = choose(weight_MKI.flatten(1), u_M)
            rule_M = taken_M % num_rules
            return taken_M // num_rules + 1, left_NI[symbol_M, rule_M], right_NI[symbol_M, rule_M]

        def choose_split(length: int, *spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            size = max(1, _WEIGHTS // (length * num_rules))
            parts = [choose_some(length, *some) for some in zip(*(each_M.split(size) for each_M in spans), strict=True)]
            split_M, left_M, right_M = (torch.cat(each) for each in zip(*parts, strict=True))
            return split_M, left_M, right_M

        parent_BL = grow(keys_B, length_L, said_BL.device, choose_split)[0].T.long()
        u_BL = uniform(keys_B[:, None], torch.arange(length_L) * length_L).to(said_BL.device)
        return choose(self._word_NQ[parent_BL.clamp_(min=0)], u_BL), self._log_root(inside) > -torch.inf

    def _inside(self, said_BL: Tensor) -> _Inside:
        plan = self._plan = self._plan.to(said_BL.device)
        inside = _Inside(plan, said_BL)
        first = plan.lengths[0]
        inside.put(first, self._word_XN[:, first.symbol_A][said_BL].permute(2, 1, 0))
        for each in plan.lengths[1:]:
            told, log_SB = _both(inside, each)
            told_PSB = inside.value_CB.new_empty(len(each.pairs), each.num_starts, len(said_BL))
            for told_SB, both_KSB in zip(told_PSB, told, strict=True):
                torch.sum(both_KSB, 0, out=told_SB)
            inside.put(each, _times(each.rule_AP, told_PSB), log_SB)
        return inside

    def _log_root(self, inside: _Inside) -> Tensor:
        return inside.value_CB[self._plan.lengths[-1].cell_AS[0, 0]].log() + inside.log_SLB[0, -1]

    def _outside(self, inside: _Inside) -> Iterator[tuple[Length, Tensor]]:
        """From the longest spans to the words, `outside_ASB`: times the inside, it is the posterior of the span's symbol."""
        plan, outside_CB = self._plan, torch.zeros_like(inside.value_CB)
        root = plan.lengths[-1].cell_AS[0, 0]
        outside_CB[root] = 1 / inside.value_CB[root].clamp_min(_TINY)
        for each in reversed(plan.lengths):
            yield each, (outside_ASB := outside_CB[each.cell_AS])
            told_PSB, factor_KSB = _times(each.rule_AP.T, outside_ASB), None
            if inside.scaled:
                log_SB = inside.log_SLB[: each.num_starts, each.length - 1]
                factor_KSB = inside.log_parts(each).sub_(log_SB.masked_fill(log_SB == -torch.inf, torch.inf))
                factor_KSB.clamp_(max=_MAX_EXPONENT).exp_()
            for pair, told_SB in zip(each.pairs, told_PSB, strict=True):
                told_KSB = told_SB if factor_KSB is None else told_SB * pair.at_splits(factor_KSB)
                left_KSB, right_KSB = pair.parts(inside.value_CB, each.num_starts)
                to_left_KSB, to_right_KSB = pair.parts(outside_CB, each.num_starts)
                to_left_KSB.addcmul_(told_KSB, right_KSB)
                to_right_KSB.addcmul_(told_KSB, left_KSB)


def _both(inside: _Inside, at: Length) -> tuple[Iterator[Tensor], Tensor | float]:
    """Of each pair, `both_KSB`: the left times the right part, up to a factor whose logarithm is given."""
    weight_KSB, log_SB = _weights(inside.log_parts(at)) if inside.scaled else (None, 0.0)

    def products() -> Iterator[Tensor]:
        for pair in at.pairs:
            left_KSB, right_KSB = pair.parts(inside.value_CB, at.num_starts)
            both_KSB = left_KSB * right_KSB
            yield both_KSB if weight_KSB is None else both_KSB.mul_(pair.at_splits(weight_KSB))

    return products(), log_SB


def _times(matrix: Tensor, value_ASB: Tensor) -> Tensor:
    return (matrix @ value_ASB.flatten(1)).unflatten(1, value_ASB.shape[1:])


def _weights(log_KSB: Tensor) -> tuple[Tensor, Tensor]:
    """What splits are to be multiplied by, and the log of what all of them were divided by."""
    most_SB = log_KSB.amax(0)
    most_SB = most_SB.masked_fill(most_SB == -torch.inf, 0.0)
    return (log_KSB - most_SB).exp_(), most_SB

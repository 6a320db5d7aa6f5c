"""Where the messages of inside-outside lie, so that all spans of a length and all their splits are one product of two views.

    row     i ─────────────────► i + n           split k:   left   (B, length k)      start i
            ├── B ──┼──── C ────┤                           right  (C, length n - k)  start i + k

A nonterminal has a table of cells, start · width + length - shortest, and a cell has a message for each row of the batch. From
one k to the next, the left part is 1 cell farther and the right one width - 1; from one start to the next, both are width
farther: strided views. Lengths that a nonterminal cannot have in any row have no cells, but for those between two that it can
have: in a grammar of levels, most of them have none.

Shapes beyond those of `batch`: N nonterminals, of which a length has A; R rules, P pairs (left, right) of any of them, X
some pairs; S spans of a length, by their start; K splits; C cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlm_lightning.data.languages.grammar import Grammar


class Part(NamedTuple):
    """The left or the right parts of spans: the cell of the first, and how far away those of the next split and start are."""

    cell: int
    next_split: int
    next_start: int

    def view(self, table_CB: Tensor, num_splits: int, num_starts: int) -> Tensor:
        """`part_KSB`, of the whole of a table."""
        num_rows = table_CB.shape[1]
        stride = (self.next_split * num_rows, self.next_start * num_rows, 1)
        return table_CB.as_strided((num_splits, num_starts, num_rows), stride, self.cell * num_rows)


class Pair(NamedTuple):
    """The splits, from `split` on, at which spans of a length have a pair."""

    left: Part
    right: Part
    split: int
    num_splits: int

    def parts(self, table_CB: Tensor, num_starts: int) -> tuple[Tensor, Tensor]:
        """`left_KSB` and `right_KSB`, views of the whole of a table."""
        return self.left.view(table_CB, self.num_splits, num_starts), self.right.view(table_CB, self.num_splits, num_starts)

    def at_splits(self, weight_KSB: Tensor) -> Tensor:
        """Of something that all splits of the length have."""
        return weight_KSB[self.split - 1 : self.split - 1 + self.num_splits]


@dataclass
class Length:
    """What spans of a length are, `symbol_A`, in which cells, and what they consist of: `whole` is of a table that has each
    length at each start."""

    length: int
    symbol_A: Tensor
    cell_AS: Tensor
    rule_AP: Tensor
    pairs: Sequence[Pair]
    whole: Pair

    @property
    def num_starts(self) -> int:
        return self.cell_AS.shape[1]

    def to(self, device: torch.device) -> "Length":
        symbol_A, cell_AS, rule_AP = (each.to(device) for each in (self.symbol_A, self.cell_AS, self.rule_AP))
        return Length(self.length, symbol_A, cell_AS, rule_AP, self.pairs, self.whole)


@dataclass
class SpanPlan:
    """`lengths`, those that a part of a row can have, from 1 on; `first_LN`, by length - 1 and nonterminal, the cell at start
    0, or -1; and `width_N`. The last cell is no span's."""

    lengths: list[Length]
    first_LN: Tensor
    width_N: Tensor
    num_cells: int

    @classmethod
    def of(cls, grammar: Grammar, seq_len: int) -> "SpanPlan":
        num_symbols = len(grammar.names)
        parent_R, left_R, right_R = grammar.binary_R4[:, :3].long().T
        pair_P, pair_R = (left_R * num_symbols + right_R).unique(return_inverse=True)
        left_P, right_P = pair_P // num_symbols, pair_P % num_symbols
        rule_NP = torch.zeros(num_symbols, len(pair_P), dtype=torch.float64)
        rule_NP.index_put_((parent_R, pair_R), grammar.binary_R4[:, 3], accumulate=True)
        useful_LN, may = _useful(grammar.word_NQ, left_P, right_P, rule_NP > 0, seq_len)

        lengths_L1 = torch.arange(seq_len)[:, None]
        shortest_N = torch.where(useful_LN, lengths_L1, seq_len).amin(0)
        width_N = (torch.where(useful_LN, lengths_L1, -1).amax(0) - shortest_N + 1).clamp_(min=0)
        number_N = width_N * (seq_len - shortest_N)
        first_LN = torch.where(useful_LN, number_N.cumsum(0) - number_N + lengths_L1 - shortest_N, -1)

        lengths = []
        for length in useful_LN.any(1).nonzero()[:, 0].tolist():
            symbol_A = useful_LN[length].nonzero()[:, 0]
            cell_AS = first_LN[length, symbol_A, None] + width_N[symbol_A, None] * torch.arange(seq_len - length)
            pair_X = may[length].any(0).nonzero()[:, 0]
            may_KX = may[length][:, pair_X].int()
            first_X, last_X = may_KX.argmax(0), length - 1 - may_KX.flip(0).argmax(0)
            left_X, right_X = left_P[pair_X], right_P[pair_X]
            left_cell_X = first_LN[first_X, left_X]
            right_cell_X = first_LN[length - 1 - first_X, right_X] + (first_X + 1) * width_N[right_X]
            columns = (left_cell_X, width_N[left_X], right_cell_X, width_N[right_X], first_X + 1, last_X - first_X + 1)
            pairs = [
                Pair(Part(left_cell, 1, left), Part(right_cell, right - 1, right), split, num_splits)
                for left_cell, left, right_cell, right, split, num_splits in torch.stack(columns, 1).tolist()
            ]
            whole = Pair(Part(0, 1, seq_len), Part(seq_len + length - 1, seq_len - 1, seq_len), 1, length)
            lengths.append(Length(length + 1, symbol_A, cell_AS, rule_NP[symbol_A][:, pair_X], pairs, whole))
        return cls(lengths, first_LN, width_N, int(number_N.sum()) + 1)

    def to(self, device: torch.device) -> "SpanPlan":
        if self.width_N.device == device:
            return self
        lengths = [each.to(device) for each in self.lengths]
        return SpanPlan(lengths, self.first_LN.to(device), self.width_N.to(device), self.num_cells)

    def cell(self, length: Tensor, symbol: Tensor, start: Tensor) -> Tensor:
        first = self.first_LN[length - 1, symbol]
        return torch.where(first < 0, self.num_cells - 1, first + start * self.width_N[symbol])


def _useful(word_NQ: Tensor, left_P: Tensor, right_P: Tensor, rule_NP: Tensor, seq_len: int) -> tuple[Tensor, list[Tensor]]:
    """Which nonterminals can have a length and be part of a row; of each length, `may_KP`, at which splits which pairs can."""
    can_LN = torch.zeros(seq_len, len(word_NQ), dtype=torch.bool)
    can_LN[0] = (word_NQ > 0).any(1)
    may = [torch.zeros(1, len(left_P), dtype=torch.bool)]  # a word has no splits
    for length in range(1, seq_len):
        may.append(can_LN[:length, left_P] & can_LN[:length, right_P].flip(0))
        can_LN[length] = (may[-1].any(0) & rule_NP).any(1)
    useful_LN = torch.zeros_like(can_LN)
    useful_LN[-1, 0] = True
    for length in range(seq_len - 1, 0, -1):
        may[length] &= (rule_NP & useful_LN[length][:, None]).any(0)
        split_X, pair_X = may[length].nonzero(as_tuple=True)
        useful_LN[split_X, left_P[pair_X]] = True
        useful_LN[length - 1 - split_X, right_P[pair_X]] = True
    return useful_LN, may

"""What a codeword's visible tokens say about the others: Gaussian elimination modulo p, on all rows of a block at once.

    x_given  +  rest · x_free  =  0               a check a line; those whose given place is hidden tell only that place, and
                                                  those whose given place is visible tell of hidden free ones:
       1 .   |  2  .  1   = 0      x_given seen   ┐
       . 1   |  1  2  .   = 0      x_given seen   ┴ pivots are chosen here
       ────────────────────────
           1 |  .  1  1   = 0      hidden           is reduced with them

What is left of a line says whether its token is certain: where no unknown without a pivot remains. All others are uniform.

Numbers are residues around 0, and exact in float32: products are below 2^14 and their sums below 2^24.
Shapes beyond those of `batch`: C checks, K free places, M hidden free places (columns), X = M + 1 with the right side. The
batch is the last dimension of tables (CXB).
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle
from mlm_lightning.data.languages.oracle import Answer
from mlm_lightning.randomness import uniform


@dataclass(frozen=True, eq=False)
class Reduced:
    """The checks of a block of rows, reduced; columns and tables with the rows in the order `order_B`."""

    said_BL: Tensor
    order_B: Tensor
    back_B: Tensor
    """Undoes `order_B`."""
    column_BM: Tensor
    """The free place of each column; K where a row has fewer hidden ones."""
    table_CXB: Tensor
    pivot_MB: Tensor
    """The check that gives a column; C where none does."""
    possible_B: Tensor


class CodeOracle(HiddenOracle):
    """Each hidden token is certain, or uniform."""

    def __init__(self, num_symbols: int, given_C: Tensor, free_K: Tensor, rest_CK: Tensor) -> None:
        num_checks, num_free = rest_CK.shape
        seq_len = num_checks + num_free
        super().__init__(num_symbols, seq_len, row_elements=num_checks * (num_free + 1) + seq_len * (num_symbols + 1))
        self._given_C, self._free_K, self._rest_CK = given_C, free_K, rest_CK
        inverse = [0, *(pow(value, -1, num_symbols) for value in range(1, num_symbols))]
        self._inverse_P = self._centred_(torch.tensor(inverse, dtype=torch.float32))  # at -1, -2 … too, as an index

    def _centred_(self, values: Tensor) -> Tensor:
        """The residues of least absolute value, in place."""
        return values.sub_((values * (1 / self.num_symbols)).round_(), alpha=self.num_symbols)

    def _reduced(self, said_BL: Tensor) -> Reduced:
        count_B = (said_BL[:, self._free_K] == self.num_symbols).sum(1)
        count_B, order_B = count_B.sort(descending=True)  # a step then concerns the first rows of the block
        hidden_BL = said_BL[order_B] == self.num_symbols
        hidden_BK, num_checks = hidden_BL[:, self._free_K], len(self._given_C)
        row_N, place_N = hidden_BK.nonzero(as_tuple=True)
        widest, num_free = int(count_B.max()), len(self._free_K)
        column_BM = torch.full((len(said_BL), widest), num_free, device=said_BL.device)
        column_BM[row_N, hidden_BK.cumsum(1)[row_N, place_N] - 1] = place_N
        rest_CY = torch.nn.functional.pad(self._rest_CK, (0, 1))  # no place: 0
        column_XB = torch.nn.functional.pad(column_BM.T, (0, 0, 0, 1), value=num_free)
        table_CXB = rest_CY.index_select(1, column_XB.flatten()).view(num_checks, widest + 1, len(said_BL))
        told_LB = said_BL[order_B].masked_fill(hidden_BL, 0).T.float()
        table_CXB[:, -1] = self._centred_(-told_LB[self._given_C] - self._rest_CK @ told_LB[self._free_K])
        seen_CB = ~hidden_BL.T[self._given_C]
        pivot_MB = torch.full((widest, len(said_BL)), num_checks, device=said_BL.device)
        steps = torch.arange(widest, device=said_BL.device)
        for step, num_rows in enumerate((count_B > steps[:, None]).sum(1).tolist()):
            pivot_MB[step, :num_rows] = self._eliminate_(step, table_CXB[..., :num_rows], seen_CB[:, :num_rows])
        back_B = order_B.argsort()
        possible_B = ~(seen_CB & (table_CXB[:, -1] != 0)).any(0)[back_B]
        return Reduced(said_BL, order_B, back_B, column_BM, table_CXB, pivot_MB, possible_B)

    def _eliminate_(self, step: int, table_CXB: Tensor, open_CB: Tensor) -> Tensor:
        """Makes a check the pivot of a column, one of those that are `open_CB`, and takes the column out of all others. Returns
        the pivots' checks, C where there is none."""
        num_checks, width, _ = table_CXB.shape
        column_CB = table_CXB[:, step]
        found_B, check_B = (open_CB & (column_CB != 0)).byte().max(0)
        found_1B, check_1B = found_B.bool()[None], check_B[None]
        entry_1B = column_CB.gather(0, check_1B)
        line_XB = table_CXB.gather(0, check_1B[None].expand(1, width, -1))[0]
        pivot_XB = self._centred_(line_XB * self._inverse_P[entry_1B.long()])
        # its own line: line - (entry - 1) · pivot = pivot
        factor_CB = column_CB.scatter(0, check_1B, entry_1B - 1) * found_1B
        self._centred_(table_CXB.addcmul_(factor_CB[:, None], pivot_XB, value=-1))
        open_CB.scatter_(0, check_1B, open_CB.gather(0, check_1B) & ~found_1B)
        return check_B.masked_fill(~found_1B[0], num_checks)

    def _tokens(self, system: Reduced, value_CB: Tensor, chosen_MB: Tensor) -> Tensor:
        """`tokens_BL`, if checks give `value_CB`, and columns without a pivot hold `chosen_MB`."""
        column_MB = self._of_columns(system, value_CB, chosen_MB)
        tokens_BL = self._placed(system, value_CB, column_MB).long().remainder_(self.num_symbols)
        return torch.where(system.said_BL == self.num_symbols, tokens_BL, system.said_BL)

    def _of_columns(self, system: Reduced, value_CB: Tensor, otherwise_MB: Tensor) -> Tensor:
        """What the pivots of the columns hold."""
        num_checks = len(self._given_C)
        value_MB = value_CB.gather(0, system.pivot_MB.clamp(max=num_checks - 1))
        return torch.where(system.pivot_MB < num_checks, value_MB, otherwise_MB)

    def _placed(self, system: Reduced, given_CB: Tensor, column_MB: Tensor) -> Tensor:
        """Values of given places and of columns, each where its token is."""
        num_rows, num_free = len(system.order_B), len(self._free_K)
        free_BY = column_MB.new_zeros(num_rows, num_free + 1).scatter_(1, system.column_BM, column_MB.T)
        placed_BL = column_MB.new_empty(num_rows, self.seq_len)
        placed_BL[:, self._given_C] = given_CB.T
        placed_BL[:, self._free_K] = free_BY[:, :-1]
        return placed_BL[system.back_B]

    def _beliefs(self, system: Reduced) -> tuple[Tensor, Tensor]:
        """`certain_BL`, and `tokens_BL` where they are."""
        loose_CB = (system.table_CXB[:, :-1] != 0).sum(1)
        certain_MB = self._of_columns(system, loose_CB, torch.full_like(system.pivot_MB, 2)) == 1  # its own column alone
        certain_BL = self._placed(system, loose_CB == 0, certain_MB) | (system.said_BL < self.num_symbols)
        return certain_BL, self._tokens(system, system.table_CXB[:, -1], torch.zeros_like(system.pivot_MB).float())

    def _probs(self, certain: Tensor, tokens: Tensor) -> Tensor:
        """All on the token, or on all symbols alike, in a last dimension."""
        share = certain.double()[..., None]
        other = (1 - share) / self.num_symbols
        return other.expand(*tokens.shape, self.num_symbols).scatter(-1, tokens[..., None], other + share)

    def _hidden(self, said_BL: Tensor, row_N: Tensor, place_N: Tensor) -> Answer:
        system = self._reduced(said_BL)
        probs_NQ = self._probs(*(each_BL[row_N, place_N] for each_BL in self._beliefs(system)))
        return torch.nn.functional.pad(probs_NQ, (0, 1)), system.possible_B

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        """Of K uniform tokens, those that are seen, and those that are given by what is seen."""
        system = self._reduced(said_BL)
        num_free, num_checks = len(self._free_K), len(self._given_C)
        told_B = (system.pivot_MB < num_checks).sum(0) + num_free - (system.column_BM < num_free).sum(1)
        log_prob_B = told_B[system.back_B].double() * -log(self.num_symbols)
        return log_prob_B.masked_fill_(~system.possible_B, -torch.inf)

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        system = self._reduced(said_BL)
        u_BK = uniform(keys_B[:, None], self._free_K).to(said_BL.device)
        free_BY = torch.nn.functional.pad(u_BK.mul_(self.num_symbols).floor_().float(), (0, 1))[system.order_B]
        chosen_MB = free_BY.gather(1, system.column_BM).T.where(system.pivot_MB == len(self._given_C), 0.0)
        value_CB = system.table_CXB[:, -1] - (system.table_CXB[:, :-1] * chosen_MB).sum(1)
        return self._tokens(system, value_CB, chosen_MB), system.possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        system = self._reduced(said_BL)
        probs_BKQ = self._probs(*(each_BL[:, self._free_K] for each_BL in self._beliefs(system)))
        return {"message": probs_BKQ}, system.possible_B

"""What a codeword's visible tokens say about the others: Gaussian elimination modulo p, on all rows of a block at once.

    x_given  +  rest · x_free  =  0               a check a line; those whose given place is hidden tell only that place, and
                                                  those whose given place is visible tell of hidden free ones:
       1 .   |  2  .  1   = 0      x_given seen   ┐
       . 1   |  1  2  .   = 0      x_given seen   ┴ pivots are chosen here
       ────────────────────────
           1 |  .  1  1   = 0      hidden           is reduced with them

What is left of a line says whether its token is certain: where no unknown without a pivot remains. All others are uniform.

Numbers are residues around 0, and exact in float32: products are below 2^14 and their sums below 2^24.
Shapes beyond those of `batch`: R rows of a block, C checks, K free places, M hidden free places (columns), X = M + 1 with the
right side. The rows are the last dimension of tables (CXR).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle, nonzero_flat
from mlm_lightning.data.languages.oracle import Answer
from mlm_lightning.randomness import uniform

_CACHED = {"cpu": 2**17, "cuda": 2**25}
"""Elements (of 4 bytes) of a table of some rows: on a CPU it stays in cache."""
_LEAST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Reduced:
    """The checks of some rows, reduced."""

    rows_R: Tensor
    free_YR: Tensor
    """What is told at free places, p where nothing is; and 0 at Y = K, no place."""
    given_CR: Tensor
    """The same at given places."""
    column_MR: Tensor
    """The free place of each column; K where a row has fewer hidden ones."""
    table_CXR: Tensor
    pivot_MR: Tensor
    """The check that gives a column; C where none does."""
    possible_R: Tensor


class CodeOracle(HiddenOracle):
    """Each hidden token is certain, or uniform."""

    def __init__(self, num_symbols: int, given_C: Tensor, free_K: Tensor, rest_CK: Tensor) -> None:
        num_checks, num_free = rest_CK.shape
        seq_len = num_checks + num_free
        super().__init__(num_symbols, seq_len, row_elements=num_checks * (num_free + 1) + seq_len * (num_symbols + 1))
        self._free_K, self._rest_CK, self._num_checks = free_K, rest_CK, num_checks
        self._order_L = torch.cat((free_K, given_C))
        self._place_L = self._order_L.argsort()
        self._rank_C1 = torch.arange(num_checks, 0, -1, dtype=torch.float32)[:, None]
        inverse = [0, *(pow(value, -1, num_symbols) for value in range(1, num_symbols))]
        self._inverse_P = self._centred_(torch.tensor(inverse, dtype=torch.float32))  # at -1, -2 … too, as an index
        self._uniform_1V = torch.full((1, num_symbols + 1), 1 / num_symbols, dtype=torch.float64)
        self._uniform_1V[0, -1] = 0.0

    def _centred_(self, values: Tensor) -> Tensor:
        """The residues of least absolute value, in place."""
        return values.sub_((values * (1 / self.num_symbols)).round_(), alpha=self.num_symbols)

    def _systems(self, said_BL: Tensor) -> Iterator[Reduced]:
        """Some rows at a time: those with as many hidden free places, so that tables are as narrow as can be, and small enough
        to stay in the processor's cache."""
        hidden_BL = torch.eq(said_BL, self.num_symbols, out=torch.empty_like(said_BL))
        count_B, order_B = hidden_BL.index_select(1, self._free_K).sum(1).sort(descending=True, stable=True)
        said_BL, widths, start = said_BL.index_select(0, order_B), count_B.tolist(), 0
        while start < len(widths):
            size = max(_LEAST_ROWS, _CACHED[said_BL.device.type] // (self._num_checks * (widths[start] + 1)))
            some = slice(start, start + size)
            said_LR = said_BL[some].T.float().index_select(0, self._order_L)
            yield self._reduced(order_B[some], said_LR, count_B[some])
            start += size

    def _reduced(self, rows_R: Tensor, said_LR: Tensor, count_R: Tensor) -> Reduced:
        """`said_LR`: of free places first. `count_R`: how many of those are hidden, in descending order; a step then concerns
        the first rows."""
        num_rows, num_checks, num_free, widest = len(rows_R), self._num_checks, len(self._free_K), int(count_R[0])
        told_LR = said_LR * _is(torch.ne, said_LR, self.num_symbols)
        column_RM = torch.full((num_rows, widest), num_free, device=said_LR.device)
        cell_N = nonzero_flat((said_LR[:num_free] == self.num_symbols).T)
        row_N = cell_N.div(num_free, rounding_mode="floor")
        rank_N = torch.arange(len(cell_N), device=cell_N.device) - (count_R.cumsum(0) - count_R)[row_N]
        column_RM.view(-1)[row_N * widest + rank_N] = cell_N - row_N * num_free
        column_MR = column_RM.T.contiguous()
        rest_CY = torch.nn.functional.pad(self._rest_CK, (0, 1))  # no place: 0
        column_XR = torch.nn.functional.pad(column_MR, (0, 0, 0, 1), value=num_free)
        table_CXR = rest_CY.index_select(1, column_XR.flatten()).view(num_checks, widest + 1, num_rows)
        table_CXR[:, -1] = self._centred_(torch.addmm(told_LR[num_free:], self._rest_CK, told_LR[:num_free]).neg_())
        free_YR, given_CR = torch.nn.functional.pad(said_LR[:num_free], (0, 0, 0, 1)), said_LR[num_free:]
        open_CR = _is(torch.ne, given_CR, self.num_symbols).mul_(self._rank_C1)
        pivot_MR = torch.full((widest, num_rows), num_checks, device=said_LR.device)
        steps_M1 = torch.arange(widest, device=said_LR.device)[:, None]
        for step, num_concerned in enumerate((count_R > steps_M1).sum(1).tolist()):
            part = slice(num_concerned)
            # of the columns before, a pivot's line has none: theirs were taken out, or no open check had any
            pivot_MR[step, part] = self._eliminate_(table_CXR[:, step:, part], open_CR[:, part])
        possible_R = (open_CR * table_CXR[:, -1]).abs_().amax(0) == 0
        return Reduced(rows_R, free_YR, given_CR, column_MR, table_CXR, pivot_MR, possible_R)

    def _eliminate_(self, table_CXR: Tensor, open_CR: Tensor) -> Tensor:
        """Makes a check the pivot of the first column, and takes the column out of all others: the one of the highest rank of
        those that are open, whose ranks are `open_CR` (0: not open). Returns the pivots' checks, C where there is none."""
        num_checks, width, _ = table_CXR.shape
        column_CR = table_CXR[:, 0]
        rank_1R = _is(torch.ne, column_CR, 0).mul_(open_CR).amax(0, keepdim=True)
        pivot_1R = num_checks - rank_1R.long()
        check_1R = pivot_1R.clamp(max=num_checks - 1)
        entry_1R = column_CR.gather(0, check_1R)
        line_XR = table_CXR.gather(0, check_1R[None].expand(1, width, -1))[0]
        # where there is none, the line is 0
        pivot_XR = self._centred_(line_XR.mul_(self._inverse_P.take(entry_1R.long()).mul_(rank_1R.clamp(max=1))))
        factor_CR = column_CR.scatter(0, check_1R, entry_1R - 1)  # its own line: line - (entry - 1) · pivot = pivot
        self._centred_(table_CXR.addcmul_(factor_CR[:, None], pivot_XR, value=-1))
        open_CR.mul_(_is(torch.ne, open_CR, rank_1R))
        return pivot_1R[0]

    def _of_columns(self, system: Reduced, value_CR: Tensor, otherwise: Tensor | float) -> Tensor:
        """What the pivots of the columns hold."""
        value_MR = value_CR.gather(0, system.pivot_MR.clamp(max=self._num_checks - 1))
        return torch.where(system.pivot_MR < self._num_checks, value_MR, otherwise)

    def _index(self, system: Reduced) -> Tensor:
        """`index_LR`: the token, where it is certain, and p where it is uniform."""
        loose_CR = _is(torch.ne, system.table_CXR[:, :-1], 0).sum(1)
        value_CR = system.table_CXR[:, -1].remainder(self.num_symbols)
        certain_MR = self._of_columns(system, loose_CR, 2.0) == 1  # its own column alone
        column_MR = torch.where(certain_MR, self._of_columns(system, value_CR, 0.0), float(self.num_symbols))
        return self._tokens(system, value_CR + (self.num_symbols - value_CR) * (loose_CR != 0), column_MR)

    def _tokens(self, system: Reduced, given_CR: Tensor, column_MR: Tensor) -> Tensor:
        """What is told, and where it is not, what its check or its column says."""
        free_YR = system.free_YR.scatter(0, system.column_MR, column_MR)
        hidden_CR = _is(torch.eq, system.given_CR, self.num_symbols)
        given_CR = system.given_CR.addcmul(hidden_CR, given_CR - self.num_symbols)
        return torch.cat((free_YR[:-1], given_CR)).index_select(0, self._place_L)

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = [(self._index(system).T.int(), system.possible_R, system.rows_R) for system in self._systems(said_BL)]
        index_BL, possible_B, rows_B = (torch.cat(each) for each in zip(*parts, strict=True))
        back_B = rows_B.argsort()
        return index_BL.index_select(0, back_B), self._uniform_1V, possible_B[back_B]

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        """Of K uniform tokens, those that are seen, and those that are given by what is seen."""
        log_prob_B = torch.empty(len(said_BL), dtype=torch.float64, device=said_BL.device)
        for system in self._systems(said_BL):
            num_hidden_R = (system.column_MR < len(self._free_K)).sum(0)
            told_R = (system.pivot_MR < self._num_checks).sum(0) + len(self._free_K) - num_hidden_R
            log_prob_R = told_R.double() * -log(self.num_symbols)
            log_prob_B[system.rows_R] = log_prob_R.masked_fill_(~system.possible_R, -torch.inf)
        return log_prob_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        u_BK = uniform(keys_B[:, None], self._free_K).to(said_BL.device)
        free_BY = torch.nn.functional.pad(u_BK.mul_(self.num_symbols).floor_().float(), (0, 1))
        tokens_BL, possible_B = said_BL.clone(), torch.empty(len(said_BL), dtype=torch.bool, device=said_BL.device)
        for system in self._systems(said_BL):
            drawn_MR = free_BY[system.rows_R].T.gather(0, system.column_MR).where(system.pivot_MR == self._num_checks, 0.0)
            value_CR = system.table_CXR[:, -1] - (system.table_CXR[:, :-1] * drawn_MR).sum(1)
            value_CR.remainder_(self.num_symbols)
            drawn_LR = self._tokens(system, value_CR, self._of_columns(system, value_CR, drawn_MR))
            tokens_BL[system.rows_R], possible_B[system.rows_R] = drawn_LR.T.long(), system.possible_R
        return tokens_BL, possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        index_BL, probs_1V, possible_B = self._hidden(said_BL)
        probs_BKV = torch.cat((self._one_hot_VV[:-1], probs_1V))[index_BL.index_select(1, self._free_K)]
        return {"message": probs_BKV[..., :-1].contiguous()}, possible_B


def _is(compare: Callable[..., Tensor], values: Tensor, other: Tensor | float) -> Tensor:
    """1 and 0 as numbers of the same kind: booleans take several times as long."""
    return compare(values, other, out=torch.empty_like(values))

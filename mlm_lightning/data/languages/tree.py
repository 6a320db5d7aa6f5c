"""A row is the leaves of a random tree: every symbol branches into a pair of symbols by the rules of one fixed grammar.

    level 0               2                  the root, uniform                      a rule of the grammar
                 ┌────────┴────────┐
    level 1      0                 3                                                   a ─► (b, c)
             ┌───┴───┐         ┌───┴───┐                                      with probability M[a, b, c];
    level 2  1       3         3       0                                      each pair has one possible parent
           ┌─┴─┐   ┌─┴─┐     ┌─┴─┐   ┌─┴─┐
    tokens 2   2   0   1     3   3   1   2   the 2^depth leaves, left to right

The filter level k cuts long-range correlations. Given the root, the 2^k nodes of level k are drawn independently, each from
its own marginal given the root; below them the tree branches as before:

    k = 1        2           k = 2 = depth - 1           2             k = 0: the full hierarchy
             ·  ·  ·                            ·    ·    ·    ·       k = depth: independent leaves, given the root
            0       3                         1     3     3     0
           ┌┴┐     ┌┴┐                       ┌┴┐   ┌┴┐   ┌┴┐   ┌┴┐
           1 3     3 0                       2 2   0 1   3 3   1 2

Source: Garnier-Brun, Mézard, Moscato, Saglietti, "How transformers learn structured data: insights from hierarchical
filtering", ICML 2025, arXiv 2408.15138.

Shapes beyond those of `batch`: Q symbols (also the rules of a symbol), N nodes of a level.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.grammar import Grammar
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SyntheticSource
from mlm_lightning.data.languages.tree_oracle import TreeOracle
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked

MAX_DEPTH = 16
MAX_SIGMA = 1e6
MAX_TABLE = 2**24  # num_symbols² · 2^depth: entries of the sampler's largest table, floats that the oracle needs for one row
SIGMA = "it is the spread of the log-probabilities of a symbol's rules, such as 1.0 (0: all alike)"
_CHUNK = 2**17  # random numbers that are worked on at once: they stay in the processor's cache


class AliasTable:
    """Draws from many distributions over q outcomes, each with one uniform number and one comparison.

    The q cells of a distribution are equally wide; the share below its cut is the cell's own outcome, the rest its alias's:

        u·q  =  cell + rest        rest < cut[cell]  ?  cell  :  alias[cell]

    Source: Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 1977.
    `outcomes[row, i]` is what outcome i of a row's distribution stands for: a number, or a pair of them.
    """

    def __init__(self, probs_RQ: Tensor, outcomes_RQ: Tensor) -> None:
        cut_RQ, alias_RQ = self._build(probs_RQ)
        aliases_RQ = outcomes_RQ[torch.arange(len(alias_RQ))[:, None], alias_RQ]
        self._cut = cut_RQ.flatten()
        self._outcomes = torch.stack((outcomes_RQ, aliases_RQ), dim=2).flatten(0, 2)

    def draw(self, first_cell: Tensor, cell: Tensor, rest: Tensor) -> Tensor:
        """The outcomes, given u·q as `cell` and `rest`, in the distributions whose rows start at `first_cell` = row · q."""
        cell = first_cell + cell
        above = rest >= self._cut[cell]
        return self._outcomes[cell.mul_(2).add_(above)]

    @staticmethod
    def _build(probs_RQ: Tensor) -> tuple[Tensor, Tensor]:
        # the emptiest open cell is filled up by the fullest one and closed; the mean of the open cells stays 1
        num_rows, q = probs_RQ.shape
        row_R = torch.arange(num_rows)
        mass_RQ = probs_RQ * q
        open_RQ = torch.ones_like(mass_RQ, dtype=torch.bool)
        cut_RQ = torch.ones_like(mass_RQ)
        alias_RQ = torch.arange(q).repeat(num_rows, 1)
        for _ in range(q - 1):
            emptiest_R = mass_RQ.masked_fill(~open_RQ, torch.inf).argmin(1)
            open_RQ[row_R, emptiest_R] = False
            fullest_R = mass_RQ.masked_fill(~open_RQ, -torch.inf).argmax(1)
            own_R = mass_RQ[row_R, emptiest_R].clamp(0, 1)
            cut_RQ[row_R, emptiest_R] = own_R
            alias_RQ[row_R, emptiest_R] = fullest_R
            mass_RQ[row_R, fullest_R] -= 1 - own_R
        return cut_RQ, alias_RQ


class TreeSource(SyntheticSource):
    """Rows of 2^`depth` leaves of the grammar of `grammar_seed`; `filter_level` is k. `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        depth: Annotated[int, Interval(ge=1, le=MAX_DEPTH), "a row has 2^depth tokens"] = 4,
        num_symbols: NumSymbols = 4,
        sigma: Annotated[float, Interval(ge=0, le=MAX_SIGMA), SIGMA] = 1.0,
        filter_level: Annotated[int, Ge(0), "it is a level of the tree"] = 0,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if num_symbols**2 << depth > MAX_TABLE:
            deepest = (MAX_TABLE // num_symbols**2).bit_length() - 1
            problem = f"with data.num_symbols={num_symbols}, num_symbols² · 2^depth is above {MAX_TABLE}, for lack of memory"
            raise ConfigError("data.depth", depth, problem, f"use data.depth={deepest} or less, or fewer symbols")
        if filter_level > depth:
            remedy = f"it is a level of the tree, from 0 (full hierarchy) to data.depth={depth} (independent leaves)"
            raise ConfigError("data.filter_level", filter_level, f"must be at most {depth}", remedy)
        self.depth, self.filter_level, self.grammar_seed, self.sigma = depth, filter_level, grammar_seed, float(sigma)
        self.grammar = Grammar(num_symbols, self.sigma, grammar_seed)
        self._rules = AliasTable(self.grammar.probs_QQ, self.grammar.children_QQ2)
        self._star: AliasTable | None = None

    @property
    def seq_len(self) -> int:
        return 2**self.depth

    def draw(self, keys_B: Tensor) -> Tensor:
        chunks = keys_B.split(max(1, _CHUNK >> self.depth))
        return torch.cat([self._draw_chunk(chunk_B) for chunk_B in chunks])

    def _draw_chunk(self, keys_B: Tensor) -> Tensor:
        """Position 0 of a row's random numbers is the root's symbol; position v the rule of the inner node v, in the numbering
        where the children of v are 2v and 2v + 1; position 2^depth + v, if k > 0, the symbol of the v-th node of level k."""
        q, num_filtered = self.num_symbols, 2**self.filter_level
        symbol_BN = uniform(keys_B, torch.tensor(0)).mul_(q).long()[:, None]
        num_positions = self.seq_len + (num_filtered if self.filter_level > 0 else 0)
        scaled_BN = uniform(keys_B[:, None], torch.arange(num_filtered, num_positions)).mul_(q)
        cell_BN = scaled_BN.long()
        rest_BN = scaled_BN.sub_(cell_BN)
        if self.filter_level > 0:
            first_cell_BN = (torch.arange(num_filtered) * q + symbol_BN) * q
            start = self.seq_len - num_filtered
            symbol_BN = self._star_table().draw(first_cell_BN, cell_BN[:, start:], rest_BN[:, start:])
        for level in range(self.filter_level, self.depth):
            nodes = slice(2**level - num_filtered, 2 ** (level + 1) - num_filtered)
            children_BN2 = self._rules.draw(symbol_BN * q, cell_BN[:, nodes], rest_BN[:, nodes])
            symbol_BN = children_BN2.flatten(1)
        return symbol_BN

    def _star_table(self) -> AliasTable:
        """Draws the nodes of level k given the root: the row of node v and root a is v·q + a. Built at the first use."""
        if self._star is None:
            probs_RQ = self.grammar.marginals_NQQ(self.filter_level).flatten(0, 1)
            self._star = AliasTable(probs_RQ, torch.arange(self.num_symbols).expand(len(probs_RQ), -1))
        return self._star

    def oracle(self) -> TreeOracle:
        return TreeOracle(self.grammar, self.depth, self.filter_level)

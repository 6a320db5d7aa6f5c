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

from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.synthetic import Errors, Language, NumSymbols, Sizes, language
from mlm_lightning.data.languages.upward_downward import UpwardDownward
from mlm_lightning.randomness import Stream, generator, uniform

MAX_DEPTH = 16
MAX_SIGMA = 1e6
MAX_TABLE = 2**24  # num_symbols² · 2^depth: entries of the sampler's largest table, floats that the oracle needs for one row
SIGMA = "it is the spread of the log-probabilities of a symbol's rules, such as 1.0 (0: all alike)"


class Grammar:
    """The rules: the q² pairs of symbols, dealt at random to the q symbols, q rules each.

    `children_QQ2[a, i]` is the pair of the i-th rule of symbol a, and `probs_QQ[a, i]` the rule's probability: a softmax over i
    of sigma·N(0, 1) draws. The same `grammar_seed` gives the same pairs and the same draws at every sigma.
    """

    def __init__(self, num_symbols: int, sigma: float, grammar_seed: int) -> None:
        self.num_symbols = q = num_symbols
        source = generator(grammar_seed, Stream.GRAMMAR)
        pairs_QQ = torch.randperm(q * q, generator=source).view(q, q)
        draws_QQ = torch.randn(q, q, generator=source, dtype=torch.float64)
        self.children_QQ2 = torch.stack((pairs_QQ // q, pairs_QQ % q), dim=-1)
        self.probs_QQ = (sigma * draws_QQ).softmax(dim=-1)

    @property
    def M(self) -> Tensor:
        """`M[a, b, c]`: the probability that a node with symbol a has the children (b, c); float64 of shape (q, q, q)."""
        q = self.num_symbols
        M = torch.zeros(q, q, q, dtype=torch.float64)
        M[torch.arange(q)[:, None], self.children_QQ2[..., 0], self.children_QQ2[..., 1]] = self.probs_QQ
        return M

    def marginals_NQQ(self, level: int) -> Tensor:
        """`[v, a, b]`: the probability that the v-th node of a level has symbol b, given the root a. It is the product, along
        the node's path, of the left or right marginals of `M`."""
        zeros_QQ = torch.zeros(self.num_symbols, self.num_symbols, dtype=torch.float64)
        left_QQ = zeros_QQ.scatter_add(1, self.children_QQ2[..., 0], self.probs_QQ)
        right_QQ = zeros_QQ.scatter_add(1, self.children_QQ2[..., 1], self.probs_QQ)
        paths_NQQ = torch.eye(self.num_symbols, dtype=torch.float64)[None]
        for _ in range(level):
            paths_NQQ = torch.stack((paths_NQQ @ left_QQ, paths_NQQ @ right_QQ), dim=1).flatten(0, 1)
        return paths_NQQ


class AliasTable:
    """Draws from many distributions over q outcomes, each with one uniform number and one comparison.

    The q cells of a distribution are equally wide; the share below its cut is the cell's own outcome, the rest its alias's:

        u·q  =  cell + rest        rest < cut[cell]  ?  cell  :  alias[cell]

    Source: Walker, "An efficient method for generating discrete random variables with general distributions", ACM TOMS 1977.
    `outcomes[row, i]` is what outcome i of a row's distribution stands for: a number, or a pair of them.
    """

    def __init__(self, probs_RQ: Tensor, outcomes_RQ: Tensor) -> None:
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
            share_R = mass_RQ[row_R, emptiest_R].clamp(0, 1)
            cut_RQ[row_R, emptiest_R] = share_R
            alias_RQ[row_R, emptiest_R] = fullest_R
            mass_RQ[row_R, fullest_R] -= 1 - share_R
        self._cut = cut_RQ.flatten()
        self._outcomes = torch.stack((outcomes_RQ, outcomes_RQ[row_R[:, None], alias_RQ]), dim=2).flatten(0, 2)

    def draw(self, first_cell: Tensor, cell: Tensor, rest: Tensor) -> Tensor:
        """The outcomes, given u·q as `cell` and `rest`, in the distributions whose rows start at `first_cell` = row · q."""
        cell = first_cell + cell
        above = rest >= self._cut[cell]
        return self._outcomes[cell.mul_(2).add_(above)]


@language
class TreeSource(Language):
    """Rows of 2^`depth` leaves of the grammar of `grammar_seed`; `filter_level` is k. `seed` makes the rows alone."""

    depth: Annotated[int, Interval(ge=1, le=MAX_DEPTH), "a row has 2^depth tokens"] = 4
    num_symbols: NumSymbols = 4
    sigma: Annotated[float, Interval(ge=0, le=MAX_SIGMA), SIGMA] = 1.0
    filter_level: Annotated[int, Ge(0), "it is a level of the tree"] = 0
    grammar_seed: int = 0

    def errors(self) -> Errors:
        if self.num_symbols**2 << self.depth > MAX_TABLE:
            deepest = (MAX_TABLE // self.num_symbols**2).bit_length() - 1
            above = f"num_symbols² · 2^depth is above {MAX_TABLE}, for lack of memory"
            remedy = f"use data.depth={deepest} or less, or fewer symbols"
            yield self.error("depth", f"with data.num_symbols={self.num_symbols}, {above}", remedy)
        if self.filter_level > self.depth:
            remedy = f"it is a level of the tree, from 0 (full hierarchy) to data.depth={self.depth} (independent leaves)"
            yield self.error("filter_level", f"must be at most {self.depth}", remedy)

    @property
    def seq_len(self) -> int:
        return 2**self.depth

    @cached_property
    def grammar(self) -> Grammar:
        return Grammar(self.num_symbols, float(self.sigma), self.grammar_seed)

    @cached_property
    def _rules(self) -> AliasTable:
        return AliasTable(self.grammar.probs_QQ, self.grammar.children_QQ2)

    @cached_property
    def _star(self) -> AliasTable:
        """Draws the nodes of level k given the root: the row of node v and root a is v·q + a."""
        probs_RQ = self.grammar.marginals_NQQ(self.filter_level).flatten(0, 1)
        return AliasTable(probs_RQ, torch.arange(self.num_symbols).expand(len(probs_RQ), -1))

    def draw(self, keys_B: Tensor) -> Tensor:
        return self._draw_levels(keys_B)[self.depth]

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """The symbols of the nodes, `root` and `level_j`, as in `UpwardDownward`."""
        levels = self._draw_levels(keys_B)
        return {"root": levels[0], **{f"level_{level}": symbol_BN for level, symbol_BN in levels.items()}}

    def latent_sizes(self) -> Sizes:
        levels = [0, *range(max(1, self.filter_level), self.depth + 1)]
        return {name: (n, self.num_symbols) for name, n in [("root", 1), *((f"level_{j}", 2**j) for j in levels)]}

    def _draw_levels(self, keys_B: Tensor) -> dict[int, Tensor]:
        """The symbols of the root, of level k and of those below it, down to the leaves, by the level.

        Position 0 of a row's random numbers is the root's symbol; position v the rule of the inner node v, in the numbering
        where the children of v are 2v and 2v + 1; position 2^depth + v, if k > 0, the symbol of the v-th node of level k."""
        q, num_filtered = self.num_symbols, 2**self.filter_level
        symbol_BN = (uniform(keys_B, torch.tensor(0)) * q).long()[:, None]
        num_positions = self.seq_len + (num_filtered if self.filter_level > 0 else 0)
        scaled_BN = uniform(keys_B[:, None], torch.arange(num_filtered, num_positions)) * q
        levels = {0: symbol_BN}
        cell_BN = scaled_BN.long()
        rest_BN = scaled_BN - cell_BN
        if self.filter_level > 0:
            first_cell_BN = (torch.arange(num_filtered) * q + symbol_BN) * q
            start = self.seq_len - num_filtered
            symbol_BN = levels[self.filter_level] = self._star.draw(first_cell_BN, cell_BN[:, start:], rest_BN[:, start:])
        for level in range(self.filter_level, self.depth):
            nodes = slice(2**level - num_filtered, 2 ** (level + 1) - num_filtered)
            children_BN2 = self._rules.draw(symbol_BN * q, cell_BN[:, nodes], rest_BN[:, nodes])
            symbol_BN = levels[level + 1] = children_BN2.flatten(1)
        return levels

    def oracle(self) -> UpwardDownward:
        """Each symbol's rules by descending probability; where that is equal, in the order of the grammar."""
        probs_QQ, order_QQ = self.grammar.probs_QQ.sort(descending=True, stable=True)
        children_QQ2 = self.grammar.children_QQ2.gather(1, order_QQ[..., None].expand(-1, -1, 2))
        children_DSR = children_QQ2.flatten(0, 1).T.expand(self.depth - self.filter_level, -1, -1)
        star_NQQ = self.grammar.marginals_NQQ(self.filter_level)
        return UpwardDownward(children_DSR, probs_QQ.flatten(), star_NQQ, self.filter_level)

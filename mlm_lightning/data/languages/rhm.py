"""The random hierarchy model: a row is the leaves of a tree whose every node is rewritten into s children by a random rule.

    level 0             a                 the root, uniform               rules of one level (v symbols, m rules each, s = 2)
                 ┌──────┴──────┐
    level 1      c             b            a ─► c b | d a       all m rules of a symbol alike; every level
             ┌───┴───┐     ┌───┴───┐        b ─► a a | c d       has a table of its own
    tokens   3       0     1       1        …                    disjoint: no tuple belongs to two symbols

A symbol can be known only by the tuples that stand for it, and these are synonyms of each other that share no single token:
levels must be learned one after the other. More rules (`num_rules`, m) make it harder, and with m = v^(s-1) every row is
possible and there is nothing to learn. With `disjoint: false` tuples are drawn one by one, several symbols may share one, and
rows become ambiguous.

Source: Cagnetta, Petrini, Tomasini, Favero, Wyart, "How deep neural networks learn compositional data: the random hierarchy
model", PRX 2024, arXiv 2307.02129.

Shapes beyond those of `batch`: D levels of rules, R = v · m rules of a level, S children of a rule, N nodes of a level.
"""

from functools import cached_property
from math import log
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.synthetic import Errors, Language, NumSymbols, Sizes, language
from mlm_lightning.data.languages.upward_downward import UpwardDownward
from mlm_lightning.randomness import Stream, generator, uniform

MAX_LEAVES = 4096
MAX_RULES = 4096
MAX_WORK = 2**29
"""Of num_symbols · num_rules · branching^(depth + 1): products over rules for one row, where all of it is hidden."""
_PERMUTED = 2**22  # tuples up to which all of them are listed


def random_rules(num_symbols: int, num_rules: int, branching: int, disjoint: bool, source: torch.Generator) -> Tensor:
    """The children of one level's rules, `children_RS`, dealt to the symbols one by one: rule r is of symbol r // m."""
    count, shape = num_symbols * num_rules, (num_symbols * num_rules, branching)
    if not disjoint:
        return torch.randint(num_symbols, shape, generator=source)
    if num_symbols**branching <= _PERMUTED:
        code_R = torch.randperm(num_symbols**branching, generator=source)[:count]
        return code_R[:, None] // num_symbols ** torch.arange(branching) % num_symbols
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:  # at most a quarter of all tuples: soon
        found |= dict.fromkeys(map(tuple, torch.randint(num_symbols, shape, generator=source).tolist()))
    return torch.tensor(list(found)[:count])


@language
class RHMSource(Language):
    """Rows of branching^depth leaves of the rules of `grammar_seed`; `seed` makes the rows alone."""

    num_symbols: NumSymbols = 8
    num_rules: Annotated[int, Interval(ge=1, le=MAX_RULES), "each symbol has so many rules"] = 3
    branching: Annotated[int, Interval(ge=2, le=64), "a node has so many children"] = 2
    depth: Annotated[int, Interval(ge=1, le=12), "a row has branching^depth tokens"] = 4
    disjoint: bool = True
    grammar_seed: int = 0

    def errors(self) -> Errors:
        v, m, s, depth = self.num_symbols, self.num_rules, self.branching, self.depth
        if s**depth > MAX_LEAVES:
            deepest = max(each for each in range(1, depth) if s**each <= MAX_LEAVES)
            problem = f"with data.branching={s}, a row has more than {MAX_LEAVES} tokens, for lack of time"
            yield self.error("depth", problem, f"use data.depth={deepest} or less")
            depth = deepest
        if self.disjoint and m > v ** (s - 1):
            problem = f"{v} symbols have no {m} rules each without sharing one of the {v}^{s}"
            remedy = f"use data.num_rules={v ** (s - 1)} or less (with which every row is possible)"
            yield self.error("num_rules", problem, f"{remedy}, or data.disjoint=false")
        most = MAX_WORK // (v * s ** (depth + 1))
        if m > most:
            problem = f"num_symbols · num_rules · branching^(depth + 1) is above {MAX_WORK}, for lack of time"
            yield self.error("num_rules", problem, f"use data.num_rules={most} or less, or fewer symbols")

    @property
    def seq_len(self) -> int:
        return self.branching**self.depth

    @property
    def num_nodes(self) -> int:
        """Above the leaves."""
        return (self.seq_len - 1) // (self.branching - 1)

    @cached_property
    def children_DRS(self) -> Tensor:
        """The children of the rules of each level, those of a symbol one after the other."""
        source = generator(self.grammar_seed, Stream.GRAMMAR)
        sizes = (self.num_symbols, self.num_rules, self.branching, self.disjoint)
        return torch.stack([random_rules(*sizes, source) for _ in range(self.depth)])

    def draw(self, keys_B: Tensor) -> Tensor:
        return self._draw_levels(keys_B)[-1]

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """The symbols of the nodes, `root` and `level_j`, as in `UpwardDownward`."""
        levels = self._draw_levels(keys_B)
        return {"root": levels[0], **{f"level_{level}": symbol_BN for level, symbol_BN in enumerate(levels)}}

    def latent_sizes(self) -> Sizes:
        levels = {f"level_{level}": (self.branching**level, self.num_symbols) for level in range(self.depth + 1)}
        return {"root": levels["level_0"], **levels}

    def _draw_levels(self, keys_B: Tensor) -> list[Tensor]:
        """The symbols of each level, from the root to the leaves. Number 0 of a row is the root's, the others those of the
        nodes, level by level from left to right."""
        u_BN = uniform(keys_B[:, None], torch.arange(1 + self.num_nodes))
        levels, first = [(u_BN[:, :1] * self.num_symbols).long()], 1
        rule_BN = (u_BN * self.num_rules).long()
        for children_RS in self.children_DRS:
            num_nodes = levels[-1].shape[1]
            taken_BN = levels[-1] * self.num_rules + rule_BN[:, first : first + num_nodes]
            levels.append(children_RS[taken_BN].flatten(1))
            first += num_nodes
        return levels

    def oracle(self) -> UpwardDownward:
        num_rules = self.children_DRS.shape[1]
        weight_R = torch.full((num_rules,), 1 / self.num_rules, dtype=torch.float64)
        root_1QQ = torch.eye(self.num_symbols, dtype=torch.float64)[None]
        return UpwardDownward(self.children_DRS.mT, weight_R, root_1QQ)

    def entropy_rate(self) -> float | None:
        """Nats a token of a row: where rules are disjoint, a row has one tree, so that its probability is the tree's."""
        if not self.disjoint:
            return None
        return (log(self.num_symbols) + self.num_nodes * log(self.num_rules)) / self.seq_len

"""The random hierarchy model: a row is the leaves of a tree whose every node is rewritten into s children by a random rule.

    level 0             a                 the root, uniform               rules of one level (v symbols, m rules each, s = 2)
                 ┌──────┴──────┐
    level 1      c             b            a ─► c b | d a       all m rules of a symbol alike; every level
             ┌───┴───┐     ┌───┴───┐        b ─► a a | c d       has a table of its own
    tokens   3       0     1       1        …                    disjoint: no tuple belongs to two symbols

A symbol can be told only by the tuples that stand for it, and these are synonyms of each other that share no single token:
levels must be learned one after the other. More rules (`num_rules`, m) make it harder, and with m = v^(s-1) every row is
possible and nothing is to be seen. With `disjoint: false` tuples are drawn one by one, several symbols may share one, and rows
become ambiguous.

Source: Cagnetta, Petrini, Tomasini, Favero, Wyart, "How deep neural networks learn compositional data: the random hierarchy
model", PRX 2024, arXiv 2307.02129.

Shapes beyond those of `batch`: D levels of rules, R = v · m rules of a level, S children of a rule, N nodes of a level.
"""

from collections.abc import Iterable
from functools import partial
from itertools import product
from math import log
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.joint import Path, as_joint, check_size
from mlm_lightning.data.languages.rhm_oracle import RHMOracle
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError, refuse
from mlm_lightning.randomness import Stream, generator, uniform
from mlm_lightning.values import checked

MAX_LEAVES = 4096
MAX_RULES = 4096
MAX_WORK = 2**29
"""Of num_symbols · num_rules · branching^(depth + 1): products over rules for one row, where all of it is hidden."""
_PERMUTED = 2**22  # tuples up to which all of them are listed
_MAX_DERIVATIONS = 2**16
_CHUNK = 2**17  # random numbers that are worked on at once: they stay in the processor's cache


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


class RHMSource(SyntheticSource):
    """Rows of branching^depth leaves of the rules of `grammar_seed`; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        num_rules: Annotated[int, Interval(ge=1, le=MAX_RULES), "each symbol has so many rules"] = 3,
        branching: Annotated[int, Interval(ge=2, le=64), "a node has so many children"] = 2,
        depth: Annotated[int, Interval(ge=1, le=12), "a row has branching^depth tokens"] = 4,
        disjoint: bool = True,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        refuse(_too_large(num_symbols, num_rules, branching, depth, disjoint))
        self.num_rules, self.branching, self.depth, self.disjoint = num_rules, branching, depth, disjoint
        source = generator(grammar_seed, Stream.GRAMMAR)
        levels = [random_rules(num_symbols, num_rules, branching, disjoint, source) for _ in range(depth)]
        self.children_DRS = torch.stack(levels)

    @property
    def seq_len(self) -> int:
        return self.branching**self.depth

    @property
    def num_nodes(self) -> int:
        """Above the leaves."""
        return (self.seq_len - 1) // (self.branching - 1)

    def draw(self, keys_B: Tensor) -> Tensor:
        return torch.cat([self._draw_levels(chunk_B)[-1] for chunk_B in self._chunks(keys_B)])

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """The symbols of the nodes, `root` and `level_j`, as in `RHMOracle`."""
        chunks = [self._draw_levels(chunk_B) for chunk_B in self._chunks(keys_B)]
        found = {f"level_{level}": torch.cat(parts) for level, parts in enumerate(zip(*chunks, strict=True))}
        return {"root": found["level_0"], **found}

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        levels = {f"level_{level}": (self.branching**level, self.num_symbols) for level in range(self.depth + 1)}
        return {"root": levels["level_0"], **levels}

    def _chunks(self, keys_B: Tensor) -> tuple[Tensor, ...]:
        return keys_B.split(max(1, _CHUNK // (1 + self.num_nodes)))

    def _draw_levels(self, keys_B: Tensor) -> list[Tensor]:
        """The symbols of each level, from the root to the leaves. Number 0 of a row is the root's, the others those of the
        nodes, level by level from left to right."""
        u_BN = uniform(keys_B[:, None], torch.arange(1 + self.num_nodes))
        levels, first = [(u_BN[:, :1] * self.num_symbols).long()], 1
        rule_BN = u_BN.mul_(self.num_rules).long()
        for children_RS in self.children_DRS:
            num_nodes = levels[-1].shape[1]
            taken_BN = levels[-1] * self.num_rules + rule_BN[:, first : first + num_nodes]
            levels.append(children_RS.index_select(0, taken_BN.flatten()).view(len(keys_B), -1))
            first += num_nodes
        return levels

    def oracle(self) -> RHMOracle:
        return RHMOracle(self.children_DRS, self.num_symbols)

    def entropy_rate(self) -> float | None:
        """Nats a token of a row: where rules are disjoint, a row tells its tree, so that its probability is the tree's."""
        if not self.disjoint:
            return None
        return (log(self.num_symbols) + self.num_nodes * log(self.num_rules)) / self.seq_len

    def joint(self) -> Joint:
        """Every tree that grows from every root, level by level."""
        m, num_trees = self.num_rules, self.num_symbols * self.num_rules**self.num_nodes
        if num_trees > _MAX_DERIVATIONS:
            check_size(num_trees)
        trees: list[Path] = [(1 / self.num_symbols, [root], [[root]]) for root in range(self.num_symbols)]
        for rules in self.children_DRS.tolist():
            trees = [
                (weight / m ** len(symbols), below, [*levels, below])
                for weight, symbols, levels in trees
                for taken in product(range(m), repeat=len(symbols))
                for below in [[child for symbol, i in zip(symbols, taken, strict=True) for child in rules[symbol * m + i]]]
            ]
        check_size(len({tuple(leaves) for _, leaves, _ in trees}))
        latents = {f"level_{level}": partial(_level, level) for level in range(self.depth + 1)}
        return as_joint(trees, {"root": partial(_level, 0), **latents})


def _too_large(num_symbols: int, num_rules: int, branching: int, depth: int, disjoint: bool) -> Iterable[ConfigError]:
    if branching**depth > MAX_LEAVES:
        deepest = max(each for each in range(1, depth) if branching**each <= MAX_LEAVES)
        problem = f"with data.branching={branching}, a row has more than {MAX_LEAVES} tokens, for lack of time"
        yield ConfigError("data.depth", depth, problem, f"use data.depth={deepest} or less")
        depth = deepest
    if disjoint and num_rules > num_symbols ** (branching - 1):
        problem = f"{num_symbols} symbols have no {num_rules} rules each without sharing one of the {num_symbols}^{branching}"
        remedy = f"use data.num_rules={num_symbols ** (branching - 1)} or less (with which every row is possible)"
        yield ConfigError("data.num_rules", num_rules, problem, f"{remedy}, or data.disjoint=false")
    most = MAX_WORK // (num_symbols * branching ** (depth + 1))
    if num_rules > most:
        problem = f"num_symbols · num_rules · branching^(depth + 1) is above {MAX_WORK}, for lack of time"
        yield ConfigError("data.num_rules", num_rules, problem, f"use data.num_rules={most} or less, or fewer symbols")


def _level(level: int, levels: list[list[int]]) -> list[int]:
    return levels[level]

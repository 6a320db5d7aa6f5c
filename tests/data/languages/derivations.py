"""All trees that a grammar can grow, by plain loops: derivations of a number of words, and trees of levels.

S, 3 words       S -> A B:   A 1 word, B 2     A 2, B 1     each the product of what A and B can be
one level more   a b         every pair of what a and what b can become
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import prod
from typing import NamedTuple

from mlm_lightning.data.languages.grammar import quoted

MAX_TRIED = 2**17
"""Trees or sequences that are looked at, of which fewer may be possible, or different."""
Tree = tuple[float, list[list[int]]]
"""The probability of a tree, and the symbols of its levels, the root's first."""
Rules = Sequence[tuple[str, tuple[str | int, ...], float]]
"""Left side, right side (names of nonterminals, numbers of words), and the probability given the left side."""


def check_tried(count: int) -> None:
    if count > MAX_TRIED:
        raise ValueError(f"{count} trees or sequences are more than {MAX_TRIED}; choose a smaller language")


class Derivation(NamedTuple):
    weight: float
    words: list[int]
    split: int
    """The number of words of the first part of the right side; 0 where a word alone is the right side."""
    above: list[tuple[str, ...]]
    """The nonterminals above each word, from the top down."""


def derivations(rules: Rules, seq_len: int) -> list[Derivation]:
    """From the rules as they are written; the first left side is where rows start. ValueError where they are too many."""
    return _derive(rules, rules[0][0], seq_len, {})


def _derive(rules: Rules, symbol: str, length: int, known: dict[tuple[str, int], list[Derivation]]) -> list[Derivation]:
    """All ways in which a nonterminal gives so many words."""
    if (symbol, length) in known:
        return known[symbol, length]
    found: list[Derivation] = []
    for left, right, weight in rules:
        if left != symbol:
            continue
        if len(right) == 1:
            if length == 1:
                found.append(Derivation(weight, [int(right[0])], 0, [(symbol,)]))
            continue
        for lengths in _compositions(length, len(right)):
            parts = []
            for part, part_length in zip(right, lengths, strict=True):
                if isinstance(part, str):
                    parts.append(_derive(rules, part, part_length, known))
                else:
                    parts.append([Derivation(1.0, [part], 0, [(quoted(part),)])] if part_length == 1 else [])
            for chosen in product(*parts):
                words = [word for part in chosen for word in part.words]
                above = [(symbol, *names) for part in chosen for names in part.above]
                found.append(Derivation(weight * prod(part.weight for part in chosen), words, lengths[0], above))
            check_tried(len(found))
    known[symbol, length] = found
    return found


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut a length into parts of at least 1."""
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(end - start for start, end in zip((0, *cuts), (*cuts, total), strict=True))


def one_level_more(trees: list[Tree], children: list[list[tuple[float, list[int]]]]) -> list[Tree]:
    """All that trees become; `children` are the groups of children that each symbol may have, with their probabilities."""
    check_tried(sum(prod(len(children[parent]) for parent in levels[-1]) for _, levels in trees))
    grown: list[Tree] = []
    for weight, levels in trees:
        for chosen in product(*(children[parent] for parent in levels[-1])):
            below = [symbol for _, group in chosen for symbol in group]
            grown.append((weight * prod(prob for prob, _ in chosen), [*levels, below]))
    return grown


def filtered(M: list[list[list[float]]], root: int, k: int) -> Iterator[Tree]:
    """The trees of two levels, the root and level k, each node of which depends on the root alone."""
    nodes = [_at_node(M, root, node, k) for node in range(2**k)]
    check_tried(len(M) ** 2**k)
    for symbols in product(range(len(M)), repeat=2**k):
        weight = prod(given[symbol] for given, symbol in zip(nodes, symbols, strict=True))
        yield weight / len(M), [[root], list(symbols)]


def _at_node(M: list[list[list[float]]], root: int, node: int, level: int) -> list[float]:
    """The distribution of the symbol of a node of a level, given the root's; its path goes left or right at each level."""
    q = len(M)
    probs = [float(symbol == root) for symbol in range(q)]
    for bit in reversed(range(level)):
        below = [0.0] * q
        for a, b, c in product(range(q), repeat=3):
            below[c if node >> bit & 1 else b] += probs[a] * M[a][b][c]
        probs = below
    return probs

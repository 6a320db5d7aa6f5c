"""Every derivation of a grammar at one length, by plain recursion: what the inside-outside oracle is compared with.

S, 3 words     S -> A B:   A 1 word, B 2     A 2, B 1     each the product of what A and B can be
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, product
from math import prod
from typing import Any

from mlm_lightning.data.languages.grammar import Grammar, quoted
from mlm_lightning.data.languages.joint import Path, as_joint, check_size
from mlm_lightning.data.source import Joint

_MAX_DERIVATIONS = 2**17
_Known = dict[tuple[str, int], list[Path]]


def derivations(grammar: Grammar, seq_len: int) -> Joint:
    """From the rules as they are written. Latent variables as `InsideOutside` has them."""
    found = _derive(grammar.rules, grammar.rules[0][0], seq_len, {})
    check_size(len({tuple(words) for _, words, _ in found}))
    index = {name: number for number, name in enumerate(grammar.names)}
    layers = {name: partial(_in_layer, dict(layer)) for name, layer in grammar.layers.items()}
    return as_joint(found, {"split": _split, **(layers or {"parent": partial(_parent, index)})})


def _derive(rules: Sequence[tuple[str, tuple[str | int, ...], float]], symbol: str, length: int, known: _Known) -> list[Path]:
    """All ways in which a nonterminal gives so many words: the weight, the words, and as states, first the length of the first
    part, then the names of what stands above each word."""
    if (symbol, length) in known:
        return known[symbol, length]
    found: list[Path] = []
    for right, weight in [(right, weight) for left, right, weight in rules if left == symbol]:
        if len(right) == 1:
            found += [(weight, [int(right[0])], [0, (symbol,)])] if length == 1 else []
            continue
        for lengths in _compositions(length, len(right)):
            parts: list[list[Path]] = []
            for part, part_length in zip(right, lengths, strict=True):
                if isinstance(part, str):
                    parts.append(_derive(rules, part, part_length, known))
                else:
                    parts.append([(1.0, [part], [0, (quoted(part),)])] if part_length == 1 else [])
            for trees in product(*parts):
                words = [word for _, each, _ in trees for word in each]
                above = [(symbol, *names) for _, _, (_, *each) in trees for names in each]
                found.append((weight * prod(each for each, _, _ in trees), words, [lengths[0], *above]))
            if len(found) > _MAX_DERIVATIONS:
                check_size(len(found))
    known[symbol, length] = found
    return found


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to cut a length into parts of at least 1."""
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(end - start for start, end in zip((0, *cuts), (*cuts, total), strict=True))


def _split(states: list[Any]) -> list[int]:
    return [states[0]]


def _parent(index: dict[str, int], states: list[Any]) -> list[int]:
    return [index[names[-1]] for names in states[1:]]


def _in_layer(layer: dict[str, int], states: list[Any]) -> list[int]:
    return [next(layer[name] for name in names if name in layer) for names in states[1:]]

"""Every small language by its definition, as a list of all rows: what `check_language` compares the oracles with.

    markov      first        (0.5, 0, A)   (0.5, 1, B)             (probability, token, state)
                following        ├─ (0.9, 0, A)  ├─ (0.2, 0, A)
                                 └─ (0.1, 1, B)  └─ (0.8, 1, B)
    tree, rhm   every symbol of a level becomes each of the groups of children that it may have
    others      all sequences, each with its weight

Plain loops on purpose: they share nothing with the tables and the passes of the oracles.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import exp, log, prod
from typing import Any

import numpy as np
import torch
from derivations import Tree, check_tried, derivations, filtered, one_level_more

from mlm_lightning.data.languages.code import CodeSource
from mlm_lightning.data.languages.dyck import DyckSource, ShuffleDyckSource
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.ising import IsingSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.mixture import MixtureSource
from mlm_lightning.data.languages.pcfg import PCFGFileSource, PCFGLevelsSource, PCFGSource
from mlm_lightning.data.languages.periodic import PeriodicSource
from mlm_lightning.data.languages.recall import RecallSource
from mlm_lightning.data.languages.rhm import RHMSource
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.languages.urn import UrnSource
from mlm_lightning.data.source import MAX_JOINT, Joint, Source

Row = tuple[float, list[int], dict[str, list[int]]]
"""The weight of a row, its tokens, and the values of its latent variables by name."""
Step = tuple[float, int, Any]
"""A probability, a token, and the state after it."""


def joint(source: Source) -> Joint:
    for language, definition in DEFINITIONS.items():
        if isinstance(source, language):
            return definition(source)
    raise TypeError(f"{type(source).__name__} has no definition here; write one")


def as_joint(rows: Iterable[Row]) -> Joint:
    """Rows of weight 0 are left out, and the other weights divided by their sum."""
    rows = [row for row in rows if row[0] > 0]
    check_size(tokens for _, tokens, _ in rows)
    total = sum(weight for weight, _, _ in rows)
    sequences_SL = torch.tensor([tokens for _, tokens, _ in rows])
    names = rows[0][2]
    latents = {name: torch.tensor([values[name] for _, _, values in rows]) for name in names}
    log_prob_S = torch.tensor([log(weight / total) for weight, _, _ in rows], dtype=torch.float64)
    return sequences_SL, latents, log_prob_S


def check_size(sequences: Iterable[Sequence[int]]) -> None:
    if len(set(map(tuple, sequences))) > MAX_JOINT:
        raise ValueError(f"there are more than {MAX_JOINT} sequences; choose a smaller language")


def all_sequences(num_symbols: int, seq_len: int) -> Iterator[tuple[int, ...]]:
    check_tried(num_symbols**seq_len)
    return product(range(num_symbols), repeat=seq_len)


# token by token


def unfold(
    seq_len: int, first: Iterable[Step], following: Callable[[Any], Iterable[Step]]
) -> list[tuple[float, list[int], list[Any]]]:
    """All paths of `seq_len` steps: their probabilities, tokens and states. ValueError where their sequences are too many."""
    paths = [(prob, [token], [state]) for prob, token, state in first if prob > 0]
    for _ in range(1, seq_len):
        longer = []
        for prob, tokens, states in paths:
            for factor, token, state in following(states[-1]):
                if factor > 0:
                    longer.append((prob * factor, [*tokens, token], [*states, state]))
        check_size(tokens for _, tokens, _ in longer)
        paths = longer
    return paths


def long_run(transition: Any) -> list[float]:
    """The distribution of the states of a chain that starts anywhere, in the long run.

    It is that of the chain that stays where it is in half of its steps, which has no period. Its powers are squared until no
    entry changes: sums of products of numbers that are not negative keep the digits of the smallest probability."""
    one_SS = np.array(transition, dtype=np.float64)
    power_SS = (np.eye(len(one_SS)) + one_SS) / 2
    for _ in range(2000):  # 1,100 of them for a step of probability 1e-308
        square_SS = power_SS @ power_SS
        square_SS /= square_SS.sum(axis=1, keepdims=True)
        if np.allclose(square_SS, power_SS, rtol=1e-12, atol=0):
            return square_SS.mean(axis=0).tolist()
        power_SS = square_SS
    raise AssertionError("the chain does not settle")


def uniform(source: UniformSource) -> Joint:
    return as_joint((1.0, list(tokens), {}) for tokens in all_sequences(source.num_symbols, source.seq_len))


def markov(source: MarkovSource) -> Joint:
    """The states are contexts: the last `order` tokens."""
    next_CQ = source.next_CQ.tolist()
    symbols = range(len(next_CQ[0]))
    contexts = list(product(symbols, repeat=source.order))
    steps: dict[tuple[int, ...], list[Step]] = {}
    transition_CC = np.zeros((len(contexts), len(contexts)))
    for place, context in enumerate(contexts):
        steps[context] = [(next_CQ[place][token], token, (*context[1:], token)) for token in symbols]
        for prob, _, after in steps[context]:
            transition_CC[place, contexts.index(after)] += prob
    share = long_run(transition_CC)
    first = [(share[place], context[-1], context) for place, context in enumerate(contexts)]
    return as_joint((prob, tokens, {}) for prob, tokens, _ in unfold(source.seq_len, first, steps.__getitem__))


def hmm(source: HMMSource) -> Joint:
    transition_SS, emission_SQ = source.transition_SS.tolist(), source.emission_SQ.tolist()

    def steps(share: list[float]) -> list[Step]:
        """The next state has the distribution `share`, and emits a token."""
        emitted = []
        for state, weight in enumerate(share):
            emitted += [(weight * prob, token, state) for token, prob in enumerate(emission_SQ[state])]
        return emitted

    paths = unfold(source.seq_len, steps(long_run(transition_SS)), lambda state: steps(transition_SS[state]))
    return as_joint((prob, tokens, {"state": states}) for prob, tokens, states in paths)


def mixture(source: MixtureSource) -> Joint:
    """A chain for each component."""
    rows: list[Row] = []
    tables = source.transition_MQQ.tolist()
    for component, transition_QQ in enumerate(tables):
        steps = [[(prob, token, token) for token, prob in enumerate(next_Q)] for next_Q in transition_QQ]
        first = [(share / len(tables), token, token) for token, share in enumerate(long_run(transition_QQ))]
        paths = unfold(source.seq_len, first, steps.__getitem__)
        rows += [(prob, tokens, {"component": [component]}) for prob, tokens, _ in paths]
    return as_joint(rows)


def urn(source: UrnSource) -> Joint:
    """A state is how often each symbol was drawn: each time returns it with another one like it."""

    def steps(counts: tuple[int, ...]) -> list[Step]:
        total = sum(counts) + source.num_symbols * source.concentration
        drawn = []
        for token, count in enumerate(counts):
            after = (*counts[:token], count + 1, *counts[token + 1 :])
            drawn.append(((source.concentration + count) / total, token, after))
        return drawn

    paths = unfold(source.seq_len, steps((0,) * source.num_symbols), steps)
    return as_joint((prob, tokens, {}) for prob, tokens, _ in paths)


# sequence by sequence


def ising(source: IsingSource) -> Joint:
    sequences, energies = [], []
    for spins in all_sequences(source.num_symbols, source.seq_len):
        neighbours = zip(spins, (*spins[1:], spins[0]), strict=True)
        equal = sum(spin == other for spin, other in neighbours)
        sequences.append(list(spins))
        energies.append(source.coupling * equal + source.field * spins.count(0))
    highest = max(energies)
    return as_joint((exp(energy - highest), spins, {}) for spins, energy in zip(sequences, energies, strict=True))


def dyck(source: DyckSource) -> Joint:
    return _brackets(source, _nested)


def shuffle_dyck(source: ShuffleDyckSource) -> Joint:
    return _brackets(source, _shuffled)


def _brackets(source: Any, heights_of: Callable[[Sequence[int], int, int], list[int] | None]) -> Joint:
    rows: list[Row] = []
    for tokens in all_sequences(2 * source.num_kinds, source.seq_len):
        heights = heights_of(tokens, source.num_kinds, source.max_depth)
        if heights is not None:
            rows.append((1.0, list(tokens), {"height": heights}))
    return as_joint(rows)


def _nested(tokens: Sequence[int], num_kinds: int, max_depth: int) -> list[int] | None:
    """The number of open brackets after each token; None where they are not well nested, or too deep."""
    stack: list[int] = []
    heights = []
    for token in tokens:
        if token < num_kinds:
            stack.append(token)
        elif not stack or stack.pop() != token - num_kinds:
            return None
        heights.append(len(stack))
    return heights if not stack and max(heights) <= max_depth else None


def _shuffled(tokens: Sequence[int], num_kinds: int, max_depth: int) -> list[int] | None:
    """As `_nested`, of brackets whose kinds don't know each other."""
    counts = [0] * num_kinds
    heights = []
    for token in tokens:
        kind = token % num_kinds
        counts[kind] += 1 if token < num_kinds else -1
        if not 0 <= counts[kind] <= max_depth:
            return None
        heights.append(sum(counts))
    return None if any(counts) else heights


def periodic(source: PeriodicSource) -> Joint:
    """Every period with every sequence, summed over all patterns of that period."""
    q, flip = source.num_symbols, source.flip
    rows: list[Row] = []
    for period in range(source.min_period, source.max_period + 1):
        for tokens in all_sequences(q, source.seq_len):
            weight = 0.0
            for pattern in product(range(q), repeat=period):
                kept = [token == pattern[place % period] for place, token in enumerate(tokens)]
                weight += prod(flip / q + (1 - flip) * each for each in kept) / q**period
            rows.append((weight, list(tokens), {"period": [period - source.min_period]}))
    return as_joint(rows)


def recall(source: RecallSource) -> Joint:
    """Every map of keys to values with every sequence of queries."""
    m, w, noise = source.num_keys, source.num_values, source.noise
    num_queries = source.seq_len // 2 - m
    check_tried(w**m * (m * w) ** num_queries)
    rows: list[Row] = []
    for values in product(range(w), repeat=m):
        for queries in product(product(range(m), range(w)), repeat=num_queries):
            weight = prod((noise / w + (1 - noise) * (value == values[key])) / m for key, value in queries)
            pairs = [*enumerate(values), *queries]
            tokens = [token for key, value in pairs for token in (key, m + value)]
            rows.append((weight, tokens, {"value": list(values)}))
    return as_joint(rows)


def code(source: CodeSource) -> Joint:
    checks, free = source.checks_CL.tolist(), source.free_K.tolist()
    rows: list[Row] = []
    for tokens in all_sequences(source.num_symbols, source.seq_len):
        sums = [sum(factor * token for factor, token in zip(check, tokens, strict=True)) for check in checks]
        if all(each % source.num_symbols == 0 for each in sums):
            rows.append((1.0, list(tokens), {"message": [tokens[place] for place in free]}))
    return as_joint(rows)


# level by level


def tree(source: TreeSource) -> Joint:
    """From level k = `filter_level` on each node's symbol gives those of its two children; between the root and level k there
    are no nodes: the symbols of level k are independent given the root."""
    q, k, M = source.num_symbols, source.filter_level, source.grammar.M.tolist()
    trees: list[Tree] = [(1 / q, [[root]]) for root in range(q)]
    if k > 0:
        trees = [grown for root in range(q) for grown in filtered(M, root, k)]
    pairs = list(product(range(q), repeat=2))
    children = [[(M[parent][b][c], [b, c]) for b, c in pairs if M[parent][b][c] > 0] for parent in range(q)]
    for _ in range(k, source.depth):
        trees = one_level_more(trees, children)
    return _of_trees(trees, [0, *range(max(1, k), source.depth + 1)])


def rhm(source: RHMSource) -> Joint:
    q, m = source.num_symbols, source.num_rules
    trees: list[Tree] = [(1 / q, [[root]]) for root in range(q)]
    for rules in source.children_DRS.tolist():
        children = [[(1 / m, rules[parent * m + number]) for number in range(m)] for parent in range(q)]
        trees = one_level_more(trees, children)
    return _of_trees(trees, range(source.depth + 1))


def _of_trees(trees: list[Tree], numbers: Sequence[int]) -> Joint:
    rows: list[Row] = []
    for weight, levels in trees:
        named = {f"level_{number}": symbols for number, symbols in zip(numbers, levels, strict=True)}
        rows.append((weight, levels[-1], {"root": levels[0], **named}))
    return as_joint(rows)


def pcfg(source: Any) -> Joint:
    """Of any source that has a grammar."""
    layers = source.grammar.layers or {"parent": {name: number for number, name in enumerate(source.grammar.names)}}
    rows: list[Row] = []
    for weight, words, split, above in derivations(source.grammar.rules, source.seq_len):
        latents = {"split": [split]}
        for name, value_of in layers.items():
            latents[name] = [[value_of[symbol] for symbol in symbols if symbol in value_of][-1] for symbols in above]
        rows.append((weight, words, latents))
    return as_joint(rows)


DEFINITIONS: dict[Any, Callable[[Any], Joint]] = {
    UniformSource: uniform,
    MarkovSource: markov,
    HMMSource: hmm,
    MixtureSource: mixture,
    UrnSource: urn,
    IsingSource: ising,
    DyckSource: dyck,
    ShuffleDyckSource: shuffle_dyck,
    PeriodicSource: periodic,
    RecallSource: recall,
    CodeSource: code,
    TreeSource: tree,
    RHMSource: rhm,
    PCFGSource: pcfg,
    PCFGLevelsSource: pcfg,
    PCFGFileSource: pcfg,
}

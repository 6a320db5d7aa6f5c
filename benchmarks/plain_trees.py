"""Trees in plain NumPy, one row after the other: node by node where their shape is fixed, span by span where it is not.

Shapes: R rules of a level or of a grammar, N nonterminals, K splits of a span.
"""

import numpy as np
from plain import Plain, drawn_by
from synthetic_data import sample_row, sum_product

from mlm_lightning.data.languages.pcfg import GrammarSource
from mlm_lightning.data.languages.rhm import RHMSource
from mlm_lightning.data.languages.tree import TreeSource


def tree(source: TreeSource) -> Plain:
    M = source.grammar.M.numpy()
    return Plain(lambda rng: sample_row(M, source.depth, rng), lambda *row: sum_product(M, *row))


def rhm(source: RHMSource) -> Plain:
    """Belief propagation: a message from a node sums over its level's rules."""
    q, m, s, depth = source.num_symbols, source.num_rules, source.branching, source.depth
    parent_R = np.arange(q * m) // m
    rules = [children_RS.tolist() for children_RS in source.children_DRS]
    child = [[np.ascontiguousarray(child_R) for child_R in children_RS.numpy().T] for children_RS in source.children_DRS]
    one_hot_QQ, ones_Q = np.eye(q), np.ones(q)

    def row(rng: np.random.Generator) -> list[int]:
        symbols = [int(rng.integers(q))]
        for level in range(depth):
            symbols = [each for symbol in symbols for each in rules[level][symbol * m + rng.integers(m)]]
        return symbols

    def upward(tokens: np.ndarray, observed: np.ndarray) -> list[list[np.ndarray]]:
        up = [[one_hot_QQ[token] if seen else ones_Q for token, seen in zip(tokens, observed, strict=True)]]
        for level in reversed(range(depth)):
            messages = []
            for first in range(0, len(up[0]), s):
                told_R = up[0][first][child[level][0]]
                for place in range(1, s):
                    told_R = told_R * up[0][first + place][child[level][place]]
                message = np.bincount(parent_R, told_R, q)
                messages.append(message / message.max())
            up.insert(0, messages)
        return up

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        up = upward(tokens, observed)
        down = [ones_Q]
        for level in range(depth):
            messages = []
            for node, above in enumerate(down):
                for place in range(s):
                    told_R = above[parent_R]
                    for other in range(s):
                        if other != place:
                            told_R = told_R * up[level + 1][node * s + other][child[level][other]]
                    message = np.bincount(child[level][place], told_R, q)
                    messages.append(message / message.max())
            down = messages
        return np.array([message / message.sum() for message in down])

    return Plain(row, posterior)


def pcfg(source: GrammarSource) -> Plain:
    """Inside-outside: a span's messages, of all splits and rules at once."""
    length, num_nonterminals = source.seq_len, len(source.grammar.names)
    parent_R, left_R, right_R = source.grammar.binary_R4[:, :3].long().T.numpy()
    prob_R, word_NQ = source.grammar.binary_R4[:, 3].numpy(), source.grammar.word_NQ.numpy()
    left_RN, right_RN = np.eye(num_nonterminals)[left_R], np.eye(num_nonterminals)[right_R]
    words = word_NQ.cumsum(1)
    splits = _splits(source)

    def row(rng: np.random.Generator) -> list[int]:
        tokens, waiting = [], [(0, length)]
        while waiting:
            symbol, size = waiting.pop()
            if size == 1:
                tokens.append(drawn_by(rng, words[symbol]))
                continue
            rules, sums = splits[size, symbol]
            taken = drawn_by(rng, sums)
            split, rule = taken // len(rules) + 1, rules[taken % len(rules)]
            waiting += [(right_R[rule], size - split), (left_R[rule], split)]
        return tokens

    def inward(tokens: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the span from i to j, `inside[i, j]`, and the log of what it is to be multiplied by."""
        inside, log = np.zeros((length, length + 1, num_nonterminals)), np.full((length, length + 1), -np.inf)
        for i in range(length):
            value = word_NQ[:, tokens[i]] if observed[i] else word_NQ.sum(1)
            inside[i, i + 1], log[i, i + 1] = value / value.max(), np.log(value.max())
        for size in range(2, length + 1):
            for i, j in zip(range(length), range(size, length + 1), strict=False):
                log_K = log[i, i + 1 : j] + log[i + 1 : j, j]
                most = log_K.max()
                if most == -np.inf:
                    continue
                both_KR = inside[i, i + 1 : j][:, left_R] * inside[i + 1 : j, j][:, right_R]
                value = np.bincount(parent_R, np.exp(log_K - most) @ both_KR * prob_R, num_nonterminals)
                if value.max() > 0:
                    inside[i, j], log[i, j] = value / value.max(), most + np.log(value.max())
        return inside, log

    def posterior(tokens: np.ndarray, observed: np.ndarray) -> np.ndarray:
        inside, log = inward(tokens, observed)
        outside = np.zeros_like(inside)
        outside[0, length, 0] = 1 / inside[0, length, 0]
        for size in range(length, 1, -1):
            for i, j in zip(range(length), range(size, length + 1), strict=False):
                if log[i, j] == -np.inf or not outside[i, j].any():
                    continue
                factor_K = np.exp(log[i, i + 1 : j] + log[i + 1 : j, j] - log[i, j])
                told_KR = factor_K[:, None] * (outside[i, j][parent_R] * prob_R)
                outside[i, i + 1 : j] += (told_KR * inside[i + 1 : j, j][:, right_R]) @ left_RN
                outside[i + 1 : j, j] += (told_KR * inside[i, i + 1 : j][:, left_R]) @ right_RN
        probs = outside[np.arange(length), np.arange(1, length + 1)] @ word_NQ
        return probs / probs.sum(1, keepdims=True)

    return Plain(row, posterior)


def _splits(source: GrammarSource) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """By length and nonterminal: its rules, and the sums of the weights of (split, rule)."""
    length, num_nonterminals = source.seq_len, len(source.grammar.names)
    parent_R, left_R, right_R = source.grammar.binary_R4[:, :3].long().T.numpy()
    prob_R = source.grammar.binary_R4[:, 3].numpy()
    weight = np.zeros((length + 1, num_nonterminals))
    weight[1] = source.grammar.word_NQ.numpy().sum(1)
    found = {}
    for size in range(2, length + 1):
        for symbol in range(num_nonterminals):
            rules = np.flatnonzero(parent_R == symbol)
            weight_KR = weight[1:size, left_R[rules]] * weight[size - 1 : 0 : -1, right_R[rules]] * prob_R[rules]
            weight[size, symbol] = weight_KR.sum()
            if weight[size, symbol] > 0:
                found[size, symbol] = rules, weight_KR.ravel().cumsum()
    return found

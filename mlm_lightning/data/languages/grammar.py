"""Context-free grammars with probabilities: random ones, ones of levels, or from a file; in Chomsky normal form inside.

    as written                        as worked with                      words are numbers, nonterminals names
    S  -> NP VP          [1.0]        S     -> NP VP       [1.0]
    VP -> V 'to' NP      [0.4]        VP    -> V VP#2.2    [0.4]          long right sides, in steps of two
       |  'sleeps'       [0.6]        VP#2.2-> 'to' NP     [1.0]
                                      'to'  -> to          [1.0]          words beside others, a nonterminal each
                                      VP    -> sleeps      [0.6]

The notation of files is that of NLTK's `PCFG.fromstring`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS
from mlm_lightning.errors import ConfigError, refuse
from mlm_lightning.randomness import Stream, dirichlet, generator

MAX_NONTERMINALS = 256
Rule = tuple[str, tuple[str | int, ...], float]
"""Left side, right side (names of nonterminals, numbers of words), and the probability given the left side."""
_SUM = 0.01
"""How far from 1 the probabilities of a nonterminal may be, as written in a file; they are divided by their sum."""


@dataclass(frozen=True, eq=False)
class Grammar:
    """`rules`, as they are written; the first one's left side is where rows start. `layers`: by name, the value of each
    nonterminal of which every word has exactly one above it."""

    rules: Sequence[Rule]
    num_words: int
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @cached_property
    def _normal(self) -> tuple[list[tuple[str, str, str, float]], list[tuple[str, int, float]]]:
        """The rules that give two nonterminals, and those that give a word."""
        binary: list[tuple[str, str, str, float]] = []
        lexical: dict[tuple[str, int], float] = {}
        for number, (left, right, prob) in enumerate(self.rules):
            if len(right) == 1:
                assert isinstance(right[0], int)
                lexical[left, right[0]] = lexical.get((left, right[0]), 0.0) + prob
                continue
            parts = [quoted(part) if isinstance(part, int) else part for part in right]
            lexical |= {(quoted(part), part): 1.0 for part in right if isinstance(part, int)}
            while len(parts) > 2:
                rest = f"{left.partition('#')[0]}#{number}.{len(parts) - 1}"
                binary.append((left, parts[0], rest, prob))
                left, parts, prob = rest, parts[1:], 1.0
            binary.append((left, parts[0], parts[1], prob))
        return binary, [(left, word, prob) for (left, word), prob in lexical.items()]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the nonterminals, those that are written first, in their order."""
        binary, lexical = self._normal
        lefts = [*(left for left, _, _ in self.rules), *(rule[0] for rule in binary), *(rule[0] for rule in lexical)]
        return tuple(dict.fromkeys(lefts))

    @cached_property
    def binary_R4(self) -> Tensor:
        """Parent, left child, right child and probability of each rule that gives two nonterminals (float64)."""
        index = {name: number for number, name in enumerate(self.names)}
        rows = [(index[parent], index[left], index[right], prob) for parent, left, right, prob in self._normal[0]]
        return torch.tensor(rows, dtype=torch.float64).view(-1, 4)

    @cached_property
    def word_NQ(self) -> Tensor:
        """The probability of each word, by the nonterminal directly above it."""
        index = {name: number for number, name in enumerate(self.names)}
        word_NQ = torch.zeros(len(self.names), self.num_words, dtype=torch.float64)
        for left, word, prob in self._normal[1]:
            word_NQ[index[left], word] = prob
        return word_NQ

    @cached_property
    def rules_of_NJ(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left children, right children and probabilities of each nonterminal's rules, J at most: 0 where it has fewer."""
        rules: list[list[int]] = [[] for _ in self.names]
        for rule, parent in enumerate(self.binary_R4[:, 0].long().tolist()):
            rules[parent].append(rule)
        rule_NJ = pad_sequence([torch.tensor(each or [-1]) for each in rules], batch_first=True, padding_value=-1)
        _, left_NJ, right_NJ, prob_NJ = pad(self.binary_R4, (0, 0, 0, 1))[rule_NJ].unbind(2)  # number -1: the row of zeros
        return left_NJ.long(), right_NJ.long(), prob_NJ

    @cached_property
    def layers_N(self) -> dict[str, Tensor]:
        """By layer, the value of each nonterminal, -1 where it is of none."""
        return {layer: torch.tensor([value.get(name, -1) for name in self.names]) for layer, value in self.layers.items()}

    def lengths(self, longest: int) -> tuple[Tensor, Tensor]:
        """The probability that a nonterminal has a length, from 1 on: `weight_LN`, times the exponential of `log_L`."""
        parent_R, left_R, right_R = self.binary_R4[:, :3].long().T
        weight_LN = torch.zeros(longest, len(self.names), dtype=torch.float64)
        log_L = torch.full((longest,), -torch.inf, dtype=torch.float64)
        weight_N, most = self.word_NQ.sum(1), 0.0
        for place in range(longest):
            if place > 0:
                log_K = log_L[:place] + log_L[:place].flip(0)
                most = max(float(log_K.max()), -1e300)
                both_KR = weight_LN[:place, left_R] * weight_LN[:place, right_R].flip(0)
                rule_R = ((log_K - most).exp() @ both_KR) * self.binary_R4[:, 3]
                weight_N = torch.zeros(len(self.names), dtype=torch.float64).index_add(0, parent_R, rule_R)
            scale = float(weight_N.max())
            if scale > 0:
                weight_LN[place] = weight_N / scale
                log_L[place] = most + float(torch.tensor(scale, dtype=torch.float32).log())  # rows depend on its digits
        return weight_LN, log_L


def quoted(word: int) -> str:
    return f"'{word}'"


def random_grammar(num_nonterminals: int, num_words: int, num_rules: int, concentration: float, grammar_seed: int) -> Grammar:
    """Each nonterminal has `num_rules` different pairs of nonterminals, and any word; the weights of both are drawn from
    Dirichlets. (How often it is a word is of no matter at one length: half of the time.)"""
    n, source = num_nonterminals, generator(grammar_seed, Stream.GRAMMAR)
    pairs_NI = torch.stack([torch.randperm(n * n, generator=source)[:num_rules] for _ in range(n)]).tolist()
    weight_NI = dirichlet(concentration, (n, num_rules), grammar_seed, Stream.GRAMMAR, 1).tolist()
    word_NQ = dirichlet(concentration, (n, num_words), grammar_seed, Stream.GRAMMAR, 2).tolist()
    rules: list[Rule] = []
    for parent in range(n):
        for pair, weight in zip(pairs_NI[parent], weight_NI[parent], strict=True):
            rules.append((f"N{parent}", (f"N{pair // n}", f"N{pair % n}"), weight / 2))
        rules += [(f"N{parent}", (word,), weight / 2) for word, weight in enumerate(word_NQ[parent])]
    return Grammar(rules, num_words)


def levels_grammar(num_levels: int, num_symbols: int, num_rules: int, grammar_seed: int) -> Grammar:
    """A root, and under it levels of `num_symbols` symbols, the last one words. Each symbol has `num_rules` rules, all alike,
    of two or three symbols of the next level; those of a level all differ."""
    source = generator(grammar_seed, Stream.GRAMMAR)
    rules: list[Rule] = []
    q = num_symbols
    for level in range(num_levels):
        last = level == num_levels - 1
        unused = {size: torch.randperm(q**size, generator=source).tolist() for size in (2, 3)}
        for symbol in range(1 if level == 0 else q):
            for _ in range(num_rules):
                size = 2 + int(torch.randint(2, (), generator=source))
                size = size if unused[size] else 5 - size
                code = unused[size].pop()
                digits = [code // q**place % q for place in range(size)]
                right = tuple(digit if last else f"{level + 1}:{digit}" for digit in digits)
                rules.append((f"{level}:{symbol}", right, 1 / num_rules))
    layers = {f"level_{level}": {f"{level}:{symbol}": symbol for symbol in range(q)} for level in range(1, num_levels)}
    return Grammar(rules, q, layers)


# files

_LINE = re.compile(r"""\s*([^\s"'\[\]|]+)\s*->\s*(.*?)\s*""")
_PART = re.compile(r"""\||\[[^\]]*\]|"[^"]+"|'[^']+'|[^\s"'\[\]|]+|(?P<unread>\S.*)""")
_QUOTES = ("'", '"')
_FORMAT = "a line is such as  S -> NP VP [0.7] | 'word' [0.3]"


def read_grammar(path: Path) -> tuple[Grammar, tuple[str, ...]]:
    """The grammar of a file, and its words, numbered as they first appear. ConfigError with file and line for what is none."""

    def wrong(problem: str, remedy: str = _FORMAT, number: int = 0) -> ConfigError:
        return ConfigError("data.path", str(path), f"line {number}: {problem}" if number else problem, remedy)

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise wrong(problem, f"give a text file; {_FORMAT}") from error
    words: dict[str, int] = {}
    rules: list[Rule] = []
    line_of: dict[str, int] = {}
    used: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            left, alternatives = _read_line(line)
        except ValueError as error:
            raise wrong(str(error), number=number) from None
        line_of.setdefault(left, number)
        for symbols, prob in alternatives:
            names = [symbol for symbol in symbols if not symbol.startswith(_QUOTES)]
            if names == symbols and len(names) == 1:
                remedy = f"write the rules of {names[0]} in its place"
                raise wrong(f"{left} -> {names[0]} has a single nonterminal on its right", remedy, number)
            used |= {name: number for name in names if name not in used}
            right = tuple(
                words.setdefault(symbol[1:-1], len(words)) if symbol.startswith(_QUOTES) else symbol for symbol in symbols
            )
            rules.append((left, right, prob))
    if not rules:
        raise wrong("has no rules")
    refuse(
        wrong(f"{name} has no rules", f"add some, or write '{name}' if it is a word", number)
        for name, number in used.items()
        if name not in line_of
    )
    sums = {left: sum(prob for each, _, prob in rules if each == left) for left in line_of}
    refuse(
        wrong(f"the probabilities of {left} sum to {total:.4g}", "they should sum to 1", line_of[left])
        for left, total in sums.items()
        if abs(total - 1) > _SUM
    )
    if not 2 <= len(words) <= MAX_SYMBOLS:
        raise wrong(f"has {len(words)} word(s)", f"there should be from 2 to {MAX_SYMBOLS}")
    return Grammar([(left, right, prob / sums[left]) for left, right, prob in rules], len(words)), tuple(words)


def _read_line(line: str) -> tuple[str, list[tuple[list[str], float]]]:
    """The left side of a line, and its alternatives: symbols, words in their quotes, and a probability. ValueError says what is
    wrong."""
    sides = _LINE.fullmatch(line)
    if sides is None:
        raise ValueError("does not begin with a nonterminal and ->")
    left, rest = sides.groups()
    groups: list[list[str]] = [[]]
    for part in _PART.finditer(rest):
        if part["unread"]:
            raise ValueError(f"cannot read {part.group()!r}")
        if part.group() == "|":
            groups.append([])
        else:
            groups[-1].append(part.group())
    return left, [_alternative(group) for group in groups]


def _alternative(parts: list[str]) -> tuple[list[str], float]:
    *symbols, last = parts or [""]
    if not symbols or [part for part in parts if part.startswith("[")] != [last]:
        raise ValueError("each alternative is some symbols and, at its end, a probability in brackets")
    try:
        prob = float(last[1:-1])
    except ValueError:
        prob = -1.0
    if not 0 <= prob <= 1:
        raise ValueError(f"{last} is no probability from 0 to 1")
    return symbols, prob

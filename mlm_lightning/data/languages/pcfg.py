"""A probabilistic context-free grammar: rows are its sentences of one length.

    S                          the start              S -> A B [0.7] | B B [0.3]     binary rules
    ├───────────┐                                     A -> B A [0.5] | 'a' [0.5]     words
    A           B
    ├─────┐     ├─────┐        every tree with seq_len leaves, in proportion to the product of its rules' probabilities
    B     A     B     A
    c     a     d     a        latents: split 2 (length of the root's left part), parent B A B A

`pcfg` draws a grammar, `pcfg_file` reads one, and in `pcfg_levels` symbols come in levels, each with rules of two or three
symbols of the next one:

    level 0                   0                          level_1   1 1 1 1 1 2 2 2 2 2        what stands above each
    level 1           1               2                  level_2   0 0 0 2 2 1 1 1 0 0        word, level by level
    level 2       0       2       1       0
    words       1 0 2    1 1    0 2 1    2 2

Other than in a tree of fixed shape, where one constituent ends and the next begins must be found out, too. The larger the
`concentration`, the less evidence a word is of what stands above it; in levels, the more of them, the farther words depend on
each other.

Source: Booth, Thompson, "Applying probability measures to abstract languages", IEEE Transactions on Computers 1973; levels:
Allen-Zhu, Li, "Physics of language models: part 1, learning hierarchical language structures", 2023, arXiv 2305.13673 (`cfg3b`
is of the shape num_levels=6, num_symbols=3, num_rules=2, but at all lengths from 64 to 729).
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.chain import Concentration
from mlm_lightning.data.languages.grammar import MAX_NONTERMINALS, Grammar, levels_grammar, random_grammar, read_grammar
from mlm_lightning.data.languages.inside_outside import InsideOutside
from mlm_lightning.data.languages.parse_trees import Choices, grow
from mlm_lightning.data.languages.synthetic import Errors, Language, NumSymbols, Sizes, language
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform
from mlm_lightning.values import expanded

MAX_LENGTH = 256
MAX_WORK = 2**36
"""Of nonterminals² · seq_len³."""
MAX_TABLE = 2**25
"""Of nonterminals · rules · seq_len²: the sampler's tables of splits."""

Length = Annotated[int, Interval(ge=1, le=MAX_LENGTH), "it is the number of tokens in a row"]


class GrammarSource(Language):
    """Rows of `seq_len` words of a grammar."""

    @cached_property
    def grammar(self) -> Grammar:
        raise NotImplementedError

    def errors(self) -> Errors:
        num_nonterminals, num_rules = self._size
        by_work, by_table = (MAX_WORK / num_nonterminals**2) ** (1 / 3), (MAX_TABLE / (num_nonterminals * num_rules)) ** 0.5
        longest = int(min(by_work, by_table) + 1e-9)
        if self.seq_len > longest:
            problem = f"with {num_nonterminals} nonterminals of up to {num_rules} rules each, for lack of time and memory"
            yield self.error("seq_len", problem, f"use data.seq_len={longest} or less, or a smaller grammar")
            return
        weight_LN, _ = self.grammar.lengths(self.seq_len)
        if weight_LN[-1, 0] > 0:
            return
        weight_LN, _ = self.grammar.lengths(MAX_LENGTH)
        lengths = (weight_LN[:, 0].nonzero()[:, 0] + 1).tolist()
        nearest = sorted(sorted(lengths, key=lambda length: abs(length - self.seq_len))[:2])
        remedy = f"the nearest that it has: {' and '.join(map(str, nearest))}" if nearest else "check its rules"
        yield self.error("seq_len", "the grammar has no rows of this length", remedy)

    @property
    def _size(self) -> tuple[int, int]:
        """The number of nonterminals, and of rules that one has at most."""
        return len(self.grammar.names), self.grammar.rules_of_NJ[0].shape[1]

    @property
    def num_symbols(self) -> int:  # type: ignore[override]
        return self.grammar.num_words

    @property
    def row_elements(self) -> int:
        return self.seq_len * (self.seq_len + self.num_symbols)

    def draw(self, keys_B: Tensor) -> Tensor:
        parent_BL = self._trees(keys_B)[0].T.long()
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len) * self.seq_len)
        return self._words.draw(parent_BL, u_BL)

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        """`split`, the length of the root's left part (0 where a row is one word), and the layers' nonterminals above each word
        or, where there are no layers, `parent`, the one directly above it."""
        seq_len, symbol_LLB = self.seq_len, self._trees(keys_B)
        # spans from the first word on lie one in the other: the longest is the root's left part
        length_L1 = torch.arange(seq_len)[:, None]
        split_B = torch.cat(((symbol_LLB[:-1, 0] >= 0) * length_L1[1:], length_L1[:1].expand(1, len(keys_B)))).amax(0)
        found = {"split": split_B[:, None]}
        if not self.grammar.layers:
            return found | {"parent": symbol_LLB[0].T.long()}
        length_M, start_M, row_M = (symbol_LLB >= 0).nonzero(as_tuple=True)
        symbol_M = symbol_LLB[length_M, start_M, row_M].long()
        for name, value_N in self.grammar.layers_N.items():
            value_M = value_N[symbol_M] + 1
            # what begins at a position, less what has ended before it: the sums up to a position are what covers it
            change_BL = torch.zeros(len(keys_B), seq_len + 1, dtype=torch.int64)
            change_BL.index_put_((row_M, start_M), value_M, accumulate=True)
            change_BL.index_put_((row_M, start_M + length_M + 1), -value_M, accumulate=True)
            found[name] = change_BL[:, :-1].cumsum(1) - 1
        return found

    def latent_sizes(self) -> Sizes:
        layers = {name: (self.seq_len, 1 + max(layer.values())) for name, layer in self.grammar.layers.items()}
        return {"split": (1, self.seq_len), **(layers or {"parent": (self.seq_len, len(self.grammar.names))})}

    def oracle(self) -> InsideOutside:
        return InsideOutside(self.grammar, self.seq_len)

    def _trees(self, keys_B: Tensor) -> Tensor:
        left_NJ, right_NJ, _ = self.grammar.rules_of_NJ
        num_rules = left_NJ.shape[1]

        def choose_split(
            n: int, _row_M: Tensor, _start_M: Tensor, symbol_M: Tensor, u_M: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            taken_M = self._splits[n - 2].draw(symbol_M, u_M)
            rule_M = taken_M % num_rules
            return taken_M // num_rules + 1, left_NJ[symbol_M, rule_M], right_NJ[symbol_M, rule_M]

        return grow(keys_B, self.seq_len, torch.device("cpu"), choose_split)

    @cached_property
    def _words(self) -> Choices:
        return Choices(self.grammar.word_NQ)

    @cached_property
    def _splits(self) -> list[Choices]:
        """For each length from 2 on, a nonterminal's splits and rules, number (split - 1) · J + rule."""
        left_NJ, right_NJ, prob_NJ = self.grammar.rules_of_NJ
        weight_LN, log_L = self.grammar.lengths(self.seq_len)
        found = []
        for splits in range(1, self.seq_len):
            log_K = log_L[:splits] + log_L[:splits].flip(0)
            factor_K = (log_K - log_K.max().clamp(min=-1e300)).exp()
            both_KNJ = weight_LN[:splits, left_NJ] * weight_LN[:splits, right_NJ].flip(0)
            found.append(Choices((both_KNJ * prob_NJ * factor_K[:, None, None]).transpose(0, 1).flatten(1)))
        return found


@language
class PCFGSource(GrammarSource):
    """Rows of the grammar that `grammar_seed` draws; `seed` makes the rows alone."""

    num_nonterminals: Annotated[int, Interval(ge=1, le=MAX_NONTERMINALS), "each has rules and words of its own"] = 10
    num_symbols: NumSymbols = 16
    num_rules: Annotated[int, Interval(ge=1, le=4096), "so many pairs of nonterminals a nonterminal may become"] = 2
    concentration: Concentration = 0.1
    seq_len: Length = 32
    grammar_seed: int = 0

    def errors(self) -> Errors:
        most = self.num_nonterminals**2
        if self.num_rules > most:
            problem = f"there are {most} pairs of nonterminals"
            yield self.error("num_rules", problem, f"use data.num_rules={most} or less")
        else:
            yield from super().errors()

    @property
    def _size(self) -> tuple[int, int]:
        return self.num_nonterminals, self.num_rules  # known before the grammar is drawn

    @cached_property
    def grammar(self) -> Grammar:
        sizes = (self.num_nonterminals, self.num_symbols, self.num_rules)
        return random_grammar(*sizes, self.concentration, self.grammar_seed)


@language
class PCFGLevelsSource(GrammarSource):
    """Rows of the grammar of levels that `grammar_seed` draws; `seed` makes the rows alone."""

    num_levels: Annotated[int, Interval(ge=1, le=8), "a row has from 2^num_levels to 3^num_levels tokens"] = 4
    num_symbols: NumSymbols = 3
    num_rules: Annotated[int, Interval(ge=1, le=4096), "each symbol has so many rules"] = 2
    seq_len: Length = 36
    grammar_seed: int = 1

    def errors(self) -> Errors:
        q, levels, found = self.num_symbols, self.num_levels, list[ConfigError]()
        if self.num_rules > q + q**2:
            problem = f"{q} symbols have no {self.num_rules} rules each without sharing one of the {q}² + {q}³"
            remedy = f"use data.num_rules={q + q**2} or less"
            found.append(self.error("num_rules", problem, remedy))
        if not 2**levels <= self.seq_len <= 3**levels:
            problem = f"rows of {levels} levels have from {2**levels} to {3**levels} tokens"
            remedy = f"use data.seq_len={min(int(2.5**levels), MAX_LENGTH)}, or other levels"
            found.append(self.error("seq_len", problem, remedy))
        most = (MAX_NONTERMINALS - 1 - self.num_rules) // ((levels - 1) * (1 + self.num_rules) + 1)
        if q > most:
            many = "too many nonterminals, for lack of time"
            problem = f"with data.num_levels={levels} and data.num_rules={self.num_rules}, {many}"
            remedy = f"use data.num_symbols={most} or fewer" if most >= 2 else "use fewer levels or rules"
            found.append(self.error("num_symbols", problem, remedy))
        yield from found or super().errors()

    @cached_property
    def grammar(self) -> Grammar:
        return levels_grammar(self.num_levels, self.num_symbols, self.num_rules, self.grammar_seed)


@language
class PCFGFileSource(GrammarSource):
    """Rows of the grammar in the file `path` (`grammar.read_grammar`), whose words are numbered as they first appear in it. A
    grammar is a setting: its file is read at once."""

    path: Path
    seq_len: Length = 16

    def errors(self) -> Errors:
        if len(self.grammar.names) > MAX_NONTERMINALS:
            problem = f"has {len(self.grammar.names)} nonterminals in Chomsky normal form, for lack of time"
            yield self.error("path", problem, f"use a grammar of at most {MAX_NONTERMINALS}")
        else:
            yield from super().errors()

    @cached_property
    def _read(self) -> tuple[Grammar, tuple[str, ...]]:
        return read_grammar(expanded(self.path))

    @property
    def grammar(self) -> Grammar:
        return self._read[0]

    @property
    def words(self) -> tuple[str, ...]:
        return self._read[1]

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.grammar.rules, self.words)).encode()).hexdigest()[:24]

    def expected_fingerprint(self) -> str:
        return self.fingerprint()

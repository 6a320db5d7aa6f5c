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
`concentration`, the less a word tells of what stands above it; in levels, the more of them, the farther words depend on each
other.

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
from mlm_lightning.data.languages.derivations import derivations
from mlm_lightning.data.languages.grammar import (
    MAX_NONTERMINALS,
    Grammar,
    levels_grammar,
    random_grammar,
    read_grammar,
)
from mlm_lightning.data.languages.hidden import nonzero_flat
from mlm_lightning.data.languages.inside_outside import InsideOutside, grow
from mlm_lightning.data.languages.oracle import cdf
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked, expanded

MAX_LENGTH = 256
MAX_WORK = 2**36
"""Of nonterminals² · seq_len³."""
MAX_TABLE = 2**25
"""Of nonterminals · rules · seq_len²: the sampler's tables of splits."""
_CHUNK = 2**24  # spans of rows that are drawn at once
_BELOW_1 = 1 - 2**-40
_CELLS = 2**10  # a power of 2: cells are exact

Length = Annotated[int, Interval(ge=1, le=MAX_LENGTH), "it is the number of tokens in a row"]


class GrammarSource(SyntheticSource):
    """Rows of `seq_len` words of a grammar."""

    def __init__(self, grammar: Grammar, seq_len: int, seed: int, train_size: int, val_size: int, test_size: int) -> None:
        super().__init__(grammar.num_words, seed, train_size, val_size, test_size)
        self.grammar, self._length = grammar, seq_len
        check_length(seq_len, len(grammar.names), grammar.rules_of_NI[0].shape[1])
        *_, (weight_N, _) = grammar.lengths(seq_len)
        if weight_N[0] == 0:
            lengths = [n for n, (weight_N, _) in enumerate(grammar.lengths(MAX_LENGTH), 1) if weight_N[0] > 0]
            nearest = sorted(sorted(lengths, key=lambda length: abs(length - seq_len))[:2])
            remedy = f"the nearest that it has: {' and '.join(map(str, nearest))}" if nearest else "check its rules"
            raise ConfigError("data.seq_len", seq_len, "the grammar has no rows of this length", remedy)

    @property
    def seq_len(self) -> int:
        return self._length

    def draw(self, keys_B: Tensor) -> Tensor:
        length_L = self._length
        drawn = []
        for part_B in self._parts(keys_B):
            parent_BL = self._trees(part_B)[0].T.long().contiguous()
            u_BL = uniform(part_B[:, None], torch.arange(length_L) * length_L)
            drawn.append(self._words.draw(parent_BL, u_BL))
        return torch.cat(drawn)

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        parts = [self._read(self._trees(part_B)) for part_B in self._parts(keys_B)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        layers = {name: (self._length, 1 + max(layer.values())) for name, layer in self.grammar.layers.items()}
        return {"split": (1, self._length), **(layers or {"parent": (self._length, len(self.grammar.names))})}

    def oracle(self) -> InsideOutside:
        return InsideOutside(self.grammar, self._length)

    def _parts(self, keys_B: Tensor) -> tuple[Tensor, ...]:
        return keys_B.split(max(1, _CHUNK // self._length**2))

    def _trees(self, keys_B: Tensor) -> Tensor:
        left_NI, right_NI, _ = self.grammar.rules_of_NI
        num_rules = left_NI.shape[1]

        def choose_split(
            length: int, row_M: Tensor, start_M: Tensor, symbol_M: Tensor, u_M: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            taken_M = self._splits[length - 2].draw(symbol_M, u_M)
            split_M = taken_M // num_rules
            rule_M = taken_M + (symbol_M - split_M) * num_rules
            return split_M + 1, left_NI.take(rule_M), right_NI.take(rule_M)

        return grow(keys_B, self._length, torch.device("cpu"), choose_split)

    def _read(self, symbol_LLB: Tensor) -> dict[str, Tensor]:
        """The latent variables of trees: `split`, the length of the root's left part (0 where a row is one word), and the
        layers' nonterminals above each word or, where there are no layers, `parent`, the one directly above it."""
        length_L = self._length
        lengths_L1 = torch.arange(1, length_L)[:, None]
        from_first_LB = (symbol_LLB[:-1, 0] >= 0) * lengths_L1  # one in the other: the longest is the root's
        split_B = from_first_LB.amax(0) if length_L > 1 else torch.zeros(symbol_LLB.shape[2], dtype=torch.int64)
        found = {"split": split_B[:, None]}
        if not self.grammar.layers:
            return found | {"parent": symbol_LLB[0].T.long()}
        length_M, start_M, row_M = (symbol_LLB >= 0).nonzero(as_tuple=True)
        symbol_M = symbol_LLB[length_M, start_M, row_M].long()
        for name, value_N in zip(self.grammar.layers, self.grammar.layers_JN, strict=True):
            value_M = value_N[symbol_M] + 1
            # what begins at a position, less what has ended before it: the sums up to a position are what covers it
            change_BL = torch.zeros(symbol_LLB.shape[2], length_L + 1, dtype=torch.int64)
            change_BL.index_put_((row_M, start_M), value_M, accumulate=True)
            change_BL.index_put_((row_M, start_M + length_M + 1), -value_M, accumulate=True)
            found[name] = change_BL[:, :-1].cumsum(1) - 1
        return found

    @cached_property
    def _words(self) -> "Choices":
        return Choices(self.grammar.word_NQ)

    @cached_property
    def _splits(self) -> list["Choices"]:
        """Of each length from 2 on, a nonterminal's splits and rules, number (split - 1) · I + rule."""
        left_NI, right_NI, prob_NI = self.grammar.rules_of_NI
        if (lengths := list(self.grammar.lengths(self._length - 1))) == []:
            return []
        weight_LN = torch.stack([weight_N for weight_N, _ in lengths])
        log_L = torch.tensor([log_scale for _, log_scale in lengths], dtype=torch.float64)
        found = []
        for length in range(2, self._length + 1):
            log_K = log_L[: length - 1] + log_L[: length - 1].flip(0)
            factor_K = (log_K - log_K.max().clamp_min(-1e300)).exp()
            both_KNI = weight_LN[: length - 1, left_NI] * weight_LN[: length - 1, right_NI].flip(0)
            found.append(Choices((both_KNI * prob_NI * factor_K[:, None, None]).transpose(0, 1).flatten(1)))
        return found

    def joint(self) -> Joint:
        return derivations(self.grammar, self._length)


class PCFGSource(GrammarSource):
    """Rows of the grammar that `grammar_seed` draws; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_nonterminals: Annotated[int, Interval(ge=1, le=MAX_NONTERMINALS), "each has rules and words of its own"] = 10,
        num_symbols: NumSymbols = 16,
        num_rules: Annotated[int, Interval(ge=1, le=4096), "so many pairs of nonterminals a nonterminal may become"] = 2,
        concentration: Concentration = 0.1,
        seq_len: Length = 32,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        if num_rules > num_nonterminals**2:
            problem = f"there are {num_nonterminals**2} pairs of nonterminals"
            raise ConfigError("data.num_rules", num_rules, problem, f"use data.num_rules={num_nonterminals**2} or less")
        check_length(seq_len, num_nonterminals, num_rules)
        grammar = random_grammar(num_nonterminals, num_symbols, num_rules, concentration, grammar_seed)
        super().__init__(grammar, seq_len, seed, train_size, val_size, test_size)


class PCFGLevelsSource(GrammarSource):
    """Rows of the grammar of levels that `grammar_seed` draws; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_levels: Annotated[int, Interval(ge=1, le=8), "a row has from 2^num_levels to 3^num_levels tokens"] = 4,
        num_symbols: NumSymbols = 3,
        num_rules: Annotated[int, Interval(ge=1, le=4096), "each symbol has so many rules"] = 2,
        seq_len: Length = 36,
        grammar_seed: int = 1,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        q = num_symbols
        if num_rules > q + q**2:
            problem = f"{q} symbols have no {num_rules} rules each without sharing one of the {q}² + {q}³"
            raise ConfigError("data.num_rules", num_rules, problem, f"use data.num_rules={q + q**2} or less")
        if not 2**num_levels <= seq_len <= 3**num_levels:
            problem = f"rows of {num_levels} levels have from {2**num_levels} to {3**num_levels} tokens"
            raise ConfigError(
                "data.seq_len", seq_len, problem, f"use data.seq_len={min(int(2.5**num_levels), MAX_LENGTH)}, or other levels"
            )
        most = (MAX_NONTERMINALS - 1 - num_rules) // ((num_levels - 1) * (1 + num_rules) + 1)
        if q > most:
            problem = (
                f"with data.num_levels={num_levels} and data.num_rules={num_rules}, too many nonterminals, for lack of time"
            )
            remedy = f"use data.num_symbols={most} or fewer" if most >= 2 else "use fewer levels or rules"
            raise ConfigError("data.num_symbols", q, problem, remedy)
        grammar = levels_grammar(num_levels, num_symbols, num_rules, grammar_seed)
        super().__init__(grammar, seq_len, seed, train_size, val_size, test_size)


class PCFGFileSource(GrammarSource):
    """Rows of the grammar in the file `path` (`grammar.read_grammar`), whose words are numbered as they first appear in it. A
    grammar is a setting: its file is read at once."""

    @checked("data")
    def __init__(
        self,
        path: Path,
        seq_len: Length = 16,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        grammar, self.words = read_grammar(expanded(path))
        if len(grammar.names) > MAX_NONTERMINALS:
            problem = f"has {len(grammar.names)} nonterminals in Chomsky normal form, for lack of time"
            raise ConfigError("data.path", str(path), problem, f"use a grammar of at most {MAX_NONTERMINALS}")
        super().__init__(grammar, seq_len, seed, train_size, val_size, test_size)

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.grammar.rules, self.words)).encode()).hexdigest()[:24]

    def expected_fingerprint(self) -> str:
        return self.fingerprint()


def check_length(seq_len: int, num_nonterminals: int, num_rules: int) -> None:
    """Raises ConfigError where rows are too long for so many nonterminals of so many rules."""
    by_work, by_table = (MAX_WORK / num_nonterminals**2) ** (1 / 3), (MAX_TABLE / (num_nonterminals * num_rules)) ** 0.5
    longest = int(min(by_work, by_table) + 1e-9)
    if seq_len > longest:
        problem = f"with {num_nonterminals} nonterminals of up to {num_rules} rules each, for lack of time and memory"
        raise ConfigError("data.seq_len", seq_len, problem, f"use data.seq_len={longest} or less, or a smaller grammar")


class Choices:
    """Draws one of C outcomes from each of R distributions: a search among the sums of their weights, r + sum. Most cells of a
    grid lie within one outcome, and there the search is a look into a table."""

    def __init__(self, weight_RC: Tensor) -> None:
        num_rows, self._num_outcomes = weight_RC.shape
        sums_RC = cdf(weight_RC).nan_to_num(1.0)  # rows without any weight are never asked for
        self._sums = (sums_RC + torch.arange(num_rows)[:, None]).flatten()
        borders = torch.arange(num_rows * _CELLS + 1, dtype=torch.float64) / _CELLS
        self._first = torch.searchsorted(self._sums, borders, right=True, out_int32=True)

    def draw(self, row: Tensor, u: Tensor) -> Tensor:
        place = (row + u.clamp(max=_BELOW_1)).flatten()
        cell = (place * _CELLS).long()
        found = self._first.index_select(0, cell)
        unsure = nonzero_flat(found != self._first.index_select(0, cell.add_(1)))
        found = found.long().index_copy_(0, unsure, torch.searchsorted(self._sums, place.index_select(0, unsure), right=True))
        return found.view(row.shape) - row * self._num_outcomes

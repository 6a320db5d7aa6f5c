"""Brackets of k kinds: well nested (`dyck`), or each kind balanced by itself (`shuffle_dyck`), all such rows alike.

    dyck            (  [  ]  (  )  )          what closes is what was opened last
    height          1  2  1  2  1  0          of at most `max_depth`; 0 at the end

    shuffle_dyck    (  [  )  ]                each kind is a counter of its own, of at most `max_depth`, and 0 at the end
    tokens          0  1  2  3                symbol i opens kind i, symbol k + i closes it

What a gap holds may be told by tokens far away. A larger `max_depth` makes it harder: more must be kept in mind.

Source: Chomsky, Schützenberger, "The algebraic theory of context-free languages", 1963; bounded, Hewitt, Hahn, Ganguli, Liang,
Manning, "RNNs can generate bounded hierarchical languages with optimal memory", EMNLP 2020, arXiv 2010.07515; shuffled, Suzgun,
Belinkov, Shieber, Gehrmann, "LSTM networks can perform dynamic counting", 2019, arXiv 1906.03648.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from math import cos, log, pi
from typing import Annotated

from annotated_types import Ge, Interval

from mlm_lightning.data.languages.chain import MAX_STATES, Chain, check_memory
from mlm_lightning.data.languages.chain_source import ChainSource
from mlm_lightning.data.languages.joint import Path, as_joint, check_size
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, NumRows, SeqLen
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.values import checked

NumKinds = Annotated[int, Interval(ge=1, le=MAX_SYMBOLS // 2), "it is the number of kinds of brackets"]
MaxDepth = Annotated[int, Ge(1), "so many brackets may be open"]
Open = tuple[int, ...]


class _Brackets(ChainSource):
    """What both share; `Open` is what is open after a token: a stack of kinds, or a count of each kind."""

    def __init__(
        self, num_kinds: int, max_depth: int, seq_len: int, seed: int, train_size: int, val_size: int, test_size: int
    ) -> None:
        super().__init__(2 * num_kinds, seed, train_size, val_size, test_size)
        if seq_len % 2:
            raise ConfigError("data.seq_len", seq_len, "brackets come in pairs", f"give an even number, such as {seq_len + 1}")
        if self._num_open(num_kinds, max_depth) > MAX_STATES:
            fits = [depth for depth in range(1, min(max_depth, MAX_STATES)) if self._num_open(num_kinds, depth) <= MAX_STATES]
            problem = f"with data.num_kinds={num_kinds} there are more than {MAX_STATES} ways to be open, for lack of memory"
            remedy = f"use data.max_depth={max(fits)} or less, or fewer kinds" if fits else "use fewer kinds"
            raise ConfigError("data.max_depth", max_depth, problem, remedy)
        self.num_kinds, self.max_depth, self._length = num_kinds, max_depth, seq_len
        check_memory(seq_len, len(self.chain.initial_S))

    @staticmethod
    @abstractmethod
    def _num_open(num_kinds: int, max_depth: int) -> int:
        """In how many ways brackets may be open."""

    @abstractmethod
    def _none_open(self) -> Open: ...

    @abstractmethod
    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        """What may be open next, and the token that leads there."""

    @staticmethod
    @abstractmethod
    def _height(open_: Open) -> int:
        """How many brackets are open."""

    def _highest(self) -> int:
        return self.max_depth

    @cached_property
    def chain(self) -> Chain:
        closed, num_values = self._none_open(), self._highest() + 1
        return Chain.of_words(
            self._following(closed),
            self._following,
            lambda open_: open_ == closed,
            self.num_symbols,
            self._length,
            lambda open_: {"height": (self._height(open_), num_values)},
        )

    def joint(self) -> Joint:
        """Every row of brackets that can be read to its end."""
        counts = range(self.num_symbols)
        paths: list[Path] = [
            (1.0, list(tokens), heights)
            for tokens in product(counts, repeat=self._length)
            if (heights := self._read(tokens)) is not None
        ]
        check_size(len(paths))
        return as_joint(paths, {"height": list})

    @abstractmethod
    def _read(self, tokens: Sequence[int]) -> list[int] | None:
        """The height after each token; None where they are not balanced."""


class DyckSource(_Brackets):
    """Rows in which brackets are well nested, at most `max_depth` deep."""

    @checked("data")
    def __init__(
        self,
        num_kinds: NumKinds = 2,
        max_depth: MaxDepth = 4,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_kinds, max_depth, seq_len, seed, train_size, val_size, test_size)

    @staticmethod
    def _num_open(num_kinds: int, max_depth: int) -> int:
        return max_depth + 1 if num_kinds == 1 else (num_kinds ** (max_depth + 1) - 1) // (num_kinds - 1)

    def _none_open(self) -> Open:
        return ()

    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        if len(open_) < self.max_depth:
            yield from (((*open_, kind), kind) for kind in range(self.num_kinds))
        if open_:
            yield open_[:-1], self.num_kinds + open_[-1]

    @staticmethod
    def _height(open_: Open) -> int:
        return len(open_)

    def entropy_rate(self) -> float:
        """The paths in a strip of this height grow by 2 cos(π / (max_depth + 2)) a step, and half of the steps choose a
        kind."""
        return log(2 * cos(pi / (self.max_depth + 2))) + log(self.num_kinds) / 2

    def _read(self, tokens: Sequence[int]) -> list[int] | None:
        stack: list[int] = []
        heights = []
        for token in tokens:
            if token < self.num_kinds:
                stack.append(token)
            elif not stack or stack.pop() != token - self.num_kinds:
                return None
            heights.append(len(stack))
        return heights if not stack and max(heights) <= self.max_depth else None


class ShuffleDyckSource(_Brackets):
    """Rows in which the brackets of each kind are balanced by themselves, at most `max_depth` of a kind open."""

    @checked("data")
    def __init__(
        self,
        num_kinds: NumKinds = 2,
        max_depth: MaxDepth = 4,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_kinds, max_depth, seq_len, seed, train_size, val_size, test_size)

    @staticmethod
    def _num_open(num_kinds: int, max_depth: int) -> int:
        return (max_depth + 1) ** num_kinds

    def _none_open(self) -> Open:
        return (0,) * self.num_kinds

    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        for kind, count in enumerate(open_):
            for change, token in ((1, kind), (-1, self.num_kinds + kind)):
                if 0 <= count + change <= self.max_depth:
                    yield (*open_[:kind], count + change, *open_[kind + 1 :]), token

    @staticmethod
    def _height(open_: Open) -> int:
        return sum(open_)

    def _highest(self) -> int:
        return self.num_kinds * self.max_depth

    def entropy_rate(self) -> float:
        """Steps of the kinds, each in a strip of this height, are interleaved freely: what each grows by adds up."""
        return log(self.num_kinds * 2 * cos(pi / (self.max_depth + 2)))

    def _read(self, tokens: Sequence[int]) -> list[int] | None:
        counts = [0] * self.num_kinds
        heights = []
        for token in tokens:
            kind = token % self.num_kinds
            counts[kind] += 1 if token < self.num_kinds else -1
            if not 0 <= counts[kind] <= self.max_depth:
                return None
            heights.append(sum(counts))
        return None if any(counts) else heights

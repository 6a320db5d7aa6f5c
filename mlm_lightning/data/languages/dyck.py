"""Brackets of k kinds: well nested (`dyck`), or each kind balanced by itself (`shuffle_dyck`), all such rows alike.

    dyck            (  [  ]  (  )  )          what closes is what was opened last
    height          1  2  1  2  1  0          of at most `max_depth`; 0 at the end

    shuffle_dyck    (  [  )  ]                each kind is a counter of its own, of at most `max_depth`, and 0 at the end
    tokens          0  1  2  3                symbol i opens kind i, symbol k + i closes it

What a gap holds may depend on tokens far away. A larger `max_depth` makes it harder: more must be kept in mind. All words of a
length are equally likely, other than in Hewitt et al., who draw each next bracket by a fixed chance to close.

Source: Chomsky, Schützenberger, "The algebraic theory of context-free languages", 1963; bounded, Hewitt, Hahn, Ganguli, Liang,
Manning, "RNNs can generate bounded hierarchical languages with optimal memory", EMNLP 2020, arXiv 2010.07515; shuffled, Suzgun,
Belinkov, Shieber, Gehrmann, "LSTM networks can perform dynamic counting", 2019, arXiv 1906.03648.
"""

from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from math import cos, log, pi
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.chain import Chain, Latent
from mlm_lightning.data.languages.chain_source import MAX_STATES, ChainLanguage
from mlm_lightning.data.languages.large_chains import Brackets
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, Errors, SeqLen, language

NumKinds = Annotated[int, Interval(ge=1, le=MAX_SYMBOLS // 2), "it is the number of kinds of brackets"]
MaxDepth = Annotated[int, Ge(1), "so many brackets may be open"]
Open = tuple[int, ...]
"""The open brackets after a token: a stack of kinds, or a count of each kind."""


@language
class _Brackets(ChainLanguage):
    """The part that both languages share."""

    num_kinds: NumKinds = 2
    max_depth: MaxDepth = 4
    seq_len: SeqLen = 64

    def errors(self) -> Errors:
        if self.seq_len % 2:
            remedy = f"give an even number, such as {self.seq_len + 1}"
            yield self.error("seq_len", "brackets come in pairs", remedy)
        if self._num_open(self.max_depth) > MAX_STATES:
            depths = range(1, min(self.max_depth, MAX_STATES))
            fits = [depth for depth in depths if self._num_open(depth) <= MAX_STATES]
            ways = f"there are more than {MAX_STATES} ways to be open, for lack of memory"
            remedy = f"use data.max_depth={max(fits)} or less, or fewer kinds" if fits else "use fewer kinds"
            yield self.error("max_depth", f"with data.num_kinds={self.num_kinds} {ways}", remedy)
        else:
            yield from self.too_long(len(self._states[0]))

    @property
    def num_symbols(self) -> int:  # type: ignore[override]
        return 2 * self.num_kinds

    @abstractmethod
    def _num_open(self, max_depth: int) -> int:
        """In how many ways brackets may be open."""

    @property
    @abstractmethod
    def _closed(self) -> Open:
        """The state in which no bracket is open."""

    @abstractmethod
    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        """The brackets that may be open next, and the token that leads there."""

    @abstractmethod
    def _height(self, open_: Open) -> int:
        """How many brackets are open."""

    @cached_property
    def _states(self) -> tuple[list[tuple[Open, int]], list[list[int]]]:
        """All pairs of what is open and the token before, in the order in which they are found from the start, and the numbers
        of those that follow each."""
        pairs = list(self._following(self._closed))
        number = {pair: place for place, pair in enumerate(pairs)}
        successors = []
        for open_, _ in pairs:  # grows while it is read
            following = list(self._following(open_))
            for pair in following:
                if pair not in number:
                    number[pair] = len(pairs)
                    pairs.append(pair)
            successors.append([number[pair] for pair in following])
        return pairs, successors

    @cached_property
    def chain(self) -> Chain:
        """All words of brackets, equally likely."""
        pairs, successors = self._states
        widest = max(map(len, successors))
        successor_SR = torch.tensor([row + [0] * (widest - len(row)) for row in successors])
        step_1SR = torch.tensor([[[1.0] * len(row) + [0.0] * (widest - len(row)) for row in successors]], dtype=torch.float64)
        emission_SQ = one_hot(torch.tensor([token for _, token in pairs]), self.num_symbols).double()
        num_first = len(list(self._following(self._closed)))
        initial_1S = (torch.arange(len(pairs)) < num_first).double()[None]
        final_1S = torch.tensor([[open_ == self._closed for open_, _ in pairs]]).double()
        height_1S = torch.tensor([[self._height(open_) for open_, _ in pairs]])
        latents = {"height": Latent(height_1S, int(height_1S.max()) + 1)}
        return Chain(initial_1S, step_1SR, emission_SQ, self.seq_len, final_1S, successor_SR, latents)

    def oracle(self) -> Brackets:
        """A bracket's state is known by what is open after it, and by what was open before it, from which it follows."""
        pairs, successors = self._states
        number = {open_: place for place, open_ in enumerate(dict.fromkeys([self._closed, *(open_ for open_, _ in pairs)]))}
        after_S = torch.tensor([number[open_] for open_, _ in pairs])
        before_S = torch.zeros_like(after_S)
        for (open_, _), following in zip(pairs, successors, strict=True):
            before_S[following] = number[open_]
        return Brackets(self.chain, before_S, after_S)


@language
class DyckSource(_Brackets):
    """Rows in which brackets are well nested, at most `max_depth` deep."""

    def _num_open(self, max_depth: int) -> int:
        k = self.num_kinds
        return max_depth + 1 if k == 1 else (k ** (max_depth + 1) - 1) // (k - 1)

    @property
    def _closed(self) -> Open:
        return ()

    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        if len(open_) < self.max_depth:
            yield from (((*open_, kind), kind) for kind in range(self.num_kinds))
        if open_:
            yield open_[:-1], self.num_kinds + open_[-1]

    def _height(self, open_: Open) -> int:
        return len(open_)

    def entropy_rate(self) -> float:
        """The paths in a strip of this height grow by 2 cos(π / (max_depth + 2)) a step, and half of the steps choose a
        kind."""
        return log(2 * cos(pi / (self.max_depth + 2))) + log(self.num_kinds) / 2


@language
class ShuffleDyckSource(_Brackets):
    """Rows in which the brackets of each kind are balanced by themselves, at most `max_depth` of a kind open."""

    def _num_open(self, max_depth: int) -> int:
        return (max_depth + 1) ** self.num_kinds

    @property
    def _closed(self) -> Open:
        return (0,) * self.num_kinds

    def _following(self, open_: Open) -> Iterable[tuple[Open, int]]:
        for kind, count in enumerate(open_):
            for change, token in ((1, kind), (-1, self.num_kinds + kind)):
                if 0 <= count + change <= self.max_depth:
                    yield (*open_[:kind], count + change, *open_[kind + 1 :]), token

    def _height(self, open_: Open) -> int:
        return sum(open_)

    def entropy_rate(self) -> float:
        """Steps of the kinds, each in a strip of this height, are interleaved freely: what each grows by adds up."""
        return log(self.num_kinds * 2 * cos(pi / (self.max_depth + 2)))

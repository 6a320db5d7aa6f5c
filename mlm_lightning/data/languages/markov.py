"""A Markov chain of order n: a token depends on the n tokens before it, by one fixed table of probabilities.

    n = 2      … 3  1  0  3  1  ?         ? ~ T[3, 1, ·]
                       └──┴──┴───►

Rows are windows of an endless sequence: their first tokens are stationary. Each context's distribution is drawn from a
symmetric Dirichlet: with a small `concentration` it is nearly certain what follows (easy to predict once it is learned, and
much to learn), with a large one everything is nearly uniform.

Source: Shannon, "A mathematical theory of communication", 1948; as a task for transformers: Edelman, Edelman, Goel, Malach,
Tsilivis, "The evolution of statistical induction heads", 2024, arXiv 2402.11004.
"""

from functools import cached_property
from itertools import product
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.chain import (
    MAX_STATES,
    Chain,
    Concentration,
    check_memory,
    entropy_rate,
    stationary,
)
from mlm_lightning.data.languages.chain_source import ChainSource
from mlm_lightning.data.languages.joint import as_joint, unfold
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SeqLen
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import Stream, dirichlet
from mlm_lightning.values import checked


class MarkovSource(ChainSource):
    """Rows of the chain that `grammar_seed` draws; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 4,
        order: Annotated[int, Interval(ge=1, le=3), "a token depends on so many before it"] = 2,
        concentration: Concentration = 0.3,
        seq_len: SeqLen = 64,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if num_symbols**order > MAX_STATES:
            most = int(MAX_STATES ** (1 / order) + 1e-9)
            problem = f"with data.order={order}, num_symbols^order is above {MAX_STATES}, for lack of memory"
            raise ConfigError(
                "data.num_symbols", num_symbols, problem, f"use data.num_symbols={most} or fewer, or a lower order"
            )
        check_memory(seq_len, num_symbols**order)
        self.order, self._length = order, seq_len
        self.next_CQ = dirichlet(concentration, (num_symbols**order, num_symbols), grammar_seed, Stream.GRAMMAR)
        """The probability of each symbol after each context, the oldest token of a context its highest digit."""

    @cached_property
    def _successor_CQ(self) -> Tensor:
        """Contexts as numbers, the oldest token their highest digit."""
        num_contexts, q = self.next_CQ.shape
        return (torch.arange(num_contexts)[:, None] * q + torch.arange(q)) % num_contexts

    @cached_property
    def _stationary_C(self) -> Tensor:
        transition_CC = torch.zeros(len(self.next_CQ), len(self.next_CQ), dtype=torch.float64)
        return stationary(transition_CC.scatter_(1, self._successor_CQ, self.next_CQ))

    @cached_property
    def chain(self) -> Chain:
        """Its states are the contexts, which end in the token at hand."""
        num_contexts, q = self.next_CQ.shape
        emission_CQ = torch.nn.functional.one_hot(torch.arange(num_contexts) % q, q).double()
        return Chain(self._stationary_C, self._successor_CQ, self.next_CQ, emission_CQ, self._length)

    def entropy_rate(self) -> float:
        return entropy_rate(self.next_CQ, self._stationary_C)

    def joint(self) -> Joint:
        symbols = range(self.num_symbols)
        contexts = list(product(symbols, repeat=self.order))
        following = dict(zip(contexts, self.next_CQ.tolist(), strict=True))
        share = dict.fromkeys(contexts, 1 / len(contexts))
        for _ in range(10_000):  # from anywhere, it comes to what it is in the long run
            after = dict.fromkeys(contexts, 0.0)
            for context, weight in share.items():
                for token in symbols:
                    after[(*context[1:], token)] += weight * following[context][token]
            share = after
        paths = unfold(
            self._length,
            [(weight, context[-1], context) for context, weight in share.items()],
            lambda context, _: [(following[context][token], token, (*context[1:], token)) for token in symbols],
        )
        return as_joint(paths, {})

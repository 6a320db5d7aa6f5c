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
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn.functional import one_hot

from mlm_lightning.data.languages.chain import Chain, Concentration
from mlm_lightning.data.languages.chain_source import MAX_STATES, ChainLanguage
from mlm_lightning.data.languages.large_chains import Contexts
from mlm_lightning.data.languages.stationary import entropy_rate, stationary
from mlm_lightning.data.languages.synthetic import Errors, NumSymbols, SeqLen, language
from mlm_lightning.randomness import Stream, dirichlet


@language
class MarkovSource(ChainLanguage):
    """Rows of the chain that `grammar_seed` draws; `seed` makes the rows alone."""

    num_symbols: NumSymbols = 4
    order: Annotated[int, Interval(ge=1, le=3), "a token depends on so many before it"] = 2
    concentration: Concentration = 0.3
    seq_len: SeqLen = 64
    grammar_seed: int = 0

    def errors(self) -> Errors:
        most = int(MAX_STATES ** (1 / self.order) + 1e-9)
        remedy = f"use data.num_symbols={most} or fewer, or a lower order"
        problem = f"with data.order={self.order}, num_symbols^order"
        return self.too_large(self.num_symbols**self.order, "num_symbols", problem, remedy)

    @cached_property
    def next_CQ(self) -> Tensor:
        """The probability of each symbol after each of C contexts: numbers, their highest digit the oldest token."""
        q = self.num_symbols
        return dirichlet(self.concentration, (q**self.order, q), self.grammar_seed, Stream.GRAMMAR)

    @cached_property
    def _successor_CQ(self) -> Tensor:
        num_contexts, q = self.next_CQ.shape
        return (torch.arange(num_contexts)[:, None] * q + torch.arange(q)) % num_contexts

    @cached_property
    def _stationary_C(self) -> Tensor:
        num_contexts = len(self.next_CQ)
        transition_CC = torch.zeros(num_contexts, num_contexts, dtype=torch.float64)
        return stationary(transition_CC.scatter(1, self._successor_CQ, self.next_CQ))

    @cached_property
    def chain(self) -> Chain:
        """Its states are the contexts, which end in the token at hand."""
        num_contexts, q = self.next_CQ.shape
        emission_CQ = one_hot(torch.arange(num_contexts) % q, q).double()
        initial_1C, step_1CQ = self._stationary_C[None], self.next_CQ[None]
        return Chain(initial_1C, step_1CQ, emission_CQ, self.seq_len, successor_SR=self._successor_CQ)

    def oracle(self) -> Contexts:
        return Contexts(self.chain)

    def entropy_rate(self) -> float:
        return entropy_rate(self.next_CQ, self._stationary_C)

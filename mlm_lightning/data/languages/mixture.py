"""A mixture of Markov chains: each row is of one of M, and does not say which.

    component  1             one of M, all alike; the same along the row
    tokens     3 0 2 2 1 …   x_t+1 ~ T_1[x_t, .]

Two things are to be done at once: to find out from the visible tokens which chain it is, and to fill the gaps by that chain.
More `num_components`, or a larger `concentration` (chains that resemble each other), make the first harder.

Source: as a task of in-context inference, Xie, Raghunathan, Liang, Ma, "An explanation of in-context learning as implicit
Bayesian inference", ICLR 2022, arXiv 2111.02080 (mixtures of HMMs); of Markov chains, Park, Lubana, Pres, Tanaka, "Competition
dynamics shape algorithmic phases of in-context learning", ICLR 2025, arXiv 2412.01003.
"""

from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain, Concentration, Latent
from mlm_lightning.data.languages.chain_source import MAX_STATES, ChainLanguage
from mlm_lightning.data.languages.stationary import entropy_rate, stationary
from mlm_lightning.data.languages.synthetic import Errors, NumSymbols, SeqLen, language
from mlm_lightning.randomness import Stream, dirichlet


@language
class MixtureSource(ChainLanguage):
    """Rows of the chains that `grammar_seed` draws; `seed` makes the rows alone."""

    num_symbols: NumSymbols = 4
    num_components: Annotated[int, Interval(ge=1, le=MAX_STATES // 2), "a row is of one of so many chains"] = 8
    concentration: Concentration = 0.5
    seq_len: SeqLen = 64
    grammar_seed: int = 0

    def errors(self) -> Errors:
        q = self.num_symbols
        problem = f"with data.num_symbols={q}, num_components · num_symbols"
        return self.too_large(self.num_components * q, "num_components", problem, f"use {MAX_STATES // q} or fewer")

    @cached_property
    def transition_MQQ(self) -> Tensor:
        shape = (self.num_components, self.num_symbols, self.num_symbols)
        return dirichlet(self.concentration, shape, self.grammar_seed, Stream.GRAMMAR)

    @cached_property
    def _stationary_MQ(self) -> Tensor:
        return torch.stack([stationary(transition_QQ) for transition_QQ in self.transition_MQQ])

    @cached_property
    def chain(self) -> Chain:
        """One for each component, whose states are the tokens."""
        num_components, q, _ = self.transition_MQQ.shape
        component_MQ = torch.arange(num_components)[:, None].expand(-1, q)
        latents = {"component": Latent(component_MQ, num_components, once=True)}
        initial_MQ, emission_QQ = self._stationary_MQ / num_components, torch.eye(q, dtype=torch.float64)
        return Chain(initial_MQ, self.transition_MQQ, emission_QQ, self.seq_len, latents=latents)

    def entropy_rate(self) -> float:
        """That of a long row, in which its component is known."""
        rates = [entropy_rate(*each) for each in zip(self.transition_MQQ, self._stationary_MQ, strict=True)]
        return sum(rates) / len(rates)

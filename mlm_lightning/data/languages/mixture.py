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

from mlm_lightning.data.languages.chain import (
    MAX_STATES,
    Chain,
    Concentration,
    Latent,
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


class MixtureSource(ChainSource):
    """Rows of the chains that `grammar_seed` draws; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 4,
        num_components: Annotated[int, Interval(ge=1, le=MAX_STATES // 2), "a row is of one of so many chains"] = 8,
        concentration: Concentration = 0.5,
        seq_len: SeqLen = 64,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if num_components * num_symbols > MAX_STATES:
            problem = (
                f"with data.num_symbols={num_symbols}, num_components · num_symbols is above {MAX_STATES}, for lack of memory"
            )
            raise ConfigError("data.num_components", num_components, problem, f"use {MAX_STATES // num_symbols} or fewer")
        check_memory(seq_len, num_components * num_symbols)
        self._length = seq_len
        shape = (num_components, num_symbols, num_symbols)
        self.transition_MQQ = dirichlet(concentration, shape, grammar_seed, Stream.GRAMMAR)

    @cached_property
    def chain(self) -> Chain:
        """Its states are pairs of a component and a token."""
        components, q, _ = self.transition_MQQ.shape
        initial_MQ = torch.stack([stationary(each_QQ) for each_QQ in self.transition_MQQ]) / components
        component_S, token_S = torch.arange(components * q) // q, torch.arange(components * q) % q
        successor_SR = component_S[:, None] * q + torch.arange(q)
        emission_SQ = torch.nn.functional.one_hot(token_S, q).double()
        latents = {"component": Latent(component_S, components, once=True)}
        weight_SR = self.transition_MQQ.flatten(0, 1)
        return Chain(initial_MQ.flatten(), successor_SR, weight_SR, emission_SQ, self._length, latents=latents)

    def entropy_rate(self) -> float:
        """Of a long row, in which its component is known."""
        rates = [entropy_rate(each_QQ, stationary(each_QQ)) for each_QQ in self.transition_MQQ]
        return sum(rates) / len(rates)

    def joint(self) -> Joint:
        tables, symbols = self.transition_MQQ.tolist(), range(self.num_symbols)
        first = []
        for component, table in enumerate(tables):
            share = [1 / len(symbols)] * len(symbols)
            for _ in range(10_000):
                share = [sum(share[a] * table[a][b] for a in symbols) for b in symbols]
            first += [(prob / len(tables), token, (component, token)) for token, prob in enumerate(share)]
        paths = unfold(
            self._length,
            first,
            lambda state, _: [(prob, token, (state[0], token)) for token, prob in enumerate(tables[state[0]][state[1]])],
        )
        return as_joint(paths, {"component": lambda states: [states[0][0]]})

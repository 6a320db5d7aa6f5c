"""A hidden Markov model: a hidden state goes its way, and each token is some evidence of where it is.

    state    2 ─► 2 ─► 0 ─► 1 ─►          T[s, s'] the next state's probability     initial: stationary
             │    │    │    │
    token    5    1    7    1             E[s, x] the token's

`preset` has two of the literature, whose sizes are their own:

    mess3    three states, each stays with 0.9, and shows itself with 0.85: beliefs fill a fractal
    z1r      "zero, one, random": 0 1 ? 0 1 ? …, with an unknown phase

With a small `concentration` states and tokens are nearly certain, given the state before; with a large one nothing can be
predicted.

Source: Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 1989; mess3 and z1r as in Shai, Marzen, Teixeira, Oldenziel,
Riechers, "Transformers represent belief state geometry in their residual stream", NeurIPS 2024, arXiv 2405.15943.
"""

from functools import cached_property
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain, Concentration, Latent
from mlm_lightning.data.languages.chain_source import ChainLanguage
from mlm_lightning.data.languages.stationary import stationary
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, Errors, SeqLen, language
from mlm_lightning.randomness import Stream, dirichlet

_SIZES = ("num_states", "num_symbols")
_SIZE = 8  # of both, where neither they nor a preset are given
_MESS3 = (
    [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]],
    [[0.85, 0.075, 0.075], [0.075, 0.85, 0.075], [0.075, 0.075, 0.85]],
)
_Z1R = ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
PRESETS = {"mess3": _MESS3, "z1r": _Z1R}

NumStates = Annotated[int, Interval(ge=1, le=256), "it is the number of hidden states"]


@language
class HMMSource(ChainLanguage):
    """Rows of the model that `grammar_seed` draws, or of a `preset`; `seed` makes the rows alone."""

    num_states: NumStates | None = None
    num_symbols: Annotated[int, Interval(ge=2, le=MAX_SYMBOLS), "it is the number of different tokens"] | None = None  # type: ignore[assignment]
    preset: Literal["mess3", "z1r"] | None = None
    concentration: Concentration = 0.3
    seq_len: SeqLen = 64
    grammar_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, size in zip(_SIZES, self.emission_SQ.shape, strict=True):
            object.__setattr__(self, key, size)

    def errors(self) -> Errors:
        for key, size in zip(_SIZES, self.emission_SQ.shape, strict=True):
            if getattr(self, key) not in (None, size):
                yield self.error(key, f"data.preset={self.preset} has {size}", f"leave data.{key} out")
        yield from self.too_long(len(self.emission_SQ))

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        if self.preset is not None:
            transition_SS, emission_SQ = (torch.tensor(table, dtype=torch.float64) for table in PRESETS[self.preset])
            return transition_SS, emission_SQ
        num_states, num_symbols = self.num_states or _SIZE, self.num_symbols or _SIZE
        transition_SS = dirichlet(self.concentration, (num_states, num_states), self.grammar_seed, Stream.GRAMMAR, 0)
        return transition_SS, dirichlet(self.concentration, (num_states, num_symbols), self.grammar_seed, Stream.GRAMMAR, 1)

    @property
    def transition_SS(self) -> Tensor:
        return self._tables[0]

    @property
    def emission_SQ(self) -> Tensor:
        return self._tables[1]

    @cached_property
    def chain(self) -> Chain:
        initial_1S, transition_1SS = stationary(self.transition_SS)[None], self.transition_SS[None]
        num_states = len(self.transition_SS)
        latents = {"state": Latent(torch.arange(num_states)[None], num_states)}
        return Chain(initial_1S, transition_1SS, self.emission_SQ, self.seq_len, latents=latents)

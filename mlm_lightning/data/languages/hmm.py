"""A hidden Markov model: a hidden state goes its way, and each token tells a little of where it is.

    state    2 ─► 2 ─► 0 ─► 1 ─►          T[s, s'] the next state's probability     initial: stationary
             │    │    │    │
    token    5    1    7    1             E[s, x] the token's

`preset` has two of the literature, whose sizes are their own:

    mess3    three states, each stays with 0.9, and shows itself with 0.85: beliefs fill a fractal
    z1r      "zero, one, random": 0 1 ? 0 1 ? …, with an unknown phase

With a small `concentration` states and tokens are nearly certain, given the state before; with a large one nothing can be told.

Source: Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 1989; mess3 and z1r as in Shai, Marzen, Teixeira, Oldenziel,
Riechers, "Transformers represent belief state geometry in their residual stream", NeurIPS 2024, arXiv 2405.15943.
"""

from functools import cached_property
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from mlm_lightning.data.languages.chain import Chain, Concentration, Latent, check_memory, stationary
from mlm_lightning.data.languages.chain_source import ChainSource
from mlm_lightning.data.languages.joint import as_joint, unfold
from mlm_lightning.data.languages.synthetic import MAX_SYMBOLS, NumRows, SeqLen
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import Stream, dirichlet
from mlm_lightning.values import checked

_SIZE = 8  # of both, where neither they nor a preset are given
_MESS3 = (
    [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]],
    [[0.85, 0.075, 0.075], [0.075, 0.85, 0.075], [0.075, 0.075, 0.85]],
)
_Z1R = ([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
PRESETS = {"mess3": _MESS3, "z1r": _Z1R}

NumStates = Annotated[int, Interval(ge=1, le=256), "it is the number of hidden states"]


class HMMSource(ChainSource):
    """Rows of the model that `grammar_seed` draws, or of a `preset`; `seed` makes the rows alone."""

    @checked("data")
    def __init__(
        self,
        num_states: NumStates | None = None,
        num_symbols: Annotated[int, Interval(ge=2, le=MAX_SYMBOLS), "it is the number of different tokens"] | None = None,
        preset: Literal["mess3", "z1r"] | None = None,
        concentration: Concentration = 0.3,
        seq_len: SeqLen = 64,
        grammar_seed: int = 0,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        if preset is None:
            states, symbols = num_states or _SIZE, num_symbols or _SIZE
            self.transition_SS = dirichlet(concentration, (states, states), grammar_seed, Stream.GRAMMAR, 0)
            self.emission_SQ = dirichlet(concentration, (states, symbols), grammar_seed, Stream.GRAMMAR, 1)
        else:
            self.transition_SS, self.emission_SQ = (torch.tensor(each, dtype=torch.float64) for each in PRESETS[preset])
            for key, given, own in zip(
                ("num_states", "num_symbols"), (num_states, num_symbols), self.emission_SQ.shape, strict=True
            ):
                if given not in (None, own):
                    raise ConfigError(f"data.{key}", given, f"data.preset={preset} has {own}", f"leave data.{key} out")
        super().__init__(self.emission_SQ.shape[1], seed, train_size, val_size, test_size)
        check_memory(seq_len, len(self.transition_SS))
        self._length = seq_len

    @cached_property
    def chain(self) -> Chain:
        num_states = len(self.transition_SS)
        latents = {"state": Latent(torch.arange(num_states), num_states)}
        initial_S = stationary(self.transition_SS)
        return Chain.full(initial_S, self.transition_SS, self.emission_SQ, self._length, latents=latents)

    def joint(self) -> Joint:
        transition, emission = self.transition_SS.tolist(), self.emission_SQ.tolist()
        states = range(len(transition))
        share = [1 / len(states)] * len(states)
        for _ in range(10_000):
            moved = [sum(share[a] * transition[a][b] for a in states) for b in states]
            share = [(here + there) / 2 for here, there in zip(share, moved, strict=True)]  # half: a cycle would never settle

        def emitted(weight: float, state: int) -> list[tuple[float, int, int]]:
            return [(weight * prob, token, state) for token, prob in enumerate(emission[state])]

        first = [step for state in states for step in emitted(share[state], state)]
        paths = unfold(
            self._length, first, lambda state, _: [step for to in states for step in emitted(transition[state][to], to)]
        )
        return as_joint(paths, {"state": list})

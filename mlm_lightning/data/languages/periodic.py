"""A pattern of unknown period, repeated along the row, with flips: copying, once it is found from how far.

    pattern     5  1  2                                   period 3, of min_period … max_period; uniform symbols
    meant       5  1  2  5  1  2  5  1  2  5
    tokens      5  1  2  5  7  2  5  1  2  4              each replaced by a uniform symbol with probability `flip`
                │        │        │        │
                └────────┴────────┴────────┘              given the period, each residue class has a symbol of its own

`flip` mixes hard and easy: at 0 two equal tokens nearly show the period, near 1 nothing does. A large `max_period` leaves few
repetitions to compare.

Source: repeated sequences, as in Olsson et al., "In-context learning and induction heads", 2022, arXiv 2209.11895; here the
distance is to be inferred, and copies are noisy.
"""

from math import isqrt
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.noise import Noise
from mlm_lightning.data.languages.periodic_oracle import PeriodicOracle, repeated
from mlm_lightning.data.languages.synthetic import Errors, Language, NumSymbols, SeqLen, Sizes, language
from mlm_lightning.randomness import uniform

MAX_CLASSES = 2**24
"""Of num_symbols · (min_period + … + max_period): a number a symbol, for each place of the patterns of each period."""


@language
class PeriodicSource(Language):
    """Rows of `seq_len` tokens, each of a pattern of its own. The pattern starts with the row."""

    num_symbols: NumSymbols = 8
    min_period: Annotated[int, Ge(1), "a pattern has at least so many tokens"] = 2
    max_period: Annotated[int, Ge(1), "a pattern has at most so many tokens"] = 12
    flip: Annotated[float, Interval(ge=0, le=1), "a token is replaced by a uniform symbol with this probability"] = 0.1
    seq_len: SeqLen = 64

    def errors(self) -> Errors:
        least, most = self.min_period, self.max_period
        if least > most:
            remedy = f"use data.min_period={most} or less"
            yield self.error("min_period", f"is above data.max_period={most}", remedy)
        if most > self.seq_len:
            problem = f"rows have data.seq_len={self.seq_len} tokens: a longer pattern never comes again"
            yield self.error("max_period", problem, f"use data.max_period={self.seq_len} or less")
        if (least + most) * (most - least + 1) // 2 * self.num_symbols > MAX_CLASSES:
            # the sum of min … max is (max (max + 1) - min (min - 1)) / 2
            below = 2 * (MAX_CLASSES // self.num_symbols) + least * (least - 1)
            largest = (isqrt(4 * below + 1) - 1) // 2
            problem = f"num_symbols · (min_period + … + max_period) is above {MAX_CLASSES}, for lack of memory"
            fits = f"use data.max_period={largest} or less" if largest >= least else "use a smaller data.min_period"
            yield self.error("max_period", problem, f"{fits}, or fewer symbols")

    @property
    def _noise(self) -> Noise:
        return Noise(self.flip, self.num_symbols)

    def draw(self, keys_B: Tensor) -> Tensor:
        """Number 0 of a row is its period's, the next `max_period` its pattern's, and then there is one a token."""
        pattern_BP = (uniform(keys_B[:, None], torch.arange(1, 1 + self.max_period)) * self.num_symbols).long()
        u_BL = uniform(keys_B[:, None], torch.arange(1 + self.max_period, 1 + self.max_period + self.seq_len))
        return self._noise.apply(repeated(pattern_BP, self._periods(keys_B), self.seq_len), u_BL)

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"period": (self._periods(keys_B) - self.min_period)[:, None]}

    def latent_sizes(self) -> Sizes:
        return {"period": (1, self.max_period - self.min_period + 1)}

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        """Named by the period; as numbers they begin at 0."""
        return tuple(str(self.min_period + int(name)) for name in super().classes(label, node))

    def _periods(self, keys_B: Tensor) -> Tensor:
        num_periods = self.max_period - self.min_period + 1
        return self.min_period + (uniform(keys_B, torch.tensor(0)) * num_periods).long()

    def oracle(self) -> PeriodicOracle:
        return PeriodicOracle(self._noise, range(self.min_period, self.max_period + 1), self.seq_len)

    def entropy_rate(self) -> float:
        """That of a long row, whose pattern is known: only flips remain."""
        return self._noise.entropy()

"""A pattern of unknown period, repeated along the row, with flips: copying, once it is found from how far.

    pattern     5  1  2                                   period 3, of min_period … max_period; uniform symbols
    meant       5  1  2  5  1  2  5  1  2  5
    tokens      5  1  2  5  7  2  5  1  2  4              each replaced by a uniform symbol with probability `flip`
                │        │        │        │
                └────────┴────────┴────────┘              given the period, each residue class has a symbol of its own

`flip` mixes hard and easy: at 0 two equal tokens nearly tell the period, near 1 nothing is told. A large `max_period` leaves
few repetitions to compare.

The posterior is a sum over periods; given one, the classes are independent, and each votes by its counts.

Source: repeated sequences, as in Olsson et al., "In-context learning and induction heads", 2022, arXiv 2209.11895; here the
distance is to be inferred, and copies are noisy.
Shapes beyond those of `batch`: P places of a pattern, R periods, Q symbols. The batch is the last dimension where patterns are
laid along the row.
"""

from collections.abc import Iterator
from itertools import product
from math import isqrt, log
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle
from mlm_lightning.data.languages.joint import Path, as_joint, check_size
from mlm_lightning.data.languages.noise import LOG_ZERO, Noise, log_prob_of
from mlm_lightning.data.languages.oracle import Answer, choose
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SeqLen, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.errors import ConfigError
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked

MAX_CLASSES = 2**24
"""Numbers kept for a row: one a symbol, for each place of the patterns of each period."""


class PeriodicSource(SyntheticSource):
    """Rows of `seq_len` tokens, each of a pattern of its own. The pattern starts with the row."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        min_period: Annotated[int, Ge(1), "a pattern has at least so many tokens"] = 2,
        max_period: Annotated[int, Ge(1), "a pattern has at most so many tokens"] = 12,
        flip: Annotated[float, Interval(ge=0, le=1), "a token is replaced by a uniform symbol with this probability"] = 0.1,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        if min_period > max_period:
            remedy = f"use data.min_period={max_period} or less"
            raise ConfigError("data.min_period", min_period, f"is above data.max_period={max_period}", remedy)
        if max_period > seq_len:
            problem = f"rows have data.seq_len={seq_len} tokens: a longer pattern never comes again"
            raise ConfigError("data.max_period", max_period, problem, f"use data.max_period={seq_len} or less")
        places = (min_period + max_period) * (max_period - min_period + 1) // 2
        if places * num_symbols > MAX_CLASSES:
            # the sum of min … max is (max (max + 1) - min (min - 1)) / 2
            below = 2 * (MAX_CLASSES // num_symbols) + min_period * (min_period - 1)
            largest = (isqrt(4 * below + 1) - 1) // 2
            problem = f"num_symbols · (min_period + … + max_period) is above {MAX_CLASSES}, for lack of memory"
            fits = f"use data.max_period={largest} or less" if largest >= min_period else "use a smaller data.min_period"
            raise ConfigError("data.max_period", max_period, problem, f"{fits}, or fewer symbols")
        self.min_period, self.max_period, self._length = min_period, max_period, seq_len
        self.noise = Noise(float(flip), num_symbols)

    @property
    def seq_len(self) -> int:
        return self._length

    def draw(self, keys_B: Tensor) -> Tensor:
        """Number 0 of a row is its period's, the next `max_period` its pattern's, and then there is one a token."""
        pattern_BP = uniform(keys_B[:, None], torch.arange(1, 1 + self.max_period)).mul_(self.num_symbols).long()
        u_BL = uniform(keys_B[:, None], torch.arange(1 + self.max_period, 1 + self.max_period + self._length))
        return self.noise.apply(repeated(pattern_BP, self._periods(keys_B), self._length), u_BL)

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        return {"period": (self._periods(keys_B) - self.min_period)[:, None]}

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {"period": (1, self.max_period - self.min_period + 1)}

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        """Named by the period; as numbers they begin at 0."""
        return tuple(str(self.min_period + int(name)) for name in super().classes(label, node))

    def _periods(self, keys_B: Tensor) -> Tensor:
        num_periods = self.max_period - self.min_period + 1
        return self.min_period + uniform(keys_B, torch.tensor(0)).mul_(num_periods).long()

    def oracle(self) -> "PeriodicOracle":
        return PeriodicOracle(self.noise, range(self.min_period, self.max_period + 1), self._length)

    def entropy_rate(self) -> float:
        """Of a long row, whose pattern is known: only flips remain."""
        return self.noise.entropy()

    def joint(self) -> Joint:
        symbols, flip, q = range(self.num_symbols), self.noise.share, self.num_symbols
        check_size(q**self._length)
        paths: list[Path] = []
        for period in range(self.min_period, self.max_period + 1):
            for tokens in product(symbols, repeat=self._length):
                weight = 0.0
                for pattern in product(symbols, repeat=period):
                    prob = q**-period
                    for place, token in enumerate(tokens):
                        prob *= flip / q + (1 - flip) * (token == pattern[place % period])
                    weight += prob
                if weight > 0:
                    paths.append((weight, list(tokens), [period - self.min_period]))
        return as_joint(paths, {"period": list})


class PeriodicOracle(HiddenOracle):
    """Sums over periods, each with the votes of its classes."""

    def __init__(self, noise: Noise, periods: range, seq_len: int) -> None:
        super().__init__(noise.num_symbols, seq_len, row_elements=(sum(periods) + 2 * seq_len) * (noise.num_symbols + 1))
        self._noise, self._periods = noise, periods

    def _classes(self, said_BL: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each period: `log_prob_PQB`, of the symbol of each place of the pattern, given what its class says; and
        `log_prob_B`, of all that is said."""
        said_LB, q = said_BL.T, self.num_symbols
        seen_LXB = torch.zeros(self.seq_len, q + 1, len(said_BL), dtype=torch.float64, device=said_BL.device)
        seen_LQB = seen_LXB.scatter_(1, said_LB[:, None], 1.0)[:, :q]
        for period in self._periods:
            whole = self.seq_len // period * period
            counts_PQB = seen_LQB[:whole].unflatten(0, (-1, period)).sum(0)
            counts_PQB[: self.seq_len - whole] += seen_LQB[whole:]
            log_weight_PQB = self._noise.log_prob(counts_PQB, counts_PQB.sum(1, keepdim=True)).sub_(log(q))
            log_total_P1B = log_weight_PQB.logsumexp(1, keepdim=True)
            yield log_weight_PQB.sub_(log_total_P1B), log_total_P1B.sum((0, 1))

    def _evidence(self, said_BL: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The classes of each period, the posterior of the period `probs_RB`, and `possible_B`."""
        classes, log_probs = zip(*self._classes(said_BL), strict=True)
        log_prob_RB = torch.stack(log_probs)
        return list(classes), log_prob_RB.softmax(0), (log_prob_RB > LOG_ZERO / 2).any(0)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        log_prob_RB = torch.stack([log_prob_B for _, log_prob_B in self._classes(said_BL)])
        return log_prob_of(log_prob_RB.logsumexp(0) - log(len(self._periods)))

    def _hidden(self, said_BL: Tensor, row_N: Tensor, place_N: Tensor) -> Answer:
        classes, period_RB, possible_B = self._evidence(said_BL)
        probs_LQB = torch.zeros(self.seq_len, self.num_symbols, len(said_BL), dtype=torch.float64, device=said_BL.device)
        for period, log_prob_PQB, prob_B in zip(self._periods, classes, period_RB, strict=True):
            prob_PQB = log_prob_PQB.exp_().mul_(prob_B)
            whole = self.seq_len // period * period
            probs_LQB[:whole].unflatten(0, (-1, period)).add_(prob_PQB)
            probs_LQB[whole:] += prob_PQB[: self.seq_len - whole]
        probs_NQ = probs_LQB[place_N, :, row_N] * (1 - self._noise.share) + self._noise.miss
        return torch.nn.functional.pad(probs_NQ, (0, 1)), possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        log_prob_RB = torch.stack([log_prob_B for _, log_prob_B in self._classes(said_BL)])
        return {"period": log_prob_RB.softmax(0).T[:, None]}, (log_prob_RB > LOG_ZERO / 2).any(0)

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        classes, period_RB, possible_B = self._evidence(said_BL)
        longest = self._periods[-1]
        u_BN = uniform(keys_B[:, None], torch.arange(1 + longest + self.seq_len)).to(said_BL.device)
        chosen_B = choose(period_RB.T, u_BN[:, 0])
        pattern_BP = torch.zeros(len(said_BL), longest, dtype=torch.int64, device=said_BL.device)
        for number, (period, log_prob_PQB) in enumerate(zip(self._periods, classes, strict=True)):
            rows = (chosen_B == number).nonzero()[:, 0]
            prob_MQ = log_prob_PQB[:, :, rows].exp_().permute(2, 0, 1).flatten(0, 1)
            pattern_BP[rows, :period] = choose(prob_MQ, u_BN[rows, 1 : 1 + period].flatten()).view(-1, period)
        meant_BL = repeated(pattern_BP, self._periods[0] + chosen_B, self.seq_len)
        return self._noise.apply(meant_BL, u_BN[:, 1 + longest :]), possible_B


def repeated(pattern_BP: Tensor, period_B: Tensor, seq_len: int) -> Tensor:
    """The first `period_B` symbols of each pattern, again and again."""
    return pattern_BP.gather(1, torch.arange(seq_len, device=pattern_BP.device) % period_B[:, None])

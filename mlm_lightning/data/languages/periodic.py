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

from dataclasses import dataclass
from itertools import accumulate, product
from math import isqrt, log
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from mlm_lightning.data.languages.hidden import HiddenOracle, each_its_own, nonzero_flat
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


@dataclass(frozen=True, eq=False)
class _Votes:
    """What a block of rows says: of each place of each period's pattern (P in all), and of the period."""

    weight_PQB: Tensor
    """Of the place's symbol, up to a factor."""
    total_P1B: Tensor
    """The sum of those over symbols."""
    log_prob_RB: Tensor
    """Of all that is said, by the period."""

    @property
    def possible_B(self) -> Tensor:
        return (self.log_prob_RB > LOG_ZERO / 2).any(0)


class PeriodicOracle(HiddenOracle):
    """Sums over periods, each with the votes of its classes.

    A class is that of twice its period and the one a period later, taken together: only periods beyond half of the longest go
    along the whole row, and the others from one to the other."""

    def __init__(self, noise: Noise, periods: range, seq_len: int) -> None:
        row_elements = (2 * sum(periods) + 2 * (seq_len + periods[-1])) * noise.num_symbols
        super().__init__(noise.num_symbols, seq_len, row_elements)
        self._noise, self._periods = noise, periods
        self._slices = {period: slice(end - period, end) for period, end in zip(periods, accumulate(periods), strict=True)}
        self._period_P = torch.arange(len(periods)).repeat_interleave(torch.tensor(periods))
        # of a symbol that is seen so many times less than the one seen most
        less_N = torch.arange(seq_len + 1, dtype=torch.float64)
        self._weight_N = (less_N * (noise.log_miss - noise.log_hit)).exp()

    def _votes(self, said_BL: Tensor) -> _Votes:
        q, num_rows, longest = self.num_symbols, len(said_BL), self._periods[-1]
        said_LB = torch.nn.functional.pad(said_BL.T, (0, 0, 0, longest), value=q).float()  # to whole periods
        symbol_Q1 = torch.arange(q, dtype=torch.float32, device=said_BL.device)[:, None]
        seen_LQB = said_LB.new_empty(self.seq_len + longest, q, num_rows)
        torch.eq(said_LB[:, None], symbol_Q1, out=seen_LQB)
        count_PQB = seen_LQB.new_empty(sum(self._periods), q, num_rows)
        for period in reversed(self._periods):
            double, count = self._slices.get(2 * period), count_PQB[self._slices[period]]
            whole_LQB = seen_LQB[: -(-self.seq_len // period) * period] if double is None else count_PQB[double]
            torch.sum(whole_LQB.unflatten(0, (-1, period)), 0, out=count)
        most_P1B = count_PQB.amax(1, keepdim=True)
        log_prob_P1B = self._noise.log_prob(most_P1B.double(), count_PQB.sum(1, keepdim=True).double())
        less_PQB = count_PQB.neg_().add_(most_P1B).int()
        weight_PQB = self._weight_N.index_select(0, less_PQB.flatten()).view_as(less_PQB)
        total_P1B = weight_PQB.sum(1, keepdim=True)
        log_prob_P1B += total_P1B.log().sub_(log(q))
        log_prob_RB = log_prob_P1B.new_zeros(len(self._periods), num_rows).index_add_(0, self._period_P, log_prob_P1B[:, 0])
        return _Votes(weight_PQB, total_P1B, log_prob_RB)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return log_prob_of(self._votes(said_BL).log_prob_RB.logsumexp(0) - log(len(self._periods)))

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        votes, q = self._votes(said_BL), self.num_symbols
        prob_RB, probs_PQB = votes.log_prob_RB.softmax(0), votes.weight_PQB
        probs_PQB *= prob_RB.index_select(0, self._period_P)[:, None].div_(votes.total_P1B)
        probs_LQB = probs_PQB.new_zeros(self.seq_len + self._periods[-1], q, len(said_BL))
        for period in self._periods:
            double = self._slices.get(2 * period)
            whole_LQB = probs_LQB[: -(-self.seq_len // period) * period] if double is None else probs_PQB[double]
            whole_LQB.unflatten(0, (-1, period)).add_(probs_PQB[self._slices[period]])
        cell_N = nonzero_flat(said_BL == q)
        row_N = cell_N // self.seq_len
        place_N = cell_N - row_N * self.seq_len
        probs_NQ = probs_LQB[place_N, :, row_N].mul_(1 - self._noise.share).add_(self._noise.miss)
        return *each_its_own(said_BL, cell_N, probs_NQ), votes.possible_B

    def _latents(self, said_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        votes = self._votes(said_BL)
        return {"period": votes.log_prob_RB.softmax(0).T[:, None]}, votes.possible_B

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        votes = self._votes(said_BL)
        longest = self._periods[-1]
        u_BN = uniform(keys_B[:, None], torch.arange(1 + longest + self.seq_len)).to(said_BL.device)
        chosen_B = choose(votes.log_prob_RB.softmax(0).T, u_BN[:, 0])
        pattern_BP = torch.zeros(len(said_BL), longest, dtype=torch.int64, device=said_BL.device)
        for number, (period, places) in enumerate(self._slices.items()):
            rows = (chosen_B == number).nonzero()[:, 0]
            weight_MQ = votes.weight_PQB[places, :, rows].permute(2, 0, 1).flatten(0, 1)
            pattern_BP[rows, :period] = choose(weight_MQ, u_BN[rows, 1 : 1 + period].flatten()).view(-1, period)
        meant_BL = repeated(pattern_BP, self._periods[0] + chosen_B, self.seq_len)
        return self._noise.apply(meant_BL, u_BN[:, 1 + longest :]), votes.possible_B


def repeated(pattern_BP: Tensor, period_B: Tensor, seq_len: int) -> Tensor:
    """The first `period_B` symbols of each pattern, again and again."""
    return pattern_BP.gather(1, torch.arange(seq_len, device=pattern_BP.device) % period_B[:, None])

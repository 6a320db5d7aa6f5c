"""A row has its own unigram: tokens are independent draws from a distribution that no other row shares.

    row 1     3  3  0  3  .  2  3        each distribution is drawn from a symmetric Dirichlet;
    row 2     1  6  6  1  1  .  6        what remains to be done is counting, within the row

    P(x = s | observed)  =  (concentration + how often s is seen) / (num_symbols · concentration + how many are seen)

With a small `concentration` a row has few different symbols, and soon it is clear which; with a large one all rows are nearly
uniform, and there is little to be told.

Rows are drawn without their distribution, as from an urn to which each ball drawn returns with another one like it: token t
copies one of the t before it, or is a new one, by one uniform number (c is `concentration`, q `num_symbols`):

    0 ── copy of token 0 ── 1 ── of token 1 ── 2 ─ … ─ t ── symbol 0 ── t + c ── symbol 1 ── t + 2c ─ … ─ t + qc

Source: Eggenberger, Pólya, "Über die Statistik verketteter Vorgänge", ZAMM 1923; Blackwell, MacQueen, "Ferguson distributions
via Pólya urn schemes", Annals of Statistics 1973. As a task: the order 0 of Edelman, Edelman, Goel, Malach,
Tsilivis, "The evolution of statistical induction heads", 2024, arXiv 2402.11004.
"""

import torch
from torch import Tensor

from mlm_lightning.data.languages.chain import Concentration
from mlm_lightning.data.languages.hidden import HiddenOracle
from mlm_lightning.data.languages.joint import as_joint, unfold
from mlm_lightning.data.languages.oracle import Answer
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SeqLen, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked

_CHUNK = 2**16  # random numbers that are worked on at once: they stay in the processor's cache


class UrnSource(SyntheticSource):
    """Rows of `seq_len` tokens, each of a distribution of its own."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        concentration: Concentration = 0.5,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        self.concentration, self._length = float(concentration), seq_len

    @property
    def seq_len(self) -> int:
        return self._length

    def draw(self, keys_B: Tensor) -> Tensor:
        return torch.cat([self._draw(part_B) for part_B in keys_B.split(max(1, _CHUNK // self._length))])

    def _draw(self, keys_B: Tensor) -> Tensor:
        u_BL = uniform(keys_B[:, None], torch.arange(self._length))
        return from_urn(u_BL, None, self.num_symbols, self.concentration)

    def oracle(self) -> "UrnOracle":
        return UrnOracle(self.num_symbols, self._length, self.concentration)

    def entropy_rate(self) -> float:
        """Of a long row, whose distribution is known: the mean entropy of a Dirichlet's draws."""
        c = torch.tensor(self.concentration, dtype=torch.float64)
        return float(torch.digamma(self.num_symbols * c + 1) - torch.digamma(c + 1))

    def joint(self) -> Joint:
        def step(seen: tuple[int, ...], _: int) -> list[tuple[float, int, tuple[int, ...]]]:
            total = sum(seen) + self.num_symbols * self.concentration
            return [
                ((self.concentration + count) / total, token, (*seen[:token], count + 1, *seen[token + 1 :]))
                for token, count in enumerate(seen)
            ]

        return as_joint(unfold(self._length, step((0,) * self.num_symbols, 0), step), {})


class UrnOracle(HiddenOracle):
    """Counts what is seen. Its likelihood is that of a Dirichlet-multinomial."""

    def __init__(self, num_symbols: int, seq_len: int, concentration: float) -> None:
        super().__init__(num_symbols, seq_len, row_elements=seq_len * (num_symbols + 1))
        self._concentration = concentration
        # log of c (c + 1) … (c + n - 1), by n: a difference of two lgamma loses digits where c is large
        steps_L = torch.arange(seq_len, dtype=torch.float64)
        zero_1 = torch.zeros(1, dtype=torch.float64)
        self._rising_N = torch.cat((zero_1, (steps_L + concentration).log().cumsum(0)))
        self._rising_all_N = torch.cat((zero_1, (steps_L + num_symbols * concentration).log().cumsum(0)))

    def _counts(self, said_BL: Tensor) -> Tensor:
        row_B1 = torch.arange(len(said_BL), device=said_BL.device)[:, None]
        num_said = self.num_symbols + 1
        counts = (row_B1 * num_said + said_BL).flatten().bincount(minlength=len(said_BL) * num_said)
        return counts.view(len(said_BL), num_said)[:, :-1]

    def _hidden(self, said_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight_BQ = self._counts(said_BL).double() + self._concentration
        probs_BV = torch.nn.functional.pad(weight_BQ / weight_BQ.sum(1, keepdim=True), (0, 1))
        index_BL = said_BL.int()
        hidden_BL = torch.eq(index_BL, self.num_symbols, out=torch.empty_like(index_BL))
        row_B1 = torch.arange(len(said_BL), dtype=torch.int32, device=said_BL.device)[:, None]
        return index_BL.addcmul_(hidden_BL, row_B1), probs_BV, _always(said_BL)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        counts_BQ = self._counts(said_BL)
        return self._rising_N[counts_BQ].sum(1) - self._rising_all_N[counts_BQ.sum(1)]

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len)).to(said_BL.device)
        # what is observed comes first: the order in which tokens are drawn does not matter
        order_BL = (said_BL == self.num_symbols).byte().argsort(dim=1, stable=True)
        ordered_BL = from_urn(u_BL.gather(1, order_BL), said_BL.gather(1, order_BL), self.num_symbols, self._concentration)
        return torch.empty_like(said_BL).scatter_(1, order_BL, ordered_BL), _always(said_BL)


def from_urn(u_BL: Tensor, said_BL: Tensor | None, num_symbols: int, concentration: float) -> Tensor:
    """Tokens, each drawn given those before it by its number of [0, 1), or what `said_BL` has, if it is a symbol."""
    place_L = torch.arange(u_BL.shape[1], dtype=torch.float64, device=u_BL.device)
    ball_BL = u_BL * (place_L + num_symbols * concentration)
    if said_BL is not None:
        ball_BL.masked_fill_(said_BL < num_symbols, torch.inf)  # no copy
    origin_BL = torch.minimum(ball_BL, place_L).long()
    new_BL = ball_BL.sub_(place_L).div_(concentration).clamp_(0, num_symbols - 1).long()
    if said_BL is not None:
        new_BL = torch.where(said_BL < num_symbols, said_BL, new_BL)
    while True:  # copies of copies of …: each round doubles how far back they are followed
        before_BL = origin_BL.gather(1, origin_BL)
        if before_BL.sum() == origin_BL.sum():  # each only goes back: none did
            return new_BL.gather(1, origin_BL)
        origin_BL = before_BL


def _always(said_BL: Tensor) -> Tensor:
    """Nothing is impossible."""
    return torch.ones(len(said_BL), dtype=torch.bool, device=said_BL.device)

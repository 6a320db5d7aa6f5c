"""A row has its own unigram: tokens are independent draws from a distribution that no other row shares.

    row 1     3  3  0  3  .  2  3        each distribution is drawn from a symmetric Dirichlet;
    row 2     1  6  6  1  1  .  6        what remains to be done is counting, within the row

    P(x = s | observed)  =  (concentration + how often s is seen) / (num_symbols · concentration + how many are seen)

With a small `concentration` a row has few different symbols, and soon it is clear which; with a large one all rows are nearly
uniform, and there is little to predict.

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
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, always
from mlm_lightning.data.languages.synthetic import Language, NumSymbols, SeqLen, language
from mlm_lightning.randomness import uniform


@language
class UrnSource(Language):
    """Rows of `seq_len` tokens, each of a distribution of its own."""

    num_symbols: NumSymbols = 8
    concentration: Concentration = 0.5
    seq_len: SeqLen = 64

    def draw(self, keys_B: Tensor) -> Tensor:
        u_BL = uniform(keys_B[:, None], torch.arange(self.seq_len))
        return from_urn(u_BL, torch.full(u_BL.shape, self.num_symbols), self.num_symbols, self.concentration)

    def oracle(self) -> "UrnOracle":
        return UrnOracle(self.num_symbols, self.seq_len, self.concentration)

    def entropy_rate(self) -> float:
        """That of a long row, whose distribution is known: the mean entropy of a Dirichlet's draws."""
        c = torch.tensor(self.concentration, dtype=torch.float64)
        return float(torch.digamma(self.num_symbols * c + 1) - torch.digamma(c + 1))


class UrnOracle(LanguageOracle):
    """The posterior by counts. The likelihood is that of a Dirichlet-multinomial:

    p(evidence)  =  Π_s c (c + 1) … (c + n_s - 1)  /  (q c) (q c + 1) … (q c + n - 1)      n_s times the symbol s is seen
    """

    def __init__(self, num_symbols: int, seq_len: int, concentration: float) -> None:
        super().__init__(num_symbols, seq_len, row_elements=seq_len * (num_symbols + 1))
        self._concentration = concentration
        # by n; a difference of two lgamma loses digits where c is large
        place_L, zero_1 = torch.arange(seq_len, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self._log_rising_N = torch.cat((zero_1, (place_L + concentration).log().cumsum(0)))
        self._log_rising_all_N = torch.cat((zero_1, (place_L + num_symbols * concentration).log().cumsum(0)))

    def _counts(self, evidence_BL: Tensor) -> Tensor:
        """How often each symbol is seen, `count_BQ`."""
        zero_BV = evidence_BL.new_zeros(len(evidence_BL), self.num_symbols + 1)
        return zero_BV.scatter_add(1, evidence_BL, torch.ones_like(evidence_BL))[:, :-1]

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        weight_BQ = self._counts(evidence_BL).double() + self._concentration
        probs_BQ = weight_BQ / weight_BQ.sum(1, keepdim=True)
        return probs_BQ[:, None].expand(-1, self.seq_len, -1), always(evidence_BL)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        count_BQ = self._counts(evidence_BL)
        return self._log_rising_N[count_BQ].sum(1) - self._log_rising_all_N[count_BQ.sum(1)]

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        u_BL = self._uniform(keys_B, torch.arange(self.seq_len))
        # what is observed comes first: the order in which tokens are drawn has no effect on their distribution
        order_BL = (evidence_BL == self.num_symbols).byte().argsort(dim=1, stable=True)
        first_u_BL, first_BL = u_BL.gather(1, order_BL), evidence_BL.gather(1, order_BL)
        drawn_BL = from_urn(first_u_BL, first_BL, self.num_symbols, self._concentration)
        sampled_BL = torch.zeros_like(evidence_BL).scatter(1, order_BL, drawn_BL)
        return sampled_BL, always(evidence_BL)


def from_urn(u_BL: Tensor, evidence_BL: Tensor, num_symbols: int, concentration: float) -> Tensor:
    """Tokens, each the evidence, or where that is hidden, drawn given those before it by its number of [0, 1)."""
    place_L = torch.arange(u_BL.shape[1], dtype=torch.float64, device=u_BL.device)
    hidden_BL = evidence_BL == num_symbols
    ball_BL = (u_BL * (place_L + num_symbols * concentration)).masked_fill(~hidden_BL, torch.inf)
    origin_BL = torch.minimum(ball_BL, place_L).long()
    new_BL = ((ball_BL - place_L) / concentration).clamp(0, num_symbols - 1).long()
    new_BL = torch.where(hidden_BL, new_BL, evidence_BL)
    while True:  # copies of copies of …: each round doubles how far back they are followed
        before_BL = origin_BL.gather(1, origin_BL)
        if torch.equal(before_BL, origin_BL):
            return new_BL.gather(1, origin_BL)
        origin_BL = before_BL

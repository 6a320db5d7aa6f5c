"""Independent uniform tokens: nothing can be learned, so the best possible loss is log q: a model below it leaks labels.

tokens      5  0  7  7  2  1  4 …     each of 0 … q-1 alike, whatever the others are
posterior   1/q on every symbol where a token is not observed
"""

from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.oracle import Answer, LanguageOracle, always
from mlm_lightning.data.languages.synthetic import Language, NumSymbols, SeqLen, language
from mlm_lightning.randomness import uniform


@language
class UniformSource(Language):
    """Rows of `seq_len` independent tokens, each of the `num_symbols` symbols equally likely."""

    num_symbols: NumSymbols = 8
    seq_len: SeqLen = 64

    def draw(self, keys_B: Tensor) -> Tensor:
        return _draw(keys_B, self.seq_len, self.num_symbols)

    def oracle(self) -> "UniformOracle":
        return UniformOracle(self.num_symbols, self.seq_len)

    def entropy_rate(self) -> float:
        return log(self.num_symbols)


class UniformOracle(LanguageOracle):
    """The posterior of independent uniform tokens: the evidence has no effect on the rest."""

    def __init__(self, num_symbols: int, seq_len: int) -> None:
        super().__init__(num_symbols, seq_len, row_elements=seq_len * num_symbols)

    def _posterior(self, evidence_BL: Tensor) -> Answer:
        shape, device = (*evidence_BL.shape, self.num_symbols), evidence_BL.device
        probs_BLQ = torch.full(shape, 1 / self.num_symbols, dtype=torch.float64, device=device)
        return probs_BLQ, always(evidence_BL)

    def _log_likelihood(self, evidence_BL: Tensor) -> Tensor:
        return (evidence_BL < self.num_symbols).sum(1).double() * -log(self.num_symbols)

    def _sample(self, evidence_BL: Tensor, keys_B: Tensor) -> Answer:
        drawn_BL = _draw(keys_B, self.seq_len, self.num_symbols).to(evidence_BL.device)
        return drawn_BL, always(evidence_BL)


def _draw(keys_B: Tensor, seq_len: int, num_symbols: int) -> Tensor:
    return (uniform(keys_B[:, None], torch.arange(seq_len)) * num_symbols).long()

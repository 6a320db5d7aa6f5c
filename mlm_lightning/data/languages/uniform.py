"""Independent uniform tokens: nothing can be learned, so the best possible loss is log q: a model below it leaks labels.

tokens      5  0  7  7  2  1  4 …     each of 0 … q-1 alike, whatever the others are
posterior   1/q on every symbol where a token is not observed
"""

from math import log

import torch
from torch import Tensor

from mlm_lightning.data.languages.joint import as_joint, unfold
from mlm_lightning.data.languages.oracle import Answer, LanguageOracle
from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SeqLen, SyntheticSource
from mlm_lightning.data.source import Joint
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked


class UniformSource(SyntheticSource):
    """Rows of `seq_len` independent tokens, each of the `num_symbols` symbols equally likely."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        seq_len: SeqLen = 64,
        seed: int = 0,
        train_size: NumRows = 1_048_576,
        val_size: NumRows = 4096,
        test_size: NumRows = 4096,
    ) -> None:
        super().__init__(num_symbols, seed, train_size, val_size, test_size)
        self._seq_len = seq_len

    @property
    def seq_len(self) -> int:
        return self._seq_len

    def draw(self, keys_B: Tensor) -> Tensor:
        return _draw(keys_B, self._seq_len, self.num_symbols)

    def oracle(self) -> "UniformOracle":
        return UniformOracle(self.num_symbols, self._seq_len)

    def entropy_rate(self) -> float:
        return log(self.num_symbols)

    def joint(self) -> Joint:
        symbols = range(self.num_symbols)
        steps = [(1.0, token, None) for token in symbols]
        return as_joint(unfold(self._seq_len, steps, lambda *_: steps), {})


class UniformOracle(LanguageOracle):
    """The posterior of independent uniform tokens: what is observed says nothing about the rest."""

    def __init__(self, num_symbols: int, seq_len: int) -> None:
        super().__init__(num_symbols, seq_len, row_elements=seq_len * num_symbols)

    def _posterior(self, said_BL: Tensor) -> Answer:
        probs_BLQ = said_BL.new_full((*said_BL.shape, self.num_symbols), 1 / self.num_symbols, dtype=torch.float64)
        return probs_BLQ, torch.ones_like(said_BL[:, 0], dtype=torch.bool)

    def _log_likelihood(self, said_BL: Tensor) -> Tensor:
        return (said_BL < self.num_symbols).sum(1).double() * -log(self.num_symbols)

    def _sample(self, said_BL: Tensor, keys_B: Tensor) -> Answer:
        return _draw(keys_B, self.seq_len, self.num_symbols), torch.ones_like(said_BL[:, 0], dtype=torch.bool)


def _draw(keys_B: Tensor, seq_len: int, num_symbols: int) -> Tensor:
    return uniform(keys_B[:, None], torch.arange(seq_len)).mul_(num_symbols).long()

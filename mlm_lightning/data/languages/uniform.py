"""Independent uniform tokens: nothing can be learned, so the best possible loss is log q: a model below it leaks labels.

tokens      5  0  7  7  2  1  4 …     each of 0 … q-1 alike, whatever the others are
posterior   1/q on every symbol where a token is not observed
"""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from mlm_lightning.data.languages.synthetic import NumRows, NumSymbols, SyntheticSource, observed_tokens
from mlm_lightning.randomness import uniform
from mlm_lightning.values import checked

MAX_SEQ_LEN = 2**16


class UniformSource(SyntheticSource):
    """Rows of `seq_len` independent tokens, each of the `num_symbols` symbols equally likely."""

    @checked("data")
    def __init__(
        self,
        num_symbols: NumSymbols = 8,
        seq_len: Annotated[int, Interval(ge=1, le=MAX_SEQ_LEN), "it is the number of tokens in a row"] = 64,
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
        return uniform(keys_B[:, None], torch.arange(self._seq_len)).mul_(self.num_symbols).long()

    def oracle(self) -> "UniformOracle":
        return UniformOracle(self.num_symbols)


class UniformOracle:
    """The posterior of independent uniform tokens: what is observed says nothing about the rest."""

    def __init__(self, num_symbols: int) -> None:
        self.num_symbols = num_symbols

    def posterior(self, tokens_BL: Tensor, observed_BL: Tensor) -> Tensor:
        """`probs_BLV` (float64): 1/q on each symbol where a token is not observed, else all of it on the token."""
        probs_V = torch.full((self.num_symbols + 1,), 1 / self.num_symbols, dtype=torch.float64, device=tokens_BL.device)
        probs_V[-1] = 0.0  # nothing is ever drawn as [MASK]
        tokens_BL = observed_tokens(tokens_BL, observed_BL, self.num_symbols)
        one_hot_BLV = torch.nn.functional.one_hot(tokens_BL, self.num_symbols + 1)
        return torch.where(observed_BL[..., None], one_hot_BLV.to(probs_V), probs_V)

    def latents(self, tokens_BL: Tensor, observed_BL: Tensor) -> dict[str, Tensor]:
        """There are none."""
        return {}

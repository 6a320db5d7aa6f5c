"""A language whose rows are those of a chain."""

from functools import cached_property

import torch
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.chain_oracle import ChainOracle
from mlm_lightning.data.languages.synthetic import SyntheticSource

_DRAWN = 2**21  # random numbers of a block of rows that are drawn


class ChainSource(SyntheticSource):
    """A language whose rows are those of a `Chain`."""

    @property
    def seq_len(self) -> int:
        return self.chain.seq_len

    @cached_property
    def chain(self) -> Chain:
        raise NotImplementedError

    def draw(self, keys_B: Tensor) -> Tensor:
        return torch.cat([self.chain.draw(part_B)[1] for part_B in self._parts(keys_B)])

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        states_BL = torch.cat([self.chain.draw(part_B)[0] for part_B in self._parts(keys_B)])
        return {
            name: latent.value_S[states_BL[:, :1] if latent.once else states_BL] for name, latent in self.chain.latents.items()
        }

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {name: (1 if latent.once else self.seq_len, latent.num_values) for name, latent in self.chain.latents.items()}

    def oracle(self) -> ChainOracle:
        return ChainOracle(self.chain)

    def _parts(self, keys_B: Tensor) -> tuple[Tensor, ...]:
        return keys_B.split(max(1, _DRAWN // (self.seq_len * self.chain.successor_SR.shape[1])))

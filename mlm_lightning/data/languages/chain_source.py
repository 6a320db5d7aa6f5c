"""A language whose rows are those of a chain."""

from functools import cached_property

from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.forward_backward import ForwardBackward
from mlm_lightning.data.languages.synthetic import Language


class ChainLanguage(Language):
    """A language whose rows are those of a `Chain`."""

    @cached_property
    def chain(self) -> Chain:
        raise NotImplementedError

    def draw(self, keys_B: Tensor) -> Tensor:
        return self.chain.draw(keys_B)[1]

    def draw_latents(self, keys_B: Tensor) -> dict[str, Tensor]:
        states_BL, _ = self.chain.draw(keys_B)
        return {
            name: latent.value_MS.flatten()[states_BL[:, :1] if latent.once else states_BL]
            for name, latent in self.chain.latents.items()
        }

    def latent_sizes(self) -> dict[str, tuple[int, int]]:
        return {name: (1 if latent.once else self.seq_len, latent.num_values) for name, latent in self.chain.latents.items()}

    def oracle(self) -> ForwardBackward:
        return ForwardBackward(self.chain)

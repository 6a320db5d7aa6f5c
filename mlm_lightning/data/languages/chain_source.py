"""A language whose rows are those of a chain."""

from functools import cached_property

from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.forward_backward import ForwardBackward
from mlm_lightning.data.languages.synthetic import Errors, Language, Sizes

MAX_STATES = 4096
MAX_MESSAGES = 2**22
"""Numbers of the messages of a row, one a state and position."""


class ChainLanguage(Language):
    """A language whose rows are those of a `Chain`."""

    def too_large(self, num_states: int, key: str, problem: str, remedy: str) -> Errors:
        """The errors where there are too many states because of a key, or where the messages of a single row are too many."""
        if num_states > MAX_STATES:
            yield self.error(key, f"{problem} is above {MAX_STATES}, for lack of memory", remedy)
        else:
            yield from self.too_long(num_states)

    def too_long(self, num_states: int) -> Errors:
        if self.seq_len * num_states > MAX_MESSAGES:
            problem = f"with {num_states} states, seq_len · states is above {MAX_MESSAGES}, for lack of memory"
            yield self.error("seq_len", problem, f"use data.seq_len={MAX_MESSAGES // num_states} or less")

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

    def latent_sizes(self) -> Sizes:
        return {name: (1 if latent.once else self.seq_len, latent.num_values) for name, latent in self.chain.latents.items()}

    def oracle(self) -> ForwardBackward:
        return ForwardBackward(self.chain)

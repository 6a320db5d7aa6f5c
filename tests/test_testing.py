"""That what is wrong by a hundredth fails: an oracle's posterior, likelihood, sample or latents, or the rows that it is of."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from mlm_lightning.data.languages.chain import Chain
from mlm_lightning.data.languages.chain_oracle import ChainOracle
from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.testing import check_language

SIZE: dict[str, Any] = {"num_states": 2, "num_symbols": 2, "concentration": 1.0, "seq_len": 6}
WRONG = 0.01


class Wrong(ChainOracle):
    """That of the language, but for one answer, which `change` makes wrong."""

    def __init__(self, chain: Chain, question: str, change: Callable[[Any], Any]) -> None:
        super().__init__(chain)
        setattr(self, question, lambda *asked: change(getattr(ChainOracle, question)(self, *asked)))


class WrongSource(HMMSource):
    def __init__(self, question: str, change: Callable[[Any], Any], has_joint: bool) -> None:
        super().__init__(**SIZE)
        self._wrong = question, change
        if not has_joint:
            self.joint = lambda: None  # type: ignore[method-assign]

    def oracle(self) -> Wrong:
        return Wrong(self.chain, *self._wrong)


class Neighbour(HMMSource):
    """Its oracle is exact, and of a chain with other transitions."""

    def oracle(self) -> ChainOracle:
        return ChainOracle(self._other)

    @cached_property
    def _other(self) -> Chain:
        moved_SS = (1 - WRONG) * self.transition_SS + WRONG * self.transition_SS.flip(1)
        chain = self.chain
        return Chain.full(chain.initial_S, moved_SS, chain.emission_SQ, chain.seq_len, latents=chain.latents)


def towards_uniform(probs: Tensor) -> Tensor:
    """One hundredth of what is open is spread over the symbols."""
    open_ = (probs.max(-1, keepdim=True).values < 1).double()
    uniform = torch.ones_like(probs) / (probs.shape[-1] - 1)
    uniform[..., -1] = 0.0
    return torch.lerp(probs, uniform, WRONG * open_)


def of_the_states(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (1 - WRONG) * probs + WRONG / probs.shape[-1] for name, probs in latents.items()}


def first_tokens_flipped(tokens_BL: Tensor) -> Tensor:
    """In every hundredth row."""
    tokens_BL = tokens_BL.clone()
    tokens_BL[::100, 0] = 1 - tokens_BL[::100, 0]
    return tokens_BL


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "posterior": ("posterior", towards_uniform),
    "likelihood": ("log_likelihood", lambda log_prob_B: log_prob_B + WRONG),
    "temperature": ("log_likelihood", lambda log_prob_B: log_prob_B * (1 + WRONG)),
    "latents": ("latents", of_the_states),
    "sample": ("sample", first_tokens_flipped),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_oracle_that_is_wrong_by_a_hundredth_fails(change: str) -> None:
    with pytest.raises(AssertionError):
        check_language(WrongSource(*CHANGES[change], has_joint=True))


@pytest.mark.parametrize("change", ["posterior", "likelihood", "temperature"])
def test_so_it_does_without_a_list_of_all_rows(change: str) -> None:
    with pytest.raises(AssertionError):
        check_language(WrongSource(*CHANGES[change], has_joint=False))


def test_an_exact_oracle_of_another_language_fails() -> None:
    with pytest.raises(AssertionError):
        check_language(Neighbour(**SIZE))


def test_the_one_that_they_are_made_from_passes_with_and_without_a_list_of_all_rows() -> None:
    for has_joint in (True, False):
        check_language(WrongSource("posterior", lambda probs: probs, has_joint))


def test_more_rows_than_can_be_listed_are_an_error() -> None:
    with pytest.raises(ValueError, match="more than 4096"):
        check_language(MarkovSource(num_symbols=3, order=1, seq_len=8))

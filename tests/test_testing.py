"""What is wrong by a hundredth fails: an oracle's posterior, likelihood, sample or latents, its rows, or the list of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import joints
import pytest
import torch
from torch import Tensor

from mlm_lightning.data.languages.hmm import HMMSource
from mlm_lightning.data.languages.markov import MarkovSource
from mlm_lightning.data.languages.synthetic import SyntheticRows
from mlm_lightning.data.source import Joint, Source, Split
from mlm_lightning.testing import check_autocast, check_language

SIZE: dict[str, Any] = {"num_states": 2, "num_symbols": 2, "concentration": 1.0, "seq_len": 6}
WRONG = 0.01


class WrongSource(HMMSource):
    """Its oracle is exact, but for the answer to one question, which `change` makes wrong."""

    def __init__(self, question: str, change: Callable[[Any], Any]) -> None:
        super().__init__(**SIZE)
        self._wrong = question, change

    def oracle(self) -> Any:
        oracle, (question, change) = super().oracle(), self._wrong
        exact = getattr(oracle, question)
        setattr(oracle, question, lambda *asked: change(exact(*asked)))
        return oracle


class Neighbour(HMMSource):
    """Its oracle is exact, and that of a chain with other transitions."""

    def oracle(self) -> Any:
        return moved().oracle()


def moved() -> HMMSource:
    source = HMMSource(**SIZE)
    moved_SS = (1 - WRONG) * source.transition_SS + WRONG * source.transition_SS.flip(1)
    vars(source)["_tables"] = moved_SS, source.emission_SQ  # a source is read-only
    return source


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
        check_language(WrongSource(*CHANGES[change]), joint=joints.hmm)


@pytest.mark.parametrize("change", ["posterior", "likelihood", "temperature"])
def test_so_it_does_without_a_list_of_all_rows(change: str) -> None:
    with pytest.raises(AssertionError):
        check_language(WrongSource(*CHANGES[change]))


def test_an_exact_oracle_of_another_language_fails() -> None:
    with pytest.raises(AssertionError):
        check_language(Neighbour(**SIZE), joint=joints.hmm)


def test_the_language_that_they_are_made_from_passes_with_and_without_a_list_of_all_rows() -> None:
    exact = WrongSource("posterior", lambda probs: probs)
    check_language(exact, joint=joints.hmm)
    check_language(exact)


def of_another_language(source: Source) -> Joint:
    return joints.hmm(moved())


def of_sum_below_1(source: Source) -> Joint:
    sequences_SL, latents, log_prob_S = joints.hmm(HMMSource(**SIZE))
    return sequences_SL, latents, log_prob_S - WRONG


def without_a_row(source: Source) -> Joint:
    sequences_SL, latents, log_prob_S = joints.hmm(HMMSource(**SIZE))
    kept_S = (sequences_SL != sequences_SL[0]).any(1)
    return sequences_SL[kept_S], {name: values_SN[kept_S] for name, values_SN in latents.items()}, log_prob_S[kept_S]


def with_other_latents(source: Source) -> Joint:
    sequences_SL, latents, log_prob_S = joints.hmm(HMMSource(**SIZE))
    return sequences_SL, {"state": 1 - latents["state"]}, log_prob_S


class OwnJoint(HMMSource):
    """Lists its rows itself."""

    def __init__(self, joint: Callable[[Source], Joint]) -> None:
        super().__init__(**SIZE)
        self._list = joint

    def joint(self) -> Joint:
        return self._list(self)


@pytest.mark.parametrize("wrong", [of_another_language, of_sum_below_1, without_a_row, with_other_latents])
def test_a_wrong_list_of_all_rows_fails_as_an_argument_and_as_a_method(wrong: Callable[[Source], Joint]) -> None:
    with pytest.raises(AssertionError):
        check_language(HMMSource(**SIZE), joint=wrong)
    with pytest.raises(AssertionError):
        check_language(OwnJoint(wrong))


def test_the_right_list_passes_as_a_method_and_the_argument_comes_first() -> None:
    asked = []

    def right(source: Source) -> Joint:
        asked.append(type(source))
        return joints.hmm(HMMSource(**SIZE))

    check_language(OwnJoint(right))
    assert asked == [OwnJoint]
    check_language(OwnJoint(of_another_language), joint=right)
    assert asked == [OwnJoint, OwnJoint]


def test_more_rows_than_can_be_listed_are_an_error() -> None:
    source = MarkovSource(num_symbols=3, order=1, seq_len=8)
    with pytest.raises(ValueError, match="more than 4096"):
        check_language(source, joint=joints.markov)
    with pytest.raises(ValueError, match="more than 4096"):
        check_language(source)


class Rounded(HMMSource):
    """Its oracle's table is rounded to float32, and under autocast to bf16."""

    def oracle(self) -> Any:
        return self._rounded.oracle()

    @cached_property
    def _rounded(self) -> HMMSource:
        source = HMMSource(**SIZE)
        product_SS = source.transition_SS.float() @ torch.eye(2)
        vars(source)["_tables"] = product_SS.double(), source.emission_SQ
        return source


def test_an_oracle_that_autocast_rounds_fails() -> None:
    with pytest.raises(AssertionError, match="autocast"):
        check_language(Rounded(**SIZE))
    check_autocast(HMMSource(**SIZE), num_rows=16)


class RoundedRows(HMMSource):
    """Its rows are made by a product that has another sign in bf16, and not by way of `SyntheticRows`."""

    def rows(self, split: Split) -> Any:
        return RowsOfProducts(super().rows(split), self.seq_len)


@dataclass
class RowsOfProducts:
    rows: SyntheticRows
    seq_len: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index_B: Any) -> Tensor:
        almost_BL = torch.full((len(index_B), self.seq_len), 1.001) @ torch.eye(self.seq_len)
        return self.rows[index_B] * (almost_BL > 1).long()


def test_rows_that_autocast_rounds_fail() -> None:
    with pytest.raises(AssertionError, match="rows: differs under bf16 autocast"):
        check_autocast(RoundedRows(**SIZE), num_rows=16)

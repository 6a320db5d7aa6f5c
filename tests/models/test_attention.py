"""Attention written out is that of torch's kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlm_lightning.models.attention import attend, listening

B, H, Q, L, E = 3, 2, 5, 7, 4
MASKS = {
    "none": None,
    "of keys": torch.arange(L) < torch.tensor([7, 3, 1]).view(B, 1, 1, 1),
    "of queries and keys": torch.arange(L) <= torch.arange(Q).view(1, 1, Q, 1),
    "added": torch.linspace(-2, 2, Q * L).view(1, 1, Q, L),
}
NOTHING_IS_DROPPED = 1e-9
"""A dropout that is written out all the same."""


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, H, n, E).to(dtype).requires_grad_() for n in (Q, L, L)]


def result(function, tensors: list[Tensor], *args, **kwargs) -> list[Tensor]:
    out = function(*tensors, *args, **kwargs)
    return [out, *torch.autograd.grad(out.float().square().sum(), tensors)]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", MASKS)
def test_written_out_it_is_that_of_the_kernel(mask: str, scale: float | None) -> None:
    expected = result(F.scaled_dot_product_attention, inputs(), MASKS[mask], scale=scale)
    found = result(attend, inputs(), MASKS[mask], NOTHING_IS_DROPPED, scale)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_look_nowhere_gets_a_number(dtype: torch.dtype) -> None:
    mask = torch.ones(B, 1, Q, L, dtype=torch.bool)
    mask[1, :, 2] = False
    for each in result(attend, inputs(dtype), mask, NOTHING_IS_DROPPED):
        assert each.isfinite().all()


def test_dropout_keeps_the_mean_and_takes_its_share() -> None:
    torch.manual_seed(1)
    uniform = torch.zeros(200, 1, 50, 1), torch.zeros(200, 1, 40, 1)
    attended = attend(*uniform, torch.ones(200, 1, 40, 1), dropout=0.25)  # the mean of 40 ones, of which 30 are kept and scaled
    assert attended.mean() == pytest.approx(1, abs=4 * (0.25 / 0.75 / 40 / attended.numel()) ** 0.5)
    assert attended.var() == pytest.approx(0.25 / 0.75 / 40, rel=0.1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dropout", [0.0, NOTHING_IS_DROPPED], ids=["kernel", "written out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_heard_gives_the_output_which_it_leaves_as_it_is(mask: str, dropout: float, dtype: torch.dtype) -> None:
    query, key, value = (each.detach() for each in inputs(dtype))
    given = MASKS[mask] if mask != "added" else MASKS[mask].to(dtype)
    expected = attend(query, key, value, given, dropout, 0.3)
    heard: list[Tensor] = []
    with listening(heard.append):
        assert torch.equal(attend(query, key, value, given, dropout, 0.3), expected)
    (weights_BHQL,) = heard
    assert weights_BHQL.dtype == torch.float32
    torch.testing.assert_close(weights_BHQL.sum(-1), torch.ones(B, H, Q))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(weights_BHQL @ value.float(), expected.float(), atol=tolerance, rtol=tolerance)
    attend(query, key, value)
    assert len(heard) == 1  # nobody listens any more


def test_a_query_that_may_look_nowhere_is_heard_to_look_nowhere() -> None:
    mask, heard = torch.ones(B, 1, Q, L, dtype=torch.bool), list[Tensor]()
    mask[1, :, 2] = False
    with listening(heard.append):
        attend(*(each.detach() for each in inputs()), mask)
    assert (heard[0][1, :, 2] == 0).all()


def test_an_error_ends_the_listening() -> None:
    heard: list[Tensor] = []
    with pytest.raises(RuntimeError), listening(heard.append):
        raise RuntimeError
    attend(*(each.detach() for each in inputs()))
    assert heard == []

"""Made in pieces, the loss and its gradients are those of all logits at once."""

import pytest
import torch
from torch import Tensor, nn

from mlm_lightning import cross_entropy
from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.cross_entropy import linear_cross_entropy
from mlm_lightning.metrics import masked_cross_entropy

B, K, D, V = 5, 4, 3, 11


def problem(bias: bool = True) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    labels_BK = torch.randint(V, (B, K)).masked_fill(torch.rand(B, K) < 0.3, IGNORE_INDEX)
    return torch.randn(B, K, D, requires_grad=True), nn.Linear(D, V, bias), labels_BK


def gradients(loss: Tensor, hidden: Tensor, layer: nn.Linear) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *layer.parameters()]))


def at_once(hidden: Tensor, layer: nn.Linear, labels: Tensor, z_loss: float) -> tuple[Tensor, Tensor, Tensor]:
    logits = layer(hidden)
    loss_sum, _ = masked_cross_entropy(logits, labels)
    squares = logits.float().logsumexp(-1).square()[labels != IGNORE_INDEX].sum()
    return loss_sum + z_loss * squares, loss_sum, squares


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_a_time", [V - 1, V, 3 * V, 1000 * V])
def test_it_is_that_of_all_logits(monkeypatch: pytest.MonkeyPatch, at_a_time: int, bias: bool, z_loss: float) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_ON_CPU", at_a_time)
    hidden, layer, labels = problem(bias)
    loss, *sums = linear_cross_entropy(hidden, layer, labels, z_loss)
    expected, *expected_sums = at_once(hidden, layer, labels, z_loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(sums[: 2 if z_loss else 1], expected_sums[: 2 if z_loss else 1])
    assert not any(each.requires_grad for each in sums)
    # the loss may be scaled, as by the number of micro-batches
    for found, wanted in zip(gradients(loss / 3, hidden, layer), gradients(expected / 3, hidden, layer), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_places_without_a_prediction_get_no_gradient_where_they_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, which would have to be asked how many they are."""
    hidden, layer, labels = problem()
    arguments = hidden.flatten(0, 1), layer.weight, layer.bias, labels.flatten(), 0.1
    expected = at_once(hidden, layer, labels, 0.1)[0]
    monkeypatch.setattr(cross_entropy, "_is_compact", lambda _: False)
    loss = cross_entropy._LinearCrossEntropy.apply(*arguments)[0]
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(gradients(loss, hidden, layer), gradients(expected, hidden, layer), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_nothing_predicted_is_no_loss() -> None:
    hidden, layer, labels = problem()
    loss, *_ = linear_cross_entropy(hidden, layer, torch.full_like(labels, IGNORE_INDEX))
    assert loss == 0
    assert all((each == 0).all() for each in gradients(loss, hidden, layer))


def test_a_matrix_that_is_the_embeddings_too_gets_both_gradients() -> None:
    _, layer, labels = problem()
    ids = torch.randint(V, (B, K))
    losses = [
        function(torch.tanh(nn.functional.embedding(ids, layer.weight)), layer, labels, 0.0)[0]
        for function in (linear_cross_entropy, at_once)
    ]
    one, other = (torch.autograd.grad(loss, [layer.weight])[0] for loss in losses)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_in_bfloat16_products_alone_are() -> None:
    hidden, layer, labels = problem()
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, layer, labels, 0.1)
        expected = at_once(hidden, layer, labels, 0.1)
    assert found[0].dtype == found[1].dtype == torch.float32
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.01)
    for one, other in zip(gradients(found[0], hidden, layer), gradients(expected[0], hidden, layer), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 0.03 * other.abs().max()

"""Probes find what is there, never more than can be known, and leave the model alone."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from subjects import MODELS, subject, transformer
from torch import Tensor, nn

from mlm_lightning.analysis import probe
from mlm_lightning.analysis.hidden import layers_of, watched
from mlm_lightning.analysis.probe import L2, _probe, best_layer, clustered, examine, fit
from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.errors import ConfigError


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_EXAMPLES", 2000)


def test_one_hot_features_give_the_label_exactly() -> None:
    symbols_E = torch.arange(200) % 5
    weight_FS, bias_S = fit(F.one_hot(symbols_E, 5).float(), symbols_E, 5)
    assert torch.equal((torch.eye(5, dtype=torch.float64) @ weight_FS + bias_S).argmax(1), torch.arange(5))


def test_a_fit_is_the_optimum_and_the_same_again() -> None:
    """Of a convex loss, which has one."""
    torch.manual_seed(0)
    features_EF = torch.randn(300, 4) * torch.tensor([1.0, 10.0, 0.01, 0.0]) + torch.tensor([0.0, 5.0, 0.0, 2.0])
    symbols_E = (features_EF[:, 0] + torch.randn(300) > 0).long() + (features_EF[:, 1] > 12).long()
    weight_FS, bias_S = fit(features_EF, symbols_E, 3)
    assert all(map(torch.equal, fit(features_EF, symbols_E, 3), (weight_FS, bias_S)))
    x_EF = features_EF.double()
    std_F = x_EF.std(0, correction=0)
    weight_FS.requires_grad_()
    bias_S.requires_grad_()
    penalty = L2 / 2 * (weight_FS * std_F[:, None]).square().sum()
    loss = F.cross_entropy(x_EF @ weight_FS + bias_S, symbols_E) + penalty
    gradient_FS, gradient_S = torch.autograd.grad(loss, [weight_FS, bias_S])
    scaled_FS = (gradient_FS - x_EF.mean(0)[:, None] * gradient_S) / std_F.clamp(min=1e-9)[:, None]
    assert scaled_FS[:3].abs().max() < 1e-4
    assert gradient_S.abs().max() < 1e-4
    assert (weight_FS[3] == 0).all()  # a feature that is always the same says nothing


def test_errors_of_a_mean_count_rows_not_examples() -> None:
    values_E = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    mean, se = clustered(values_E, torch.arange(6))
    assert (mean, se) == pytest.approx((4 / 6, math.sqrt(4 / 6 * 2 / 6 / 6)))
    mean, twice = clustered(values_E.repeat(2), torch.arange(6).repeat(2))  # each example twice: nothing more is known
    assert (mean, twice) == pytest.approx((4 / 6, se))


@pytest.mark.parametrize("kind", MODELS)
def test_states_are_what_goes_in_and_what_comes_out_of_the_layers(kind: str) -> None:
    looked_into = subject(model=MODELS[kind](subject().source))
    model, batch = looked_into.model, next(iter(looked_into.batches("val")))
    before = looked_into.run(batch)
    with watched(layers_of(model)) as states:
        looked_into.run(batch)
        assert torch.equal(looked_into.run(batch), before)
    assert [each.shape for each in states] == [(64, 8, 16)] * 4  # of the last pass alone
    with torch.inference_mode():
        if kind == "ours":
            assert torch.equal(model.decoder(model.encoder.norm(states[-1])), before)
            embedded = model.positional_encoding(model.embedding(batch.input_ids_BL), None)
        else:
            embedded = model.hf_model.distilbert.embeddings(batch.input_ids_BL)
        assert torch.equal(states[0], embedded)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Knows(nn.Module):
    """Its layer turns the embeddings into the one-hot of the pair of tokens: a tree of depth 1, whose root follows from it."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.symbols = symbols

        class Pairs(nn.Module):
            def forward(self, x_BLD: Tensor) -> Tensor:
                left, right = x_BLD.argmax(-1).unbind(1)
                return F.one_hot(left * (symbols + 1) + right, (symbols + 1) ** 2).float()[:, None].expand(-1, 2, -1)

        self.layers = nn.ModuleList([Pairs()])

    def forward(self, input_ids_BL: Tensor, *_: Any) -> Tensor:
        return self.layers[0](F.one_hot(input_ids_BL, self.symbols + 1).float())


def test_a_probe_finds_the_layer_that_knows() -> None:
    source = TreeSource(depth=1, num_symbols=3, grammar_seed=1)
    found = [each for each in _probe(subject(source, Knows(3)), "whole") if each.latent == "root"]
    embeddings, layer = found
    assert layer.accuracy == layer.oracle == 1.0  # a pair has one possible parent
    assert embeddings.accuracy < 0.95  # of the mean of two embeddings, order is lost
    assert best_layer(found) is layer
    said = examine(subject(source, Knows(3))).sentences[1]
    assert "root in layer 1 (1.000; oracle 1.000)" in said


@pytest.mark.parametrize(("k", "rows"), itertools.product([0, 1, 2], ["masked", "whole"]))
def test_no_probe_beats_the_oracle(k: int, rows: str) -> None:
    source = TreeSource(depth=3, num_symbols=3, filter_level=k, grammar_seed=1)
    found = list(_probe(subject(source, transformer(source)), rows))
    levels = {"root", *(f"level_{level}" for level in range(max(1, k), 4))}
    assert {each.latent for each in found} == levels
    assert [each.layer for each in found if each.latent == "root"] == [0, 1, 2, 3]
    for each in found:
        assert each.accuracy <= each.oracle + 3 * each.over_oracle_se
        assert each.accuracy > 1 / 3 - 3 * each.se  # and none is worse than a guess
    if rows == "whole":  # what stands at a leaf is seen there
        assert max(each.accuracy for each in found if each.latent == "level_3") == 1.0


def test_only_nodes_above_masked_tokens_are_asked_about_in_masked_rows() -> None:
    looked_into = subject(TreeSource(depth=3, num_symbols=3, train_size=100, val_size=200), rate=0.05)
    nodes = {each.latent: each.nodes for each in _probe(looked_into, "masked")}
    masked = sum(int((batch.labels_BL != IGNORE_INDEX).sum()) for batch in looked_into.batches("val"))
    assert nodes["root"] == 200  # each row has a mask
    assert 200 <= nodes["level_1"] <= nodes["level_2"] <= nodes["level_3"] == masked < 300
    whole = {each.latent: each.nodes for each in _probe(looked_into, "whole")}
    assert whole == {"root": 200, "level_1": 400, "level_2": 800, "level_3": 1600}


def test_what_has_no_latents_or_no_layers_says_so() -> None:
    source = UniformSource(num_symbols=3, seq_len=8)
    with pytest.raises(ConfigError, match=r"analysis=probe: the data \(UniformSource\) has no latent variables"):
        examine(subject(source, transformer(source)))
    with pytest.raises(ConfigError, match="keeps no layers"):
        examine(subject(model=nn.Embedding(4, 4)))

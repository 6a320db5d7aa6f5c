"""Attention is heard as it is: it gives the layers' outputs, adds up, and listening changes nothing."""

from typing import Any

import pytest
import torch
from subjects import MODELS, distilbert, subject, transformer
from torch import Tensor, nn

from mlm_lightning.analysis.attention import QUERIES, finding, measure
from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.languages.uniform import UniformSource
from mlm_lightning.data.source import Source
from mlm_lightning.errors import ConfigError
from mlm_lightning.models.attention import listening

TREE = TreeSource(depth=3, num_symbols=3, grammar_seed=1)


def values_and_attended(model: nn.Module, kind: str) -> tuple[list[nn.Module], list[Tensor], list[Tensor]]:
    """Hooks that keep, of each layer, its values BHLE and what comes out of the attention, BLD."""
    values: list[Tensor] = []
    attended: list[Tensor] = []

    def heads(x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (2, -1)).transpose(1, 2)

    handles: list[Any] = []
    for module in model.modules():
        if kind == "ours" and type(module).__name__ == "SelfAttention":

            def keep(module: Any, args: tuple[Any, ...]) -> None:
                projected = nn.functional.linear(args[0], module.in_proj_weight, module.in_proj_bias)
                values.append(heads(projected.chunk(3, dim=-1)[2]))

            handles.append(module.register_forward_pre_hook(keep))
            handles.append(module.out_proj.register_forward_pre_hook(lambda _, args: attended.append(args[0])))
        elif kind == "distilbert" and type(module).__name__.endswith("SelfAttention"):
            handles.append(module.v_lin.register_forward_hook(lambda _, __, output: values.append(heads(output))))
            handles.append(module.out_lin.register_forward_pre_hook(lambda _, args: attended.append(args[0])))
    return handles, values, attended


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_what_is_heard_of_a_model_gives_each_layers_output(kind: str) -> None:
    model = MODELS[kind](TREE)
    handles, values, attended = values_and_attended(model, kind)
    heard: list[Tensor] = []
    tokens_BL = TREE.rows("val")[torch.arange(5)]
    mask_BL = torch.ones_like(tokens_BL)
    mask_BL[2, 5:] = 0
    with listening(heard.append):
        model(tokens_BL, mask_BL)
    assert len(heard) == len(values) == len(attended) == 3
    for weights_BHLL, value_BHLE, attended_BLD in zip(heard, values, attended, strict=True):
        torch.testing.assert_close(weights_BHLL.sum(-1), torch.ones(5, 2, 8))
        assert (weights_BHLL[2, :, :, 5:] == 0).all()
        torch.testing.assert_close((weights_BHLL @ value_BHLE).transpose(1, 2).flatten(2), attended_BLD)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", MODELS)
def test_measuring_leaves_the_model_as_it_was(kind: str) -> None:
    looked_into = subject(TREE, MODELS[kind](TREE))
    model, batch = looked_into.model, next(iter(looked_into.batches("val")))
    before, state = looked_into.run(batch), {name: each.clone() for name, each in model.state_dict().items()}
    measure(looked_into)
    assert torch.equal(looked_into.run(batch), before)
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


UNIFORM = UniformSource(num_symbols=3, seq_len=8)


@pytest.mark.parametrize(("kind", "source"), [("ours", TREE), ("distilbert", TREE), ("ours", UNIFORM)])
def test_a_map_is_the_mean_over_rows_and_its_mass_adds_up(kind: str, source: Source) -> None:
    looked_into = subject(source, MODELS[kind](source), num_rows=50, batch_size=16)
    maps = measure(looked_into)
    heard: list[Tensor] = []
    masked_NL = torch.cat([batch.labels_BL != IGNORE_INDEX for batch in looked_into.batches("val")])
    with listening(heard.append):
        for batch in looked_into.batches("val"):
            looked_into.run(batch)
    assert maps.num_rows == 50
    assert maps.num_layers == 3
    for layer in range(3):
        weights_NHLL = torch.cat(heard[layer::3]).double()
        torch.testing.assert_close(maps.map(layer), weights_NHLL.mean(0), atol=1e-6, rtol=0)
        for queries, asked_NL in zip(QUERIES, (masked_NL, ~masked_NL), strict=True):
            mass_HC = maps.mass(queries, layer)
            of_queries = weights_NHLL.transpose(1, 2)[asked_NL]  # (queries, H, L)
            classes = maps.distances.class_LL.expand(50, -1, -1)[asked_NL]
            for distance in range(len(maps.distances.labels)):
                expected_H = (of_queries * (classes == distance)[:, None]).sum(-1).mean(0)
                torch.testing.assert_close(mass_HC[:, distance], expected_H, atol=1e-6, rtol=0)
            apart = maps.distances.apart_LL.expand(50, -1, -1)[asked_NL][:, None]
            assert maps.mean_distance(queries, layer) == pytest.approx(float((of_queries * apart).sum(-1).mean()), abs=1e-5)
            torch.testing.assert_close(mass_HC.sum(1), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_attention_that_looks_at_all_alike_is_the_uniform_one() -> None:
    model = transformer(TREE)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight[:32] = 0  # queries and keys say nothing
            layer.self_attn.in_proj_bias[:32] = 0
    maps = measure(subject(TREE, model))
    for queries in QUERIES:
        expected_C = torch.tensor([1, 1, 2, 4], dtype=torch.float64) / 8  # a leaf, its sibling, two and four cousins
        torch.testing.assert_close(maps.mass(queries, None)[0], expected_C, atol=1e-6, rtol=0)
        torch.testing.assert_close(maps.mass(queries, 1).mean(0), expected_C, atol=1e-6, rtol=0)
        assert maps.mean_distance(queries, None) == pytest.approx((0 + 1 + 2 * 2 + 4 * 3) / 8)


class Padded(Source):
    """Rows of 3 to 6 tokens."""

    vocab, seq_len = Vocab(size=5, mask_id=4, pad_id=3, special_ids=(3,)), 6

    def rows(self, split: str) -> Any:
        class Rows:
            def __len__(self) -> int:
                return 40

            def __getitem__(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
                mask_BL = (torch.arange(6) < 3 + index_B[:, None] % 4).long()
                return torch.where(mask_BL == 1, index_B[:, None] % 3, 3), mask_BL

        return Rows()


def test_padding_neither_looks_nor_is_looked_at() -> None:
    source = Padded()
    maps = measure(subject(source, transformer(source)))
    assert sum(each.sum() for each in maps.counts.values()) == 10 * (3 + 4 + 5 + 6)
    for queries in QUERIES:
        for layer in (None, 0, 1, 2):
            torch.testing.assert_close(maps.mass(queries, layer).sum(1).mean(), torch.tensor(1.0).double(), atol=1e-6, rtol=0)
    assert maps.map(0)[:, :3, 5].max() < 0.5  # seen in a quarter of the rows alone


def test_a_finding_says_which_layer_looks_farthest_and_has_every_number() -> None:
    source = UniformSource(num_symbols=3, seq_len=9)
    one, other = (measure(subject(source, transformer(source, num_layers=layers)), f"{layers} layers") for layers in (2, 3))
    together = finding([one, other], heads=True)
    means = [one.mean_distance("masked", layer) for layer in range(2)]
    far = means.index(max(means)) + 1
    assert f"2 layers: from masked positions, layer {3 - far} looks nearest" in together.sentences[0]
    assert f"layer {far} farthest ({max(means):.2f})" in together.sentences[0]
    assert len(together.numbers) == 2 * (2 + 3) * 3 * 5  # queries, layers, heads and their mean, distances
    assert sum(each["mass"] for each in together.numbers) == pytest.approx(2 * 5 * 3)
    assert [picture.png[:4] for picture in together.pictures] == [b"\x89PNG"] * 2


def test_a_model_that_cannot_be_heard_says_so() -> None:
    model = distilbert(TREE)
    model.hf_model.config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match=r"analysis=attention: the model PretrainedMLM computes its attention"):
        measure(subject(TREE, model))

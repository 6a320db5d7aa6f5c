"""Which parameter is what, in our model, in those of transformers, and in a user's own."""

import pytest
from torch import nn

from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training.parameters import depths, hidden_matrices

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50}
HF = {
    "bert": SMALL | {"num_hidden_layers": 2, "intermediate_size": 32},
    "roberta": SMALL | {"num_hidden_layers": 2, "intermediate_size": 32},
    "electra": SMALL | {"num_hidden_layers": 2, "intermediate_size": 32, "embedding_size": 8},
    "albert": SMALL | {"num_hidden_layers": 3, "intermediate_size": 32, "embedding_size": 8},
    "modernbert": SMALL | {"num_hidden_layers": 3, "intermediate_size": 24, "pad_token_id": 0},
    "distilbert": {"dim": 16, "n_heads": 2, "vocab_size": 50, "n_layers": 2, "hidden_dim": 32},
}


def ours(**changes: object) -> TransformerClassifier:
    sizes = {"d_model": 8, "num_layers": 2, "nhead": 2, "dim_feedforward": 24} | changes
    return TransformerClassifier(vocab_size=8, seq_len=8, **sizes)  # type: ignore[arg-type]


def of_transformers(architecture: str) -> nn.Module:
    from mlm_lightning.models.pretrained import PretrainedMLM

    config = {key: value for key, value in HF[architecture].items() if key not in ("vocab_size", "pad_token_id")}
    return PretrainedMLM(vocab_size=50, seq_len=8, architecture=architecture, config=config, pad_token_id=0)


def named(model: nn.Module, values: dict[nn.Parameter, int]) -> dict[str, int]:
    return {name: values[parameter] for name, parameter in model.named_parameters() if parameter in values}


def test_hidden_matrices_of_our_model() -> None:
    model = ours(decoder_hidden_sizes=[8, 8])
    found = named(model, hidden_matrices(model))
    layer = {"self_attn.in_proj_weight": 3, "self_attn.out_proj.weight": 1, "linear1.weight": 1, "linear2.weight": 1}
    expected = {f"encoder.layers.{i}.{name}": count for i in range(2) for name, count in layer.items()}
    assert found == expected | {"decoder.hidden.0.weight": 1, "decoder.hidden.1.weight": 1}


def test_a_tied_output_layer_is_none() -> None:
    model, before = ours(), len(hidden_matrices(ours()))
    model.decoder.head.weight = model.embedding.weight
    assert model.embedding.weight not in hidden_matrices(model)
    assert len(hidden_matrices(model)) == before == 8


def test_hidden_matrices_of_our_modern_model() -> None:
    """Gated layers, and an output layer that is tied to the embedding."""
    gated = {"activation": "geglu", "norm": "rms", "bias": False, "tie_embeddings": True, "positional_encoding": "rotary"}
    model = ours(**gated)
    found = named(model, hidden_matrices(model))
    layer = {"self_attn.in_proj_weight": 3, "self_attn.out_proj.weight": 1, "linear1.weight": 2, "linear2.weight": 1}
    assert found == {f"encoder.layers.{i}.{name}": count for i in range(2) for name, count in layer.items()}


def test_a_gated_layer_stacks_two_matrices() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear1, self.linear2 = nn.Linear(4, 2 * 6), nn.Linear(6, 4)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear1, self.linear2 = nn.Linear(4, 12), nn.Linear(12, 4)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    for kind, count in ((Gated, 2), (Plain, 1), (Attention, 3)):
        model = nn.Sequential(nn.Embedding(5, 4), kind(), nn.Linear(4, 5))
        assert [*hidden_matrices(model).values()] == [count, 1]


@pytest.mark.parametrize("architecture", HF)
def test_hidden_matrices_of_transformers(architecture: str) -> None:
    """All but embeddings and the output layer; ModernBERT stacks queries, keys and values, and its gated layers."""
    model = of_transformers(architecture)
    found = named(model, hidden_matrices(model))
    stacked = {"Wqkv": 3, "Wi": 2}
    for name, parameter in model.named_parameters():
        outside = parameter.ndim != 2 or any(
            word in name for word in ("_embeddings.weight", "decoder.weight", "vocab_projector")
        )
        assert (name in found) != outside, name
    for name, count in found.items():
        assert count == next((n for word, n in stacked.items() if f"{word}.weight" in name), 1), name


def test_a_model_without_any_is_no_mistake() -> None:
    assert hidden_matrices(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))) == {}
    assert hidden_matrices(nn.LayerNorm(3)) == {}


def test_depths_of_our_model() -> None:
    model = ours(num_layers=3, decoder_hidden_sizes=[8, 8, 8, 8, 8])
    for name, depth in named(model, depths(model)).items():
        if name.startswith("encoder.layers."):
            assert depth == 3 - int(name.split(".")[2])
        else:
            assert depth == (4 if name.startswith(("embedding", "positional")) else 0), name


@pytest.mark.parametrize("architecture", HF)
def test_depths_of_transformers(architecture: str) -> None:
    model = of_transformers(architecture)
    layers = {"albert": 1, "modernbert": 3}.get(architecture, 2)  # ALBERT's three are one
    found = named(model, depths(model))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, depth in found.items():
        _, is_layer, rest = name.partition(".layer.") if ".layer." in name else name.partition(".layers.")
        if "albert_layer_groups" in name:
            assert depth == 1, name
        elif is_layer:
            assert depth == layers - int(rest.split(".")[0]), name
        else:
            assert depth == (layers + 1 if "embed" in name else 0), name


def test_a_model_without_layers_has_embeddings_and_the_rest() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    assert named(model, depths(model)) == {"0.weight": 1, "1.weight": 0, "1.bias": 0}

"""Compiled layers give what the others give, at every step the same code does it, and validation knows nothing of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import run_of, train
from torch import nn

from mlm_lightning.config.parse import settings
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.batches import Plan
from mlm_lightning.errors import ConfigError
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training import fit
from mlm_lightning.training.compiled import compile_layers, compiles, eagerly

Toy = Callable[..., dict[str, Any]]


def test_layers_alone_are_compiled_and_keep_their_names_and_values() -> None:
    model = TransformerClassifier(
        7, 5, num_layers=3, d_model=8, nhead=2, decoder_hidden_sizes=(8,), positional_encoding="rotary"
    )
    ids_BL, names = torch.randint(7, (4, 5)), list(model.state_dict())
    plain_BLV = model(ids_BL)
    assert compile_layers(model, backend="eager") == 3
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(ids_BL), plain_BLV, rtol=1e-5, atol=1e-6)


def test_within_eagerly_nothing_is_compiled() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        calls.append(graph)
        return graph.forward

    model = TransformerClassifier(7, 5, num_layers=1)
    for layer in model.encoder.layers:
        layer.compile(backend=backend)
    with eagerly():
        model(torch.zeros(1, 5, dtype=torch.long))
    assert not calls
    model(torch.zeros(1, 5, dtype=torch.long))
    assert len(calls) == 1


def test_a_run_compiles_each_shape_once_and_validates_as_without(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    config = toy("model.num_layers=3", "data.depth=4", "masking.rate=0.3")
    summary = train(config)
    torch._dynamo.reset()
    monkeypatch.setattr(fit, "compile_layers", lambda model: compile_layers(model, backend=counting))  # type: ignore[arg-type]
    compiled = toy("model.num_layers=3", "data.depth=4", "masking.rate=0.3", "trainer.compile=true")
    assert train(compiled)["val/loss"] == pytest.approx(summary["val/loss"], abs=1e-6)
    assert len(graphs) == 2  # of the last layer and of those before, whatever the number of predictions in a batch
    assert run_of(compiled).manifest["compiled"] is True


def of(*overrides: str) -> Settings:
    return settings(["trainer.accelerator=cpu", *overrides])


@pytest.mark.parametrize(
    ("overrides", "dropout", "steps", "expected"),
    [
        (("trainer.compile=false",), 0.0, 20_000, False),
        (("trainer.compile=true",), 0.1, 1, True),
        (("trainer.compile=auto",), 0.0, 20_000, True),
        (("trainer.compile=auto",), 0.0, 2_000, False),
        (("trainer.compile=auto",), 0.1, 20_000, False),
        (("trainer.compile=auto", "data.length_schedule={start: 4, steps: 0.2}"), 0.0, 20_000, False),
    ],
)
def test_where_it_pays(
    overrides: tuple[str, ...], dropout: float, steps: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(dropout))
    assert compiles(of(*overrides), model, Plan(total_steps=steps)) is expected


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compiles(of("trainer.compile=auto"), nn.Linear(2, 2), Plan(total_steps=20_000)) is False
    with pytest.raises(ConfigError, match=r"trainer\.compile=true.*compiler"):
        of("trainer.compile=true")


@pytest.mark.slow
def test_real_code_gives_the_same_losses(toy: Toy) -> None:
    size = ("data.depth=4", "model.num_layers=2", "model.d_model=32", "trainer.max_steps=20")
    plain, compiled = train(toy(*size)), train(toy(*size, "trainer.compile=true"))
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], abs=1e-5)

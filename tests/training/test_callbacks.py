"""What the callbacks show, and what stays as it was for the folders of earlier versions."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import AT, At, assert_equal_checkpoints, lines_without_times, run_of, timeless, train

from mlm_lightning.errors import ConfigError, Interrupted
from mlm_lightning.training.callbacks.checkpoint import Checkpoint
from mlm_lightning.training.callbacks.monitor import Monitor, layer_of
from mlm_lightning.training.callbacks.samples import Samples
from mlm_lightning.training.callbacks.throughput import Throughput


def test_old_checkpoints_find_their_callbacks() -> None:
    """By these keys their state is stored; another name of the class would start it anew."""
    assert [callback.state_key for callback in (Checkpoint("checkpoints"), Throughput())] == ["Checkpoint", "Throughput"]


def test_what_is_out_of_range_is_refused_with_its_key() -> None:
    for name, value in (("every_n_train_steps", 0), ("every_minutes", 0.0), ("every_n_epochs", -1)):
        with pytest.raises(
            ConfigError, match=rf"callbacks\.checkpoint\.{name}={value}: must be (at least 1|above 0); null is never"
        ):
            Checkpoint("checkpoints", **{name: value})
    with pytest.raises(ConfigError, match=r"callbacks\.samples\.num_rows=0: must be at least 1"):
        Samples(num_rows=0)


# the monitor

Toy = Callable[..., dict[str, Any]]


def monitored(config: dict[str, Any]) -> list[dict[str, float]]:
    """The lines of metrics.csv that the monitor wrote to: all their values."""
    lines = lines_without_times(run_of(config))
    return [{n: float(v) for n, v in each.items() if v} for each in lines if each.get("monitor/cpu_percent")]


def curves_of(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in each.items() if not name.startswith("monitor/")} for each in lines]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_watched_run_is_the_same_run(toy: Toy, tmp_path: Path, precision: str) -> None:
    options = (f"trainer.precision={precision}", "trainer.accumulate_grad_batches=2", "model.dropout=0.1")
    plain = toy(f"output_dir={tmp_path / 'plain'}", *options)
    watched = toy(f"output_dir={tmp_path / 'watched'}", *options, "callbacks=[monitor]")
    assert timeless(train(plain)) == timeless(train(watched))
    one, other = run_of(plain), run_of(watched)
    assert one.folder.name == other.folder.name
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal_checkpoints(one.checkpoints / name, other.checkpoints / name)
    assert curves_of(lines_without_times(one)) == curves_of(lines_without_times(other))
    assert len(monitored(watched)) == 8
    assert monitored(plain) == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_layers_gradients_are_those_that_are_applied(toy: Toy, accumulate: int) -> None:
    """Of all layers together: the norm that the run logs, which is that of one large batch's mean, before clipping."""
    clipped = "trainer.gradient_clip_val=0.01"
    config = toy("callbacks=[monitor]", f"trainer.accumulate_grad_batches={accumulate}", clipped, "data.batch_size=8")
    train(config)
    lines = monitored(config)
    assert len(lines) == 8
    for line in lines:
        norms = torch.tensor([value for name, value in line.items() if name.startswith("monitor/grad_norm/")])
        assert len(norms) > 2
        assert norms.norm().item() == pytest.approx(line["train/grad_norm"], rel=1e-5)
        assert line["train/grad_norm"] > 0.01


def test_updates_are_how_far_the_weights_move(toy: Toy) -> None:
    """Plain gradient descent moves them by lr times the gradient."""
    config = toy("callbacks=[monitor]", "schedule=constant", "trainer.gradient_clip_val=null")
    config["optim"] = {"_target_": "torch.optim.SGD", "lr": 0.1}
    train(config)
    assert len(monitored(config)) == 8
    for line in monitored(config):
        for name in (each for each in line if each.startswith("monitor/grad_norm/")):
            weight, ratio = (line[name.replace("grad_norm", other)] for other in ("weight_norm", "update_ratio"))
            assert ratio * weight == pytest.approx(line["lr"] * line[name], rel=1e-3, abs=1e-7)


def test_a_run_goes_on_with_the_monitor_or_without(toy: Toy, tmp_path: Path) -> None:
    at = f"callbacks.at._target_={AT}"
    plain, watched = (
        toy(f"output_dir={tmp_path / 'whole'}", at, each) for each in ("callbacks=default", "callbacks=[monitor]")
    )
    train(plain)
    whole = run_of(plain)
    for name, first, then in (("on", plain, watched), ("off", watched, plain)):
        place = {"output_dir": str(tmp_path / name)}
        At.set(("train", 5, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(first | place)
        train(then | place)
        run = run_of(then | place)
        assert_equal_checkpoints(run.checkpoints / "last.ckpt", whole.checkpoints / "last.ckpt")
        assert len(monitored(then | place)) == {"on": 3, "off": 5}[name]


def test_what_the_monitor_is_told_not_to_watch() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.monitor\.layers"):
        Monitor(layers="some")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("blocks.0.attention.qkv.weight", "blocks.0"),
        ("distilbert.transformer.layer.11.ffn.lin1.bias", "distilbert.transformer.layer.11"),
        ("embedding.weight", "embedding"),
        ("scale", "scale"),
    ],
)
def test_the_layer_of_a_parameter(parameter: str, layer: str) -> None:
    assert layer_of(parameter) == layer

"""The average of the weights: what it is, who sees it, and that a run goes on with both."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from helpers import AT, At, assert_equal_checkpoints, assert_equal_runs, lines_without_times, run_of, timeless, train
from torch import Tensor

import mlm_lightning
from mlm_lightning.errors import ConfigError, Interrupted
from mlm_lightning.runs.checkpoint import AVERAGING
from mlm_lightning.training.callbacks.ema import EMA

Toy = Callable[..., dict[str, Any]]
EMA_ON = ("callbacks=[ema]", "callbacks.ema.decay=0.7", "optim.lr=1e-2", "model.dropout=0.1", "schedule=constant")


class Records(L.Callback):
    """The model's weights after each step, and as they are while other callbacks look at it after a validation."""

    steps: ClassVar[list[dict[str, Tensor]]] = []
    seen: ClassVar[list[dict[str, Tensor]]] = []

    def on_train_start(self, *_: Any) -> None:
        Records.steps, Records.seen = [], []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.at_step_boundary(batch_idx):
            Records.steps.append(copied(module))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        Records.seen.append(copied(module))


RECORDS = "+callbacks.records._target_=test_ema.Records"


def copied(module: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def checkpoint_of(config: dict[str, Any], name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(run_of(config).checkpoints / name, weights_only=True)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def without_validation(line: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in line.items() if not name.startswith("val/")}


@pytest.fixture(autouse=True)
def _nothing_left_set() -> Any:
    yield
    At.place = None


def test_it_is_the_average_of_a_loop_by_hand_and_training_is_what_it_is_without(toy: Toy, tmp_path: Path) -> None:
    options = ("trainer.accumulate_grad_batches=2", "data.batch_size=8", "trainer.max_steps=40", RECORDS)
    config, plain = toy(*EMA_ON, *options), toy(*EMA_ON[2:], *options, f"output_dir={tmp_path / 'plain'}")
    train(plain)
    expected = checkpoint_of(plain)
    train(config)
    assert len(Records.steps) == 40
    averages = [Records.steps[0]]
    for n, weights in enumerate(Records.steps[1:], start=1):
        decay = min(0.7, (1 + n) / (10 + n))
        averages.append({name: decay * averages[-1][name] + (1 - decay) * weights[name] for name in weights})
    found = checkpoint_of(config)
    for name, value in averages[-1].items():
        torch.testing.assert_close(found["state_dict"][name], value, atol=1e-6, rtol=0)
    for validation, step in enumerate(range(4, 41, 4)):  # what callbacks after it saw
        for name, value in averages[step - 1].items():
            torch.testing.assert_close(Records.seen[validation][name], value, atol=1e-6, rtol=0)
    assert_equal(dict(expected["state_dict"]), found[AVERAGING]["weights"])
    assert_equal(found[AVERAGING]["weights"], Records.steps[-1])
    assert found[AVERAGING]["updates"] == 40
    lines = [[without_validation(line) for line in lines_without_times(run_of(each))] for each in (config, plain)]
    assert lines[0] == lines[1]


def test_metrics_and_all_that_opens_a_checkpoint_are_of_the_average(toy: Toy) -> None:
    config = toy(*EMA_ON)
    summary = train(config)
    last = run_of(config).checkpoints / "last.ckpt"
    evaluated = mlm_lightning.evaluate(str(last))
    assert {name: evaluated[name] for name in summary if name.startswith("val/")} == pytest.approx(
        {name: value for name, value in summary.items() if name.startswith("val/")}, abs=1e-6
    )
    loaded, found = mlm_lightning.load_run(last), checkpoint_of(config)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, found["state_dict"][f"model.{name}"])
        assert value.ndim == 0 or not torch.equal(value, found[AVERAGING]["weights"][f"model.{name}"])
    best = checkpoint_of(config, "best.ckpt")
    assert best["global_step"] == summary["best/step"]
    assert mlm_lightning.evaluate(str(run_of(config).folder))["val/loss"] == pytest.approx(summary["best/val/loss"], abs=1e-6)


@pytest.mark.parametrize("place", [("train", 5, 0), ("validation", 4, 0), ("validation", 4, 2), ("validation", 8, 3)])
def test_a_stopped_run_goes_on_with_weights_and_average(toy: Toy, tmp_path: Path, place: tuple[str, int, int]) -> None:
    """Also where a validation is broken off, in which the model holds the average."""
    options = (*EMA_ON, f"callbacks.at._target_={AT}", "optim=muon", "optim.layer_decay=0.8", "optim.z_loss=1e-3")
    options += ("callbacks=[ema,early_stopping]",)
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    At.set(place, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(cut)
    train(cut)
    assert_equal_runs(whole, cut)


@pytest.mark.parametrize("optimizer", ["muon", "stable_adamw"])
def test_every_optimizer_goes_on_bitwise(toy: Toy, tmp_path: Path, optimizer: str) -> None:
    options = (f"optim={optimizer}", f"callbacks.at._target_={AT}", "trainer.accumulate_grad_batches=2", "data.batch_size=8")
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    for step in (3, 6):
        At.set(("train", step, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(cut)
    train(cut)
    assert_equal_runs(whole, cut)


def test_a_run_whose_summary_was_lost_measures_its_average_again(toy: Toy) -> None:
    config = toy(*EMA_ON)
    expected = timeless(train(config))
    (run_of(config).folder / "summary.json").unlink()
    assert timeless(train(config)) == expected


def test_a_child_goes_on_with_its_parents_weights_and_average(toy: Toy, tmp_path: Path) -> None:
    parent, long = toy(*EMA_ON), toy(*EMA_ON, "trainer.max_steps=16", f"output_dir={tmp_path / 'long'}")
    train(parent)
    expected = train(long)
    child = toy(*EMA_ON, "trainer.max_steps=16", f"resume={run_of(parent).folder}")
    assert train(child)["val/loss"] == expected["val/loss"]
    only = ("state_dict", AVERAGING, "optimizer_states", "lr_schedulers", "global_step")
    assert_equal_checkpoints(*(run_of(each).checkpoints / "last.ckpt" for each in (long, child)), only=only)


def test_a_child_may_leave_the_average_or_begin_one(toy: Toy, tmp_path: Path) -> None:
    averaged, plain = toy(*EMA_ON), toy(*EMA_ON[2:], f"output_dir={tmp_path / 'plain'}")
    train(averaged)
    train(plain)
    long = toy(*EMA_ON[2:], "trainer.max_steps=16", f"output_dir={tmp_path / 'long'}")
    train(long)
    leaves = toy(*EMA_ON[2:], "trainer.max_steps=16", f"resume={run_of(averaged).folder}")
    train(leaves)
    assert_equal(checkpoint_of(long)["state_dict"], checkpoint_of(leaves)["state_dict"])
    assert AVERAGING not in checkpoint_of(leaves)
    begins = toy(*EMA_ON, "trainer.max_steps=16", f"resume={run_of(plain).folder}", "name=begins")
    train(begins)
    found = checkpoint_of(begins)
    assert found[AVERAGING]["updates"] == 8
    assert_equal(dict(checkpoint_of(long)["state_dict"]), found[AVERAGING]["weights"])


def test_tied_and_shared_weights_stay_so(toy: Toy) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8, "embedding_size": 8}
    settings = toy(*EMA_ON[:3])
    settings["model"] = {
        "_target_": "mlm_lightning.models.pretrained.PretrainedMLM",
        "architecture": "albert",
        "config": config,
    }
    train(settings)
    loaded = mlm_lightning.load_run(run_of(settings).folder)
    model = loaded.model.hf_model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[operator]
    state = checkpoint_of(settings)["state_dict"]
    names = [name for name in state if name.endswith(("word_embeddings.weight", "predictions.decoder.weight"))]
    assert len(names) == 2
    assert torch.equal(state[names[0]], state[names[1]])


def test_two_ranks_have_the_average_of_one(toy: Toy) -> None:
    options = ("callbacks=[ema]", "optim.lr=1e-2", "optim=muon", "optim.z_loss=1e-3")
    alone = toy(*options, "name=alone")
    ranks = toy(*options, "name=ranks", "data.batch_size=8", "trainer.devices=2", "trainer.strategy=ddp")
    assert train(ranks)["val/loss"] == pytest.approx(train(alone)["val/loss"], abs=1e-5)
    states = [checkpoint_of(each)["state_dict"] for each in (alone, ranks)]
    for name, value in states[0].items():
        if not name.endswith("in_proj_bias"):  # those of the keys have no gradient but rounding errors
            torch.testing.assert_close(states[1][name], value, atol=2e-4, rtol=0)


def test_after_a_plain_trainers_fit_the_model_is_the_average() -> None:
    from mlm_lightning import MLMDataModule, MLMModule
    from mlm_lightning.data.languages.tree import TreeSource
    from mlm_lightning.masking import Bernoulli
    from mlm_lightning.models.transformer import TransformerClassifier

    data = MLMDataModule(TreeSource(depth=2, num_symbols=3, val_size=8), Bernoulli(rate=0.5), batch_size=8)
    torch.manual_seed(0)
    model = TransformerClassifier(vocab_size=4, seq_len=4, d_model=8, num_layers=1, nhead=2, dim_feedforward=8)
    ema, records = EMA(0.5), Records()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_steps=6, accelerator="cpu", callbacks=[ema, records], enable_model_summary=False, **quiet)
    trainer.fit(MLMModule(model, data.conditions), datamodule=data)
    assert_equal({f"model.{name}": value for name, value in model.state_dict().items()}, Records.seen[-1])
    assert not torch.equal(model.embedding.weight, Records.steps[-1]["model.embedding.weight"])


def test_what_is_out_of_range_is_refused_with_its_key() -> None:
    for decay in (0.0, 1.0, -1):
        with pytest.raises(ConfigError, match=r"callbacks\.ema\.decay=.*must be above 0 and below 1"):
            EMA(decay)

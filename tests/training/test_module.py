"""Training steps: what is divided by what, over micro-batches and ranks."""

import copy
import csv
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_of, train

import mlm_lightning.cross_entropy
import mlm_lightning.training.loss
from mlm_lightning.training.module import TrainingDivergedError

Toy = Callable[..., dict[str, Any]]

# unequal mask counts, gradients clipped, dropout 0
STEPS = ("trainer.max_steps=20", "trainer.gradient_clip_val=0.1", "masking.rate=0.4", "data.depth=3", "model.num_layers=2")


def losses(config: dict[str, Any]) -> list[float]:
    train(config)
    with (run_of(config).folder / "metrics.csv").open() as file:
        return [float(line["train/loss"]) for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def large_batch(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    from conftest import composed

    return losses(composed(f"output_dir={tmp_path_factory.mktemp('large')}", *STEPS, "data.batch_size=64"))


def test_accumulated_micro_batches_equal_the_large_batch(toy: Toy, large_batch: list[float]) -> None:
    found = losses(toy(*STEPS, "data.batch_size=16", "trainer.accumulate_grad_batches=4"))
    assert len(found) == 20
    assert found == pytest.approx(large_batch, abs=1e-5)


def test_ranks_equal_the_large_batch(toy: Toy, large_batch: list[float]) -> None:
    config = toy(*STEPS, "data.batch_size=32", "trainer.devices=2", "trainer.strategy=ddp")
    found = losses(config)
    assert len(found) == 20
    assert found == pytest.approx(large_batch, abs=1e-5)
    folders = list(Path(config["output_dir"]).rglob("summary.json"))
    assert len(folders) == 1


def test_ranks_evaluate_each_row_once(toy: Toy) -> None:
    # 65 rows: an odd one out for two ranks
    further = "eval.data={k2: {filter_level: 2, val_size: 33}}"
    rows = ("data.val_size=65", "trainer.max_steps=1", "optim.lr=1e-12", further)
    alone = train(toy(*rows, "name=alone"))
    ranks = train(toy(*rows, "name=ranks", "data.batch_size=8", "trainer.devices=2", "trainer.strategy=ddp"))
    for name in ("val/loss", "val/accuracy", "val/oracle_loss", "val/excess_loss_se"):
        for metric in (name, f"{name}_k2"):
            assert ranks[metric] == pytest.approx(alone[metric], abs=1e-6)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(toy: Toy) -> None:
    config = toy("optim.lr=1e30", "trainer.gradient_clip_val=null", "schedule.warmup_steps=7", "trainer.val_check_interval=1")
    config["optim"]["eps"] = 1e-30
    config["schedule"] = {"_target_": "mlm_lightning.training.optim.Constant", "warmup_steps": 0}
    with pytest.raises(TrainingDivergedError, match=r"optim\.lr"):
        train(config)
    folder = run_of(config).folder
    assert "TrainingDivergedError" in json.loads((folder / "error.json").read_text())["type"]
    assert not (folder / "summary.json").exists()

    for path in (folder / "checkpoints").glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(weight.isfinite().all()) for weight in weights.values())


def test_validation_runs_at_its_interval_and_after_the_last_step(toy: Toy) -> None:
    config = toy("trainer.max_steps=7", "trainer.val_check_interval=3", "trainer.accumulate_grad_batches=2")
    train(config)
    with (run_of(config).folder / "metrics.csv").open() as file:
        validated = [int(line["step"]) for line in csv.DictReader(file) if line["val/loss"]]
    assert validated == [3, 6, 7]


def test_epochs_that_end_between_steps_are_validated_once_each(toy: Toy) -> None:
    # 40 rows, 16 a step: epochs end after steps 2.5, 5, 7.5
    config = toy("data.train_size=40", "trainer.max_steps=null", "trainer.max_epochs=3", "trainer.val_check_interval=1.0")
    summary = train(config)
    assert summary["steps"] == math.ceil(3 * 40 / 16)
    with (run_of(config).folder / "metrics.csv").open() as file:
        validated = [int(line["step"]) for line in csv.DictReader(file) if line["val/loss"]]
    assert validated == [3, 5, 8]


# what the loss has beside the cross-entropy


def gradients(z_loss: float) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float], dict[str, float]]:
    """Of the training's first step, and of the formula: log-normalisers squared, by autograd; the four means of the step."""
    import lightning as L

    from mlm_lightning import MLMDataModule, MLMModule
    from mlm_lightning.data.languages.tree import TreeSource
    from mlm_lightning.masking import Bernoulli
    from mlm_lightning.models.transformer import TransformerClassifier

    source = TreeSource(depth=2, num_symbols=3, val_size=8)
    data = MLMDataModule(source, Bernoulli(rate=0.5, mask_share=1.0, random_share=0.0), batch_size=8)
    torch.manual_seed(0)
    model = TransformerClassifier(vocab_size=4, seq_len=4, d_model=8, num_layers=1, nhead=2, dim_feedforward=8)
    reference = copy.deepcopy(model)
    seen: list[Any] = []
    kept: list[torch.Tensor] = []
    logged: dict[str, float] = {}

    class Watching(MLMModule):
        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return super().training_step(batch, batch_idx)

        def log_scalars(self, metrics, step):
            logged.update(metrics)

        def configure_gradient_clipping(self, optimizer, **_):
            kept.extend(p.grad.clone() for p in model.parameters())

    module = Watching(model, data.conditions, optimizer=partial(torch.optim.SGD, lr=0.0), z_loss=z_loss)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, accumulate_grad_batches=2, enable_progress_bar=False, log_every_n_steps=1,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    sums = torch.zeros(3)
    for batch in seen:
        labels_BK = batch.labels_BK
        logits_BKV = reference(batch.input_ids_BL, None, batch.positions_BK)
        predicted = labels_BK >= 0
        log_z = logits_BKV.exp().sum(-1).log()
        log_p = logits_BKV.gather(-1, labels_BK.clamp(min=0).unsqueeze(-1)).squeeze(-1) - log_z
        sums = sums + torch.stack([-log_p[predicted].sum(), log_z[predicted].pow(2).sum(), predicted.sum()])
    loss, squares = sums[0] / sums[2], sums[1] / sums[2]
    (loss + z_loss * squares).backward()
    return kept, [p.grad for p in reference.parameters()], [loss.item(), z_loss * squares.item()], logged  # type: ignore[misc]


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_the_gradient_is_that_of_the_formula_over_all_micro_batches(
    monkeypatch: pytest.MonkeyPatch, z_loss: float, in_pieces: bool
) -> None:
    if in_pieces:
        monkeypatch.setattr(mlm_lightning.training.loss, "WORTH_IT", 1)
    found, expected, (loss, z), logged = gradients(z_loss)
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert logged["train/loss"] == pytest.approx(loss, rel=1e-5)  # the cross-entropy alone
    assert logged.get("train/z_loss") == (pytest.approx(z, rel=1e-5) if z_loss else None)


@pytest.mark.parametrize(
    "options", [(), ("eval.mask_rates=[0.1,0.5]", "eval.data={k1: {filter_level: 1}}", "optim.z_loss=1e-3")]
)
def test_logits_in_pieces_are_those_at_once(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Losses, weights and metrics of a run, in which all that is large is small."""
    # a key's bias has no gradient but for rounding, which AdamW would make as large as any other
    options += ("optim.eps=1e-3",)
    at_once, in_pieces = (toy(f"output_dir={tmp_path / name}", *options) for name in ("at_once", "in_pieces"))
    expected = train(at_once)
    monkeypatch.setattr(mlm_lightning.training.loss, "WORTH_IT", 1)
    monkeypatch.setattr(mlm_lightning.cross_entropy, "_CHUNK_ON_CPU", 20)
    found = train(in_pieces)
    same = [name for name in expected if name not in ("seconds", "tokens_per_second")]
    assert {name: found[name] for name in same} == {name: pytest.approx(expected[name], rel=1e-4, abs=1e-6) for name in same}
    states = [
        torch.load(run_of(each).checkpoints / "last.ckpt", weights_only=True)["state_dict"] for each in (at_once, in_pieces)
    ]
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, atol=1e-5, rtol=1e-3)


def test_a_z_loss_pulls_the_log_normalisers_to_zero(toy: Toy) -> None:
    config = toy("optim.z_loss=1.0", "trainer.max_steps=60", "optim.lr=1e-2", "trainer.val_check_interval=60")
    train(config)
    with (run_of(config).folder / "metrics.csv").open() as file:
        found = [float(line["train/z_loss"]) for line in csv.DictReader(file)]
    assert found[0] > 1.5  # log² 4 is 1.9
    assert found[-1] < 0.05

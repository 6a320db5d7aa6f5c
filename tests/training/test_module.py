"""Training steps: what is divided by what, over micro-batches and ranks."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import run_of, train

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
    import torch

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

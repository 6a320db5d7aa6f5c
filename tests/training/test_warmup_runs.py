"""Runs whose rows begin short and whose batches begin small: what they log, and that they go on bitwise."""

import os
import signal
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers import AT, At, assert_equal_runs, lines_without_times, run_of, settings_of, train
from test_plain_trainer import QUIET

from mlm_lightning import MLMDataModule, MLMModule
from mlm_lightning.config.build import build_model
from mlm_lightning.data.warmup import LengthSchedule
from mlm_lightning.errors import Interrupted

Toy = Callable[..., dict[str, Any]]

ROWS = ("data.depth=4", "data.train_size=100", "trainer.max_steps=12")
LENGTHS, SIZES = "data.length_schedule={start: 4, steps: 0.75}", "trainer.batch_schedule={start: 2, steps: 6}"


def column(config: dict[str, Any], name: str) -> list[float]:
    return [float(line[name]) for line in lines_without_times(run_of(config)) if line.get(name)]


def weights_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return torch.load(run_of(config).checkpoints / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_logs_lengths_and_sizes_and_counts_what_it_reads(toy: Toy, tmp_path: Path) -> None:
    batches = ("data.batch_size=8", "trainer.accumulate_grad_batches=2")
    plain, warm = toy(*ROWS, *batches, f"output_dir={tmp_path / 'plain'}"), toy(*ROWS, *batches, LENGTHS, SIZES)
    before, after = train(plain), train(warm)
    lengths, rows = column(warm, "train/seq_len"), column(warm, "train/rows_per_step")
    assert lengths == [4, 4, 4, 8, 8, 8, 8, 8, 8, 16, 16, 16]
    assert rows == [4, 6, 8, 10, 12, 14, 16, 16, 16, 16, 16, 16]
    read = [length * count for length, count in zip(lengths, rows, strict=True)]
    assert column(warm, "train/tokens") == list(accumulate(read))
    assert after["tokens"] == sum(read)
    assert column(warm, "train/epoch") == pytest.approx([each / 100 for each in accumulate(rows)])
    assert column(plain, "train/seq_len") == column(plain, "train/rows_per_step") == []
    # a matter of the frozen masks and of whole rows alone
    assert after["val/oracle_loss"] == before["val/oracle_loss"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_stopped_twice_in_its_warm_up_is_the_uninterrupted_one(toy: Toy, tmp_path: Path, workers: int) -> None:
    options = (*ROWS, LENGTHS, SIZES, "data.batch_size=8", "trainer.accumulate_grad_batches=3", f"data.num_workers={workers}")
    options += (f"callbacks.at._target_={AT}", "model.dropout=0.1", "masking.rate={start: 0.5, end: 0.2, schedule: linear}")
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    for step in (2, 7):
        At.set(("train", step, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as stopped:
            train(cut)
        assert stopped.value.step == step
    train(cut)
    assert_equal_runs(whole, cut)


def test_accumulated_micro_batches_grow_like_one_large_batch(toy: Toy, tmp_path: Path) -> None:
    large = toy(*ROWS, LENGTHS, "trainer.batch_schedule={start: 4, steps: 6}", f"output_dir={tmp_path / 'large'}")
    small = toy(*ROWS, LENGTHS, SIZES, "data.batch_size=8", "trainer.accumulate_grad_batches=2")
    expected, found = train(large), train(small)
    assert column(small, "train/tokens") == column(large, "train/tokens")
    assert column(small, "train/loss") == pytest.approx(column(large, "train/loss"), abs=1e-5)
    assert found["val/loss"] == pytest.approx(expected["val/loss"], abs=1e-5)


@pytest.mark.slow
def test_ranks_grow_like_one_large_batch(toy: Toy, tmp_path: Path) -> None:
    large = toy(*ROWS, LENGTHS, "trainer.batch_schedule={start: 4, steps: 6}", f"output_dir={tmp_path / 'large'}")
    ranks = toy(*ROWS, LENGTHS, SIZES, "data.batch_size=8", "trainer.devices=2", "trainer.strategy=ddp")
    train(large)
    train(ranks)
    for name in ("train/tokens", "train/rows_per_step", "train/seq_len", "train/epoch"):
        assert column(ranks, name) == column(large, name)
    assert column(ranks, "train/loss") == pytest.approx(column(large, "train/loss"), abs=1e-5)


def test_epochs_end_where_their_rows_do(toy: Toy) -> None:
    config = toy(
        *("data.train_size=56", "trainer.max_steps=null", "trainer.max_epochs=3", "trainer.val_check_interval=1.0"),
        *("trainer.batch_schedule={start: 4, steps: 6}", "callbacks.checkpoint.every_n_epochs=1"),
    )
    summary = train(config)
    rows = list(accumulate(column(config, "train/rows_per_step")))
    assert rows[:7] == [4, 10, 18, 28, 40, 54, 70]
    ends = [next(step for step, read in enumerate(rows, 1) if read >= 56 * epoch) for epoch in (1, 2, 3)]
    assert summary["steps"] == ends[-1] == len(rows)
    validated = [int(line["step"]) for line in lines_without_times(run_of(config)) if line.get("val/loss")]
    assert validated == ends
    kept = {
        path.name: torch.load(path, weights_only=True)["global_step"] for path in run_of(config).checkpoints.glob("epoch-*")
    }
    assert kept == {f"epoch-{epoch}.ckpt": step for epoch, step in enumerate(ends, 1)}


def test_a_plain_trainer_trains_on_growing_rows(toy: Toy, tmp_path: Path) -> None:
    config = toy("data.depth=4", "trainer.max_steps=10", LENGTHS, "schedule=constant", "optim.lr=1e-3", "logger=csv")
    train(config)
    settings = settings_of(config)
    source = settings.data.instance
    data = MLMDataModule(source, settings.masking.instance, batch_size=16, length_schedule=LengthSchedule(start=4, steps=0.75))
    optim = settings.optim.arguments
    model = build_model(settings.model, settings.seed, source)
    module = MLMModule(
        model, data.conditions, lambda groups: torch.optim.AdamW(groups, **optim | {"betas": tuple(optim["betas"])})
    )
    clip = settings.trainer.gradient_clip_val
    L.Trainer(max_steps=10, gradient_clip_val=clip, enable_checkpointing=False, **QUIET).fit(module, datamodule=data)
    expected = weights_of(config)
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_a_run_of_an_earlier_version_has_no_schedules(toy: Toy) -> None:
    """Its config lacks the keys; it is found, and evaluated, as before."""
    config = toy()
    run = run_of(config)
    for group, name in (("data", "length_schedule"), ("trainer", "batch_schedule")):
        assert config[group].pop(name) is None
    assert run_of(config).folder == run.folder
    settings = settings_of(config)
    assert settings.loader.length_schedule is settings.trainer.batch_schedule is None

"""A time budget becomes steps once, when the run begins; whatever the clock says later, the run keeps them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import AT, At, assert_equal_runs, run_of, settings_of, train

import mlm_lightning.training.fit
from mlm_lightning.commands.export import export
from mlm_lightning.errors import Interrupted
from mlm_lightning.training.auto import learning_rate_for, steps_within

Toy = Callable[..., dict[str, Any]]
BUDGET = ("trainer.max_steps=null", "trainer.time_budget=0.5")


@pytest.fixture
def step_takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what measuring a step gives."""

    def takes(seconds: float) -> None:
        monkeypatch.setattr(mlm_lightning.training.fit, "_step_seconds", lambda *_: seconds)

    return takes


def settled_of(config: dict[str, Any]) -> dict[str, Any]:
    return run_of(config).manifest["settled"]


@pytest.mark.parametrize("seconds", [1.0, 0.37, 40.0])
def test_whole_steps_fill_the_budget(toy: Toy, seconds: float) -> None:
    assert steps_within(settings_of(toy(*BUDGET)), 8, seconds) == max(1, int(30 / seconds))


@pytest.mark.parametrize("lengths", ["null", "{start: 2, steps: 0.5}", "{start: 2, steps: 40}"])
@pytest.mark.parametrize("sizes", ["null", "{start: 0.25, steps: 0.25}", "{start: 1, steps: 3000}"])
def test_short_rows_and_small_batches_leave_room_for_more_steps(toy: Toy, lengths: str, sizes: str) -> None:
    if lengths == sizes == "null":
        return
    schedules = f"data.length_schedule={lengths}", f"trainer.batch_schedule={sizes}"
    settings = settings_of(toy(*BUDGET, "data.depth=5", "data.batch_size=8", *schedules))
    found = steps_within(settings, 32, 0.03)

    def seconds(total: int) -> float:
        by_length, by_size = settings.loader.length_schedule, settings.trainer.batch_schedule
        length = [by_length.at(step, total, 32) / 32 if by_length else 1.0 for step in range(total)]
        size = [by_size.sizes(8, total).at(step) / 8 if by_size else 1.0 for step in range(total)]
        return 0.03 * sum(one * other for one, other in zip(length, size, strict=True))

    assert found > 1000
    assert seconds(found) == pytest.approx(30, rel=0.02)


def test_the_steps_are_measured_and_the_run_is_that_of_as_many_steps(toy: Toy, tmp_path: Path) -> None:
    """Timing leaves nothing: no weights, no random numbers, no files."""
    timed = toy("trainer.max_steps=7", "trainer.time_budget=2", "model.dropout=0.1", f"output_dir={tmp_path / 'timed'}")
    assert train(timed)["steps"] == 7  # what comes first
    assert 0 < settled_of(timed)["step_seconds"] < 2
    plain = toy("trainer.max_steps=7", "model.dropout=0.1", f"output_dir={tmp_path / 'plain'}")
    train(plain)
    weights = [torch.load(run_of(each).checkpoints / "last.ckpt", weights_only=True) for each in (timed, plain)]
    assert weights[0]["state_dict"].keys() == weights[1]["state_dict"].keys()
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name


def test_a_run_that_goes_on_keeps_its_steps(toy: Toy, tmp_path: Path, step_takes: Callable[[float], None]) -> None:
    options = (*BUDGET, f"callbacks.at._target_={AT}", "masking.rate={start: 0.5, end: 0.2, schedule: linear}")
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    step_takes(3.0)
    assert train(whole)["steps"] == 10
    for step in (2, 7):
        At.set(("train", step, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(cut)
        (run_of(cut).folder / "manifest.json").unlink()  # the checkpoint knows it as well
        step_takes(0.1)  # on a faster machine
    train(cut)
    assert settled_of(cut) == settled_of(whole)
    assert_equal_runs(whole, cut)


def test_a_run_that_was_stopped_before_its_first_checkpoint_keeps_its_steps(
    toy: Toy, step_takes: Callable[[float], None]
) -> None:
    config = toy(*BUDGET, f"callbacks.at._target_={AT}")
    step_takes(3.0)

    def lose_power() -> None:
        raise RuntimeError("power")

    At.set(("train", 2, 0), lose_power)
    with pytest.raises(RuntimeError, match="power"):
        train(config)
    assert not (run_of(config).checkpoints / "last.ckpt").exists()
    step_takes(0.1)
    assert train(config)["steps"] == 10


def test_a_run_that_starts_again_is_measured_again(toy: Toy, step_takes: Callable[[float], None]) -> None:
    step_takes(3.0)
    train(toy(*BUDGET))
    step_takes(6.0)
    assert train(toy(*BUDGET))["steps"] == 10
    assert train(toy(*BUDGET, "resume=never"))["steps"] == 5


def test_a_budget_is_added_to_the_steps_of_a_parent(toy: Toy, step_takes: Callable[[float], None]) -> None:
    step_takes(3.0)
    train(toy(*BUDGET))
    parent = run_of(toy(*BUDGET)).folder
    assert train(toy(*BUDGET, "optim.lr=1e-4", f"resume={parent}"))["steps"] == 20


def test_the_identity_is_that_of_the_minutes(toy: Toy, step_takes: Callable[[float], None]) -> None:
    step_takes(3.0)
    config = toy(*BUDGET)
    folder = run_of(config).folder
    train(config)
    step_takes(1.0)
    assert run_of(config).folder == folder
    assert run_of(toy("trainer.max_steps=null", "trainer.time_budget=1")).folder != folder
    assert json.loads((folder / "manifest.json").read_text())["settled"]["trainer.max_steps"] == 10


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_steps_are_timed_stops_the_run(toy: Toy, signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlm_lightning.training.auto import Clock

    monkeypatch.setattr(Clock, "on_train_batch_start", lambda *_: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted) as stopped:
        train(toy(*BUDGET))
    assert (stopped.value.signum, stopped.value.step) == (signum, None)
    assert not run_of(toy(*BUDGET)).folder.exists()


@pytest.mark.slow
def test_all_ranks_take_the_steps_of_the_slowest(toy: Toy) -> None:
    config = toy("trainer.max_steps=null", "trainer.time_budget=0.02", "trainer.devices=2", "trainer.strategy=ddp")
    assert train(config)["steps"] == settled_of(config)["trainer.max_steps"]


def test_fifteen_validations_are_what_auto_means(toy: Toy) -> None:
    for steps, interval in ((7, 1), (30, 2), (31, 3), (1500, 100)):
        plan = settings_of(toy(f"trainer.max_steps={steps}", "trainer.val_check_interval=auto")).trainer.plan(64, 4)
        assert plan.validate_every == interval
        assert not plan.by_epochs


# the learning rate


def test_the_rate_is_that_of_the_published_rule() -> None:
    """At 10^17 and 10^20 operations."""
    for parameters, tokens, rate in ((1_000_000, 10**17 // 6_000_000, 2.34e-3), (10**9, 10**20 // (6 * 10**9), 9.86e-4)):
        assert learning_rate_for(parameters, tokens) == pytest.approx(rate, rel=1e-3)


def lr_of(config: dict[str, Any]) -> float:
    """What the optimizer has, before the schedule."""
    checkpoint = torch.load(run_of(config).checkpoints / "last.ckpt", weights_only=True)
    (rate,) = {group["initial_lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]}
    return rate


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_an_open_rate_is_settled_by_the_length_of_the_run(toy: Toy, tmp_path: Path, optim: str) -> None:
    short, long = (
        toy(f"optim={optim}", "optim.lr=auto", f"trainer.max_steps={steps}", f"output_dir={tmp_path / str(steps)}")
        for steps in (4, 8)
    )
    train(short)
    train(long)
    rows = settings_of(short).rows_per_step
    weights = torch.load(run_of(short).checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    inner = sum(t.numel() for name, t in weights.items() if t.ndim == 2 and ".layers." in name)
    length = settings_of(short).data.instance.seq_len
    assert settled_of(short) == {"optim.lr": lr_of(short)}
    assert lr_of(short) == learning_rate_for(inner, 4 * rows * length)
    assert lr_of(long) == learning_rate_for(inner, 8 * rows * length) < lr_of(short)


def test_an_export_says_what_was_settled(toy: Toy, tmp_path: Path) -> None:
    config = toy("optim.lr=auto")
    train(config)
    folder = Path(export(str(run_of(config).folder), tmp_path / "shared"))
    assert f"| optim.lr, as it was settled | {lr_of(config)} |" in (folder / "README.md").read_text()


def test_a_rate_and_a_budget_are_settled_together(toy: Toy, step_takes: Callable[[float], None], tmp_path: Path) -> None:
    step_takes(3.0)
    open_, known = (
        toy(*BUDGET, "optim.lr=auto"),
        toy("trainer.max_steps=10", f"output_dir={tmp_path / 'known'}", "optim.lr=auto"),
    )
    train(open_)
    train(known)
    assert settled_of(open_) == {"trainer.max_steps": 10, "step_seconds": 3.0, "optim.lr": lr_of(known)}
    assert lr_of(open_) == lr_of(known)

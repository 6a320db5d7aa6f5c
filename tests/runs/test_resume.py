"""Where a run begins: at its own last checkpoint, at a parent's, at the start; and what it refuses."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOY
from helpers import AT, At, assert_equal_checkpoints, assert_equal_runs, lines_without_times, run_of, settings_of, train

from mlm_lightning.config.build import prepare
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.data.datamodule import TrainBatches
from mlm_lightning.data.ngrams import VERSION
from mlm_lightning.errors import Interrupted, UserError
from mlm_lightning.runs.checkpoint import STATE, write_checkpoint
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.resume import begin
from mlm_lightning.training.callbacks.checkpoint import CheckpointError

Toy = Callable[..., dict[str, Any]]

DROPOUT = "model.dropout=0.1"


@pytest.fixture(autouse=True)
def _nothing_left_set() -> Any:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests are started by nohup
    yield
    At.place = None
    signal.signal(signal.SIGHUP, before)


def send(signum: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


# its own checkpoint


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("step", "batch"), [(4, 0), (4, 3), (8, 2)])
def test_a_signal_during_a_validation_stops_it_and_a_resumed_run_validates_first(
    toy: Toy, tmp_path: Path, step: int, batch: int, signum: signal.Signals
) -> None:
    options = (f"callbacks.at._target_={AT}", DROPOUT)
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    At.set(("validation", step, batch), send(signum))
    with pytest.raises(Interrupted) as stopped:
        train(cut)
    assert stopped.value.step == step
    assert [line["step"] for line in lines_without_times(run_of(cut)) if line.get("val/loss")] == ["4"][: step // 8]
    train(cut)
    assert_equal_runs(whole, cut)


@pytest.mark.parametrize("steps_before", [0, 4])
def test_a_signal_while_the_first_batch_is_read_stops_at_once(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_before: int
) -> None:
    """Which may take long (a stream's first block), and nothing has been done that could be saved."""
    options = (f"callbacks.at._target_={AT}", DROPOUT)
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    if steps_before:
        At.set(("train", steps_before, 0), send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(cut)
    with monkeypatch.context() as patch:
        reads = []

        def never_ends(batches: TrainBatches, index: int) -> None:
            reads.append(index)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            pytest.fail("it was not stopped")

        patch.setattr(TrainBatches, "__getitem__", never_ends)
        with pytest.raises(Interrupted) as stopped:
            train(cut)
        assert stopped.value.step == (steps_before or None)
        assert len(reads) == 1
    train(cut)
    assert_equal_runs(whole, cut)


def test_best_and_patience_go_on_and_a_run_that_early_stopping_ended_stays_ended(toy: Toy, tmp_path: Path) -> None:
    # a learning rate of nearly nothing: no validation is better than the first by min_delta
    options = ("callbacks=early_stopping", "callbacks.early_stopping.min_delta=1.0", "callbacks.early_stopping.patience=2")
    options += ("trainer.max_steps=40", "optim.lr=1e-9", f"callbacks.at._target_={AT}", "schedule=constant")
    whole, cut, lost = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut", "lost"))
    assert train(whole)["steps"] == 12
    At.set(("train", 9, 0), send(signal.SIGUSR1))  # with one of two further validations seen
    with pytest.raises(Interrupted):
        train(cut)
    assert train(cut)["steps"] == 12
    assert_equal_runs(whole, cut)
    train(lost)
    (run_of(lost).folder / "summary.json").unlink()  # killed between its last checkpoint and its summary
    assert train(lost)["steps"] == 12
    assert_equal_runs(whole, lost)


def damage(path: Path, draw: random.Random) -> str:
    """Cuts a file off, overwrites a part of it, or puts another in its place."""
    size = path.stat().st_size
    content = bytearray(path.read_bytes())
    kind, start = draw.choice(("cut", "zeros", "noise", "flip", "other", "empty")), draw.randrange(size)
    end = min(size, start + draw.choice((1, 16, 4096)))
    if kind == "cut":
        del content[start:]
    elif kind == "zeros":
        end = max(end, next((i + 1 for i in range(start, size) if content[i]), size))  # zeros over zeros are no damage
        content[start:end] = bytes(end - start)
    elif kind == "noise":
        content[start:end] = bytes(byte ^ draw.randrange(1, 256) for byte in content[start:end])
    elif kind == "flip":
        content[start] ^= 1 << draw.randrange(8)
    else:
        content[:] = b"another file" * 50 if kind == "other" else b""
    if bytes(content) == path.read_bytes():  # zeros at the very end of nothing but zeros
        content[-1] ^= 1
    path.unlink()  # best.ckpt may be the same file
    path.write_bytes(content)
    return kind


def test_two_hundred_damaged_checkpoints_are_reported_and_the_one_before_is_used(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy()
    train(config)
    run = run_of(config)
    last = run.checkpoints / "last.ckpt"
    whole = last.read_bytes()
    draw = random.Random(0)
    kinds = []
    capsys.readouterr()
    for _ in range(200):
        kinds.append(damage(last, draw))
        position = run.last_checkpoint()
        assert position is not None
        assert (position.path.name, position.step) == ("previous.ckpt", 4)
        report = capsys.readouterr().err
        assert report.startswith(f"damaged checkpoint, trying the one before it: {last}: ")
        assert len(report) < 500
        last.write_bytes(whole)
        reread = run.last_checkpoint()
        assert reread is not None
        assert reread.step == 8
    assert len(set(kinds)) == 6


def test_a_run_with_a_damaged_checkpoint_ends_as_if_nothing_had_happened(toy: Toy, tmp_path: Path) -> None:
    options = (DROPOUT, "callbacks.checkpoint.every_n_train_steps=3", f"callbacks.at._target_={AT}")
    whole, cut = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "cut"))
    train(whole)
    At.set(("train", 7, 0), send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(cut)
    damage(run_of(cut).checkpoints / "last.ckpt", random.Random(1))
    train(cut)
    assert_equal_runs(whole, cut)


def test_where_no_checkpoint_is_left_the_error_says_what_was_found(toy: Toy) -> None:
    config = toy()
    train(config)
    run = run_of(config)
    (run.folder / "summary.json").unlink()
    for name in ("last.ckpt", "previous.ckpt"):
        (run.checkpoints / name).write_bytes(b"no checkpoint")
    with pytest.raises(UserError) as error:
        train(config)
    for part in ("last.ckpt", "previous.ckpt", "resume=never"):
        assert part in str(error.value)


def test_a_checkpoint_of_another_config_is_refused_with_the_difference(toy: Toy) -> None:
    config, other = toy(), toy("optim.lr=0.5", "masking.rate=0.3")
    for each in (config, other):
        train(each)
    run = run_of(config)
    (run.folder / "summary.json").unlink()
    shutil.copy(run_of(other).checkpoints / "last.ckpt", run.checkpoints / "last.ckpt")
    with pytest.raises(UserError) as error:
        train(config)
    for part in ("last.ckpt", "optim.lr: 0.5 → ", "masking.rate: 0.3 → ", "resume=never"):
        assert part in str(error.value)
    assert "seed" not in str(error.value)


def test_a_checkpoint_of_an_unknown_format_is_refused(toy: Toy) -> None:
    config = toy()
    train(config)
    run = run_of(config)
    (run.folder / "summary.json").unlink()
    checkpoint = torch.load(run.checkpoints / "last.ckpt", weights_only=True)
    checkpoint[STATE]["record"] |= {"format": 99, "version": "9.9"}
    write_checkpoint(run.checkpoints / "last.ckpt", checkpoint)
    with pytest.raises(UserError, match=r"format 99.*format 1.*9\.9"):
        train(config)


# a parent


def test_a_run_from_a_parent_is_the_longer_run_where_nothing_else_differs(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("schedule=constant", DROPOUT)
    parent = toy(*options)
    train(parent)
    before = {path: path.read_bytes() for path in run_of(parent).folder.rglob("*") if path.is_file()}
    long = toy("trainer.max_steps=16", *options, f"output_dir={tmp_path / 'long'}")
    child = toy("trainer.max_steps=16", *options, f"resume={run_of(parent).folder}")
    expected, summary = train(long), train(child)
    assert "trainer.max_steps: 8 → 16" in capsys.readouterr().err
    runs = run_of(long), run_of(child)
    weights_and_optimizer = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    assert_equal_checkpoints(*(run.checkpoints / "last.ckpt" for run in runs), only=weights_and_optimizer)
    assert lines_without_times(runs[0])[8:] == lines_without_times(runs[1])
    assert summary["val/loss"] == expected["val/loss"]
    assert summary["tokens"] == expected["tokens"]
    manifest = json.loads((runs[1].folder / "manifest.json").read_text())
    assert manifest["parent"]["step"] == 8
    assert manifest["parent"]["changes"] == ["trainer.max_steps: 8 → 16"]
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_from_a_parent_keeps_its_own_hyperparameters_score_and_patience(toy: Toy) -> None:
    parent = toy("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=9")
    assert train(parent)["steps"] == 8
    options = ("trainer.max_steps=24", "optim.lr=1e-4", "optim.weight_decay=0.3", "schedule=linear")
    child = toy(*options, f"resume={run_of(parent).folder}", "callbacks=early_stopping", "callbacks.early_stopping.patience=9")
    assert train(child)["steps"] == 24
    lines = lines_without_times(run_of(child))
    assert int(lines[0]["step"]) == 9
    fresh = toy(*options, "name=fresh")
    train(fresh)
    assert [line["lr"] for line in lines] == [line["lr"] for line in lines_without_times(run_of(fresh))][8:]
    groups = torch.load(run_of(child).checkpoints / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert run_of(child).summary["best/step"] > 8  # type: ignore[index]


def test_stable_adamw_goes_on_from_a_parent_with_its_state_and_another_rate(toy: Toy, tmp_path: Path) -> None:
    """It keeps its number of steps among its hyperparameters."""
    optim = ("optim=stable_adamw", "schedule=constant", DROPOUT)
    parent, long = toy(*optim), toy(*optim, "trainer.max_steps=16", f"output_dir={tmp_path / 'long'}")
    train(parent)
    train(long)
    same = toy(*optim, "trainer.max_steps=16", f"resume={run_of(parent).folder}")
    train(same)
    last = [run_of(each).checkpoints / "last.ckpt" for each in (long, same)]
    assert_equal_checkpoints(*last, only=("state_dict", "optimizer_states", "global_step"))
    other = toy(*optim, "trainer.max_steps=16", f"resume={run_of(parent).folder}", "optim.lr=1e-4", "optim.betas=[0.8,0.9]")
    train(other)
    state = torch.load(run_of(other).checkpoints / "last.ckpt", weights_only=True)["optimizer_states"][0]
    kept = ("lr", "beta1", "beta2", "step")
    assert [[float(group[name]) for name in kept] for group in state["param_groups"]] == [[1e-4, 0.8, 0.9, 16.0]] * 2


def test_a_run_by_layers_goes_on_from_a_parent_with_another_decay(toy: Toy) -> None:
    parent = toy("optim.layer_decay=0.5", "optim=muon", "schedule=constant")
    train(parent)
    child = toy("trainer.max_steps=12", "optim.layer_decay=0.8", "optim=muon", "schedule=constant", "optim.lr=1e-2")
    child |= {"resume": str(run_of(parent).folder)}
    assert train(child)["steps"] == 12
    state = torch.load(run_of(child).checkpoints / "last.ckpt", weights_only=True)["optimizer_states"][0]
    rates = {round(group["lr"], 9) for group in state["param_groups"]}
    assert rates == {0.01, 0.008, 0.0064}  # head, the layer, embeddings


def test_a_parent_may_be_a_single_checkpoint_and_its_damaged_last_is_passed_over(toy: Toy) -> None:
    parent = toy()
    train(parent)
    checkpoints = run_of(parent).checkpoints
    one = toy("trainer.max_steps=12", f"resume={checkpoints / 'previous.ckpt'}", "name=one")
    train(one)
    damage(checkpoints / "last.ckpt", random.Random(0))
    other = toy("trainer.max_steps=12", f"resume={run_of(parent).folder}", "name=other")
    train(other)
    assert_equal_runs(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("trainer.max_steps=8", "optim.lr=0.2"), r"resume=.*has 8 steps, and this run ends after 8; raise trainer.max_steps"),
        (("trainer.max_steps=16", "optim._target_=torch.optim.Adam"), r"state of torch.optim.AdamW can't be continued"),
        (("trainer.max_steps=16", "optim.layer_decay=0.9"), r"optim\.layer_decay=0\.9: resume=.* has none; give null"),
        (("trainer.max_steps=16", "model.d_model=8"), r"weights don't fit this model.*\n.*\(3?\d?, ?\d*,? ?16.* → .*8"),
    ],
)
def test_a_parent_that_does_not_fit_is_refused_and_leaves_no_folder(toy: Toy, changes: tuple[str, ...], message: str) -> None:
    parent = toy()
    train(parent)
    config = toy(*changes, f"resume={run_of(parent).folder}", "name=child")
    with pytest.raises(UserError, match=message):
        train(config)
    assert not run_of(config).folder.exists()


def test_a_run_that_differs_in_its_length_alone_is_pointed_out(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    short = toy()
    train(short)
    train(toy("trainer.max_steps=12", "seed=1"))
    train(toy("trainer.max_steps=6"))
    assert "differs in" not in capsys.readouterr().err
    folder = run_of(short).folder
    for copy in (folder.with_name(f"{folder.name}.bak"), folder.with_name(f"a-{folder.name}")):
        shutil.copytree(folder, copy)
    train(toy("trainer.max_steps=16"))
    assert f"{folder} differs in trainer.max_steps: 8 → 16 alone, and has 8 steps" in (hint := capsys.readouterr().err)
    assert f"resume={folder}" in hint


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (("data.batch_size=8",), "add resume={}"),  # the same rows
        ((), "add data.batch_size=8 resume={}"),
        (("trainer.max_steps=4",), None),  # it has all these steps
    ],
)
def test_a_run_on_another_number_of_processes_is_pointed_out(
    toy: Toy, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], remedy: str | None
) -> None:
    one = toy(f"callbacks.at._target_={AT}")
    At.set(("train", 5, 0), send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(one)
    run, two = run_of(one), settings_of(toy(f"callbacks.at._target_={AT}", "trainer.devices=2", *options))
    assert Run.find(two).folder != run.folder
    assert begin(Run.find(two), two, None, prepare(two)) is None
    message = capsys.readouterr().err
    assert ("processes: not set → 2" in message) == (remedy is not None)
    if remedy:
        assert remedy.format(run.folder) in message


def test_a_complete_run_of_an_earlier_version_on_two_processes_is_not_taken_for_one_on_one(toy: Toy) -> None:
    """Its folder's hash did not tell them apart."""
    train(config := toy())
    run = run_of(config)
    run.write_json("manifest.json", {key: value for key, value in run.manifest.items() if key != "processes"})
    assert train(config) == run.summary
    file = run.folder / "config.yaml"
    file.write_text(file.read_text().replace("  devices: 1\n", "  devices: 2\n"))
    with pytest.raises(UserError, match=r"trained on 2 process\(es\), not on 1; resume=never"):
        train(config)


def test_runs_of_an_earlier_version_of_the_counts_are_complete_and_go_on(toy: Toy) -> None:
    train(config := toy())
    run = run_of(config)
    run.write_json("manifest.json", {key: value for key, value in run.manifest.items() if key != "ngrams"})
    run.write_json("summary.json", older := run.summary | {"val/bigram_loss": 1.0})
    assert train(config) == run.summary == older
    assert "ngrams" not in run.manifest
    (run.folder / "summary.json").unlink()
    assert train(config)["val/bigram_loss"] != 1.0
    assert run_of(config) == run
    assert run.manifest["ngrams"] == VERSION


def test_automatic_precision_is_kept_throughout_a_run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy("trainer.precision=auto", f"callbacks.at._target_={AT}")
    monkeypatch.setattr(TrainerSettings, "resolved_precision", lambda self: "32-true")
    At.set(("train", 5, 0), send(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.setattr(TrainerSettings, "resolved_precision", lambda self: "bf16-mixed")  # on another machine
    with pytest.raises(UserError, match=r"trainer\.precision=auto: 32-true → bf16-mixed") as error:
        train(config)
    folder = run_of(config).folder
    assert f"trainer.precision=32-true resume={folder}" in str(error.value)
    monkeypatch.undo()
    assert train(toy("trainer.precision=32-true", f"resume={folder}"))["steps"] == 8


def test_another_division_of_the_same_rows_goes_on_from_a_parent(toy: Toy, tmp_path: Path) -> None:
    parent = toy("data.batch_size=16", "schedule=constant")
    train(parent)
    whole = toy("data.batch_size=16", "schedule=constant", "trainer.max_steps=16", f"output_dir={tmp_path / 'whole'}")
    parts = ("data.batch_size=4", "trainer.accumulate_grad_batches=4", "schedule=constant", "trainer.max_steps=16")
    divided = toy(*parts, f"resume={run_of(parent).folder}")
    expected, summary = train(whole), train(divided)
    assert summary["val/loss"] == pytest.approx(expected["val/loss"], abs=1e-5)
    losses = [[float(line["train/loss"]) for line in lines_without_times(run_of(each))] for each in (whole, divided)]
    assert losses[1] == pytest.approx(losses[0][8:], abs=1e-5)


# a disk that refuses


def test_training_goes_on_without_a_checkpoint_but_does_not_end_without_one(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlm_lightning.training.callbacks.checkpoint as callbacks

    options = ("callbacks.checkpoint.every_n_train_steps=1", DROPOUT)
    whole, poor = (toy(f"output_dir={tmp_path / name}", *options) for name in ("whole", "poor"))
    train(whole)
    written = callbacks.write_checkpoint
    refusing: set[int] = {3, 4, 8}

    def write(path: Path, checkpoint: dict[str, Any]) -> None:
        if checkpoint["global_step"] in refusing:
            raise OSError(28, "No space left on device")
        written(path, checkpoint)

    monkeypatch.setattr(callbacks, "write_checkpoint", write)
    with pytest.raises(
        CheckpointError, match=r"step 8 could not be written: No space left on device\. The one of step 7 is kept"
    ):
        train(poor)
    report = capsys.readouterr().err
    assert "step 3 could not be written: No space left on device. The one of step 2 is kept; training goes on" in report
    assert "step 4" in report
    run = run_of(poor)
    position = run.last_checkpoint()
    assert position is not None
    assert position.step == 7
    assert "No space" in json.loads((run.folder / "error.json").read_text())["message"]
    refusing.clear()
    train(poor)
    assert_equal_runs(whole, poor)
    assert not (run.folder / "error.json").exists()


def test_a_real_file_limit_stops_the_run_at_its_end_and_the_same_command_completes_it(toy: Toy, tmp_path: Path) -> None:
    options = [*TOY, f"output_dir={tmp_path / 'outputs'}", "callbacks.samples=null"]  # whose image is larger than a checkpoint
    limited = f"ulimit -f 16; exec {sys.executable} -m mlm_lightning train {' '.join(options)}"
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert "the checkpoint of step 8 could not be written: File too large. There is none before it" in ended.stderr
    assert "Traceback" not in ended.stderr
    config = toy("callbacks.samples=null")
    (run,) = (tmp_path / "outputs" / "default").iterdir()
    assert list((run / "checkpoints").iterdir()) == []
    assert train(config)["steps"] == 8

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOY
from helpers import assert_equal_checkpoints, lines_without_times, run_of, start, timeless, train, wait_for

from mlm_lightning.data.ngrams import VERSION
from mlm_lightning.errors import UserError
from mlm_lightning.runs.identity import identity
from mlm_lightning.runs.load import load_run

Toy = Callable[..., dict[str, Any]]


def test_the_same_seed_gives_identical_metrics_and_weights_twice(toy: Toy, tmp_path: Path) -> None:
    configs = [toy(f"output_dir={tmp_path / folder}", "model.dropout=0.1") for folder in "ab"]
    one, other = (train(config) for config in configs)
    assert timeless(one) == timeless(other)
    runs = [run_of(config) for config in configs]
    assert lines_without_times(runs[0]) == lines_without_times(runs[1])
    assert_equal_checkpoints(*(run.checkpoints / "last.ckpt" for run in runs))


def test_another_seed_gives_other_weights_on_the_same_rows(toy: Toy) -> None:
    one, other = (train(toy(f"seed={seed}")) for seed in (0, 1))
    assert one["val/oracle_loss"] == other["val/oracle_loss"]
    assert one["val/loss"] != other["val/loss"]


def test_a_run_leaves_what_the_design_promises(toy: Toy) -> None:
    config = toy()
    summary = train(config)
    run = run_of(config)
    assert summary == run.summary
    assert summary["steps"] == 8
    assert summary["tokens"] == 8 * 16 * 4
    promised = ["val/loss", "val/perplexity", "val/accuracy", "best/val/loss", "best/step", "tokens_per_second", "seconds"]
    promised += ["val/oracle_loss", "val/excess_loss", "val/excess_loss_se", "val/oracle_accuracy", "val/kl_to_oracle"]
    assert set(promised) <= set(summary)
    there = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "manifest.json", "checkpoints", "tensorboard", "metrics.csv", "summary.json"} <= there
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["ngrams"] == VERSION
    assert torch.load(run.checkpoints / "last.ckpt", weights_only=True)["global_step"] == 8


def test_tensorboard_has_the_curves_the_samples_and_the_final_metrics(toy: Toy) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy()
    train(config)
    events = EventAccumulator(str(run_of(config).folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/grad_norm", "lr", "val/loss", "val/excess_loss"} <= set(tags["scalars"])
    assert "val/samples/text_summary" in tags["tensors"]
    assert tags["images"] == []
    assert [event.step for event in events.Scalars("val/loss")] == [4, 8]
    hyperparameters = events.SummaryMetadata("_hparams_/session_start_info")
    assert b"masking.rate" in hyperparameters.plugin_data.content
    assert not any(tag.startswith(("hp_metric", "final")) for tag in tags["scalars"])


def test_a_complete_run_returns_its_summary_and_trains_nothing(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy()
    first = train(config)
    before = (run_of(config).checkpoints / "last.ckpt").stat().st_mtime_ns
    assert train(config) == first
    assert "complete" in capsys.readouterr().err
    assert (run_of(config).checkpoints / "last.ckpt").stat().st_mtime_ns == before


def test_resume_never_moves_the_old_run_aside(toy: Toy) -> None:
    config = toy()
    train(config)
    train(config | {"resume": "never"})
    old = list((run_of(config).folder.parent / ".old").iterdir())
    assert len(old) == 1
    assert (old[0] / "summary.json").exists()
    assert run_of(config).summary is not None


def test_a_second_process_in_the_same_run_is_told_so(toy: Toy) -> None:
    config = toy()
    with run_of(config).locked(), pytest.raises(UserError, match="working in this run"):
        train(config)


def test_identity_ignores_what_does_not_decide_the_result(toy: Toy) -> None:
    base = identity(toy())
    assert (
        identity(toy("name=x", "data.num_workers=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "resume=never")) == base
    )
    for change in ("seed=1", "optim.lr=2e-3", "data.batch_size=32", "masking.rate=0.2", "data.seed=1", "eval.seed=1"):
        assert identity(toy(change)) != base
    schedules = [f"masking.rate={{start: 0.3, end: 0.15, schedule: {shape}}}" for shape in ("linear", "cosine")]
    assert len({base, *(identity(toy(each)) for each in schedules)}) == 3


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_continues_to_the_same_result(toy: Toy, tmp_path: Path, signum: signal.Signals) -> None:
    steps = ("trainer.max_steps=400", "trainer.val_check_interval=150", "model.dropout=0.1")
    whole = toy(f"output_dir={tmp_path / 'whole'}", *steps)
    expected = train(whole)

    arguments = [*TOY, f"output_dir={tmp_path / 'cut'}", *steps]
    process = start(arguments)
    metrics = wait_for(tmp_path / "cut", "metrics.csv", lines=20)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if signum == signal.SIGINT else 75), stderr
    assert "everything is saved" in stderr
    assert "Traceback" not in stderr
    assert not (metrics.parent / "summary.json").exists()

    cut = toy(f"output_dir={tmp_path / 'cut'}", *steps)
    assert timeless(train(cut)) == timeless(expected)
    assert lines_without_times(run_of(cut)) == lines_without_times(run_of(whole))
    assert_equal_checkpoints(*(run_of(each).checkpoints / "last.ckpt" for each in (cut, whole)))


def test_a_run_whose_output_nobody_reads_any_more_is_complete(tmp_path: Path) -> None:
    """`mlm train … 2>&1 | head -1`, without UTF-8."""
    command = [sys.executable, "-m", "mlm_lightning", "train", *TOY, f"output_dir={tmp_path}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"run ")
        process.stdout.close()
        assert process.wait(timeout=90) == 0
    assert len(list(tmp_path.glob("*/*/summary.json"))) == 1


def test_load_run_gives_the_model_of_the_best_step(toy: Toy) -> None:
    config = toy()
    summary = train(config)
    loaded = load_run(run_of(config).folder)
    assert loaded.step == summary["best/step"]
    assert loaded.vocab.size == 4
    assert loaded.tokenizer is None
    logits_BLV = loaded.model(torch.tensor([[0, 1, 3, 2]]))
    assert logits_BLV.shape == (1, 4, 4)


def test_a_mistake_that_only_the_data_shows_leaves_no_folder(toy: Toy, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    text = [f"data.path={empty}", f"data.tokenizer={tmp_path / 'vocab.txt'}", f"data.cache_dir={tmp_path / 'cache'}"]
    from mlm_lightning.config.compose import composer, to_plain

    with composer() as hydra:
        overrides = hydra.plain(["data=text", *text, f"output_dir={tmp_path / 'outputs'}"])
        config = to_plain(hydra.compose(overrides))
    with pytest.raises(UserError, match="empty"):
        train(config)
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_only_lost_its_summary_gets_the_same_one_again(toy: Toy) -> None:
    config = toy()
    first = train(config)
    (run_of(config).folder / "summary.json").unlink()
    assert timeless(train(config)) == timeless(first)


def test_a_run_without_validation_is_saved_at_its_end(toy: Toy) -> None:
    config = toy("trainer.limit_val_batches=0")
    summary = train(config)
    assert summary["steps"] == 8
    assert "val/loss" not in summary
    assert load_run(run_of(config).folder).step == 8

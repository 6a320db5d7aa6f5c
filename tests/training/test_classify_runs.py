"""Runs that label rows, and runs that begin with the weights of others: learning, freezing, resuming, what is kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal_results, problems, run_of, train
from torch import Tensor, nn

from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.errors import ConfigError
from mlm_lightning.runs.identity import identity
from mlm_lightning.runs.load import load_run

Toy = Callable[..., dict[str, Any]]
ROOT = ("task=classify", "task.label=root")


def test_it_learns_the_root_beside_its_optimum(toy: Toy) -> None:
    config = toy(*ROOT, "data.filter_level=1", "trainer.max_steps=300", "trainer.val_check_interval=300", "optim.lr=1e-2")
    summary = train(config)
    assert set(summary) >= {"val/loss", "val/accuracy", "val/macro_f1", "val/oracle_loss", "val/excess_loss", "best/val/loss"}
    assert not any("perplexity" in name for name in summary)
    assert summary["val/oracle_loss"] > 0.1
    assert -3 * summary["val/excess_loss_se"] < summary["val/excess_loss"] < 0.15
    assert summary["val/accuracy"] > 0.6


def test_evaluation_opens_it_again_also_at_another_filter_level(toy: Toy) -> None:
    config = toy(*ROOT, "eval.data={k1: {filter_level: 1}}", "eval.oracles={k2: {filter_level: 2}}")
    summary, folder = train(config), str(run_of(config).folder)
    found = evaluate(folder)
    for name in ("val/loss", "val/macro_f1", "val/loss_k1", "val/oracle_loss_k1", "val/kl_to_oracle_under_k2"):
        assert found[name] == pytest.approx(summary[name], abs=1e-6)
    elsewhere = evaluate(folder, ["data.filter_level=1"])
    assert elsewhere["val/loss"] == pytest.approx(summary["val/loss_k1"], abs=1e-6)
    assert summary["val/oracle_loss"] == pytest.approx(0, abs=1e-9)  # whole rows say it all
    assert summary["val/oracle_loss_k1"] > 0.1


@pytest.mark.parametrize("agg", ["mean", "flatten"])
def test_either_way_to_one_vector_a_row(toy: Toy, agg: str) -> None:
    config = toy(*ROOT, f"model.embedding_agg={agg}")
    train(config)
    loaded = load_run(run_of(config).folder)
    assert loaded.model(torch.zeros(5, 4, dtype=torch.long)).shape == (5, 3)
    assert json.loads((run_of(config).folder / "model.json").read_text())["embedding_agg"] == agg


def state_of(config: dict[str, Any], name: str = "last.ckpt") -> dict[str, Tensor]:
    return torch.load(run_of(config).checkpoints / name, weights_only=True)["state_dict"]


def pretrained(toy: Toy, tmp_path: Path, *overrides: str) -> Any:
    config = toy("name=parent", *overrides)
    train(config)
    return run_of(config).folder


@pytest.mark.parametrize("freeze", ["encoder", "null"])
def test_an_encoder_is_taken_and_perhaps_frozen(toy: Toy, tmp_path: Path, freeze: str) -> None:
    parent = pretrained(toy, tmp_path)
    config = toy(*ROOT, f"init.from_run='{parent}'", f"init.freeze={freeze}")
    train(config)
    there = torch.load(parent / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    encoder = [name for name in there if not name.startswith("model.decoder.")]
    here = state_of(config)
    assert encoder
    assert all(torch.equal(here[name], there[name]) for name in encoder) == (freeze == "encoder")
    head = "model.decoder.head.weight"
    assert not torch.equal(here[head], state_of(config, "previous.ckpt")[head])
    assert here[head].shape == (3, 16)
    manifest = run_of(config).manifest
    assert manifest["init"]["new"] == ["decoder.head.weight", "decoder.head.bias"]
    assert "ngrams" not in manifest  # nothing is counted
    assert Path(manifest["init"]["checkpoint"]) == parent / "checkpoints" / "best.ckpt"


def test_training_begins_where_the_other_run_ended(toy: Toy, tmp_path: Path) -> None:
    parent = pretrained(toy, tmp_path, "trainer.max_steps=40", "trainer.val_check_interval=40", "optim.lr=1e-2")
    before = json.loads((parent / "summary.json").read_text())["val/loss"]
    config = toy(f"init.from_run='{parent}'", "optim.lr=1e-9", "trainer.max_steps=1", "trainer.val_check_interval=1")
    assert train(config)["val/loss"] == pytest.approx(before, abs=1e-5)  # same task: the head is kept
    named = toy(f"init.from_run='{parent / 'checkpoints' / 'last.ckpt'}'", "optim.lr=1e-9", "trainer.max_steps=1")
    assert train(named)["steps"] == 1


def test_the_identity_holds_the_content_and_the_parent_may_go(toy: Toy, tmp_path: Path) -> None:
    parent = pretrained(toy, tmp_path)
    config = toy(*ROOT, f"init.from_run='{parent}'")
    found, run = train(config), run_of(config)
    copied = tmp_path / "copy"
    shutil.copytree(parent, copied)
    same = toy(*ROOT, f"init.from_run='{copied}'")
    assert run_of(same).folder == run.folder
    assert run_of(toy(*ROOT)).folder != run.folder
    shutil.rmtree(parent)
    assert train(config) == found
    assert evaluate(str(run.folder))["val/loss"] == pytest.approx(found["val/loss"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"init\.from_run=.*no such folder"):
        train(toy(*ROOT, f"init.from_run='{parent}'", "seed=9", "name=other"))


def test_what_does_not_fit_is_refused(toy: Toy, tmp_path: Path) -> None:
    parent = pretrained(toy, tmp_path)
    with pytest.raises(ConfigError, match=r"init\.from_run=.*its encoder is not that.*\(4, 16\) → \(4, 8\)"):
        train(toy(*ROOT, f"init.from_run='{parent}'", "model.d_model=8"))
    with pytest.raises(ConfigError, match=r"init\.from_run=.*encoder\.layers\.1.*not there →"):
        train(toy(*ROOT, f"init.from_run='{parent}'", "model.num_layers=2"))


def test_the_default_is_the_run_that_it_was(toy: Toy) -> None:
    config = toy()
    del config["task"], config["init"]  # of an earlier version
    assert identity(config) == identity(toy()) != identity(toy(*ROOT))


class TokensAlone(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)


def test_what_a_classifier_cannot_do_is_said_at_once(toy: Toy) -> None:
    config = toy(*ROOT, "eval.mask_rates=[0.3]", "eval.masking=span")
    assert [each.partition(":")[0] for each in problems(config)] == ["eval.mask_rates=[0.3]", "eval.masking=span"]
    config = toy(*ROOT)
    config["model"] = {"_target_": f"{__name__}.TokensAlone"}
    (problem,) = problems(config)
    assert "num_outputs" in problem
    assert "task.label" in problems(toy("task=classify"))[0]
    assert "softmax" in problems(toy(*ROOT, "model.decoder_output_activation=softmax"))[0]


KILLED = (
    *("trainer.max_steps=400", "trainer.val_check_interval=45", "callbacks.checkpoint.every_n_train_steps=20"),
    "model.dropout=0.1",
)


@pytest.mark.slow
def test_killed_three_times_from_a_parent_with_a_frozen_encoder(toy: Toy, tmp_path: Path) -> None:
    from commands.test_kill import killed_until_complete
    from conftest import TOY

    parent = pretrained(toy, tmp_path)
    options = (*KILLED, *ROOT, f"init.from_run='{parent}'", "init.freeze=encoder")
    whole = toy(f"output_dir={tmp_path / 'whole'}", *options)
    train(whole)
    killed = toy(f"output_dir={tmp_path / 'killed'}", *options)
    arguments = [*TOY, f"output_dir={tmp_path / 'killed'}", *options]
    assert killed_until_complete(arguments, tmp_path / "killed", kills=3, seed=1) == 3
    assert_equal_results(run_of(whole), run_of(killed))


def test_a_sweep_with_and_without_another_runs_weights(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import TOY

    from mlm_lightning.__main__ import main

    parent = pretrained(toy, tmp_path)
    arguments = [*TOY, *ROOT, f"output_dir={tmp_path / 'sweep'}", f"init.from_run=null,{parent}", "seed=0,1"]
    assert main(["train", "-m", *arguments]) == 0
    assert "init.from_run" in (shown := capsys.readouterr().out)
    assert parent.name in shown
    assert len(list((tmp_path / "sweep" / "default").glob("*/summary.json"))) == 4
    assert main(["report", str(tmp_path / "sweep" / "default")]) == 0
    shown = capsys.readouterr().out
    assert "Which init.from_run gives the lowest validation loss?" in shown
    assert "gives another config" not in shown


def test_other_labels_are_other_questions(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import TOY

    from mlm_lightning.__main__ import main

    common = [*TOY, "task=classify", f"output_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *common, "task.label=root,level_1"]) == 0
    assert "task.label changes the task, and no condition is common" in capsys.readouterr().out
    assert main(["train", "-m", *common, "name=levels", "task.label=root", "data.filter_level=0,1"]) == 0
    shown = capsys.readouterr().out
    assert "filter_level_0" in shown
    assert "filter_level_1" in shown


class OfOthers(nn.Module):
    """A user's model, which says how many outputs it has and what its head is."""

    def __init__(self, vocab_size: int, seq_len: int, num_outputs: int) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(vocab_size, 8), nn.Linear(8 * seq_len, num_outputs)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        return self.out(self.table(input_ids_BL).flatten(1))

    def is_head(self, name: str) -> bool:
        return name.startswith("out.")


def test_a_model_of_ones_own(toy: Toy) -> None:
    config = toy(*ROOT, "init.freeze=encoder")
    config["model"] = {"_target_": f"{__name__}.OfOthers"}
    train(config)
    states = [state_of(config, name) for name in ("previous.ckpt", "last.ckpt")]
    assert torch.equal(*(state["model.table.weight"] for state in states))
    assert not torch.equal(*(state["model.out.weight"] for state in states))
    assert load_run(run_of(config).folder, trust=True).classes == ("0", "1", "2")


@pytest.mark.parametrize("override", ["task.label=level_1", "init.freeze=encoder"])
def test_what_was_trained_stays_what_it_is(toy: Toy, override: str) -> None:
    train(config := toy(*ROOT))
    with pytest.raises(ConfigError, match="has no effect"):
        evaluate(str(run_of(config).folder), [override])

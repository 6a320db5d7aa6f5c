"""A run's metrics can be had again: the same numbers from its checkpoint, on the frozen masks, however the rows are batched."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from helpers import assert_equal_checkpoints, run_of, train
from omegaconf import OmegaConf

from mlm_lightning.__main__ import main
from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.config.compose import read_config
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.data.source import SPLITS
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.masking import Bernoulli
from mlm_lightning.metrics import MetricSums
from mlm_lightning.randomness import key
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import identity
from mlm_lightning.runs.load import load_run
from mlm_lightning.training.loggers import read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained too fast, so that the best step is not the last."""
    folder = tmp_path_factory.mktemp("outputs")
    config = composed(f"output_dir={folder}", "schedule=constant", "optim.lr=0.3", "eval.mask_rates=null")
    summary = train(config)
    assert summary["best/step"] < summary["steps"]
    return run_of(config)


@pytest.fixture(scope="module")
def best(run: Run) -> dict[str, Any]:
    return evaluate(str(run.folder))


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if "/" in name}


def test_the_last_checkpoint_has_the_metrics_of_the_summary(run: Run) -> None:
    last = evaluate(str(run.checkpoints / "last.ckpt"))
    assert run.summary is not None
    expected = {name: value for name, value in run.summary.items() if name.startswith("val/")}
    assert set(expected) == set(metrics_of(last))
    assert metrics_of(last) == pytest.approx(expected, abs=1e-6)
    assert last["step"] == 8


def test_a_folder_stands_for_its_best_checkpoint(run: Run, best: dict[str, Any]) -> None:
    assert run.summary is not None
    assert best["step"] == run.summary["best/step"]
    assert best["val/loss"] == pytest.approx(run.summary["best/val/loss"], abs=1e-6)
    assert best["checkpoint"] == str(run.checkpoints / "best.ckpt")


def test_evaluating_leaves_the_run_as_it_was(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    evaluate(str(run.folder))
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_the_test_split_has_other_rows(run: Run, best: dict[str, Any]) -> None:
    test = evaluate(str(run.folder), split="test")
    assert set(metrics_of(test)) == {name.replace("val/", "test/") for name in metrics_of(best)}
    assert test["test/loss"] != best["val/loss"]
    assert test["test/oracle_loss"] != best["val/oracle_loss"]


def test_further_mask_rates_come_beside_the_training_condition(run: Run, best: dict[str, Any]) -> None:
    rates = evaluate(str(run.folder), ["eval.mask_rates=[0.15,0.3]"])
    plain = metrics_of(best)
    assert set(metrics_of(rates)) == {name + suffix for name in plain for suffix in ("", "_rate_0.15", "_rate_0.30")}
    for name, value in plain.items():
        assert rates[name] == rates[f"{name}_rate_0.15"] == value
    assert rates["val/loss_rate_0.30"] != rates["val/loss"]
    # fewer neighbours are seen
    assert rates["val/oracle_loss_rate_0.30"] > rates["val/oracle_loss"]


@pytest.mark.parametrize("batch_size", [1, 5, 64, 1000])
def test_the_batch_size_does_not_matter(run: Run, batch_size: int) -> None:
    # float64: matrix products of other shapes add in another order, which float32 shows at 1e-7
    one, other = (
        metrics_of(evaluate(str(run.folder), ["trainer.precision=64-true", *overrides]))
        for overrides in ([], [f"data.batch_size={batch_size}"])
    )
    assert other == pytest.approx(one, rel=1e-9)


def test_the_masks_have_a_seed_of_their_own_and_the_runs_is_refused(run: Run, best: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="seed=7: has no effect"):
        evaluate(str(run.folder), ["seed=7"])
    assert evaluate(str(run.folder), ["eval.seed=7"])["val/loss"] != best["val/loss"]


def test_other_data_has_another_oracle(run: Run, best: dict[str, Any]) -> None:
    # at the level of the leaves they are independent given the root: less can be known
    other = evaluate(str(run.folder), ["data.filter_level=2"])
    assert other["val/oracle_loss"] > best["val/oracle_loss"] + 0.05
    assert other["step"] == best["step"]


# further data


def ending_with(ending: str, metrics: dict[str, Any]) -> dict[str, float]:
    return {name.removesuffix(ending): value for name, value in metrics.items() if name.endswith(ending)}


@pytest.fixture(scope="module")
def further(run: Run) -> dict[str, Any]:
    return evaluate(str(run.folder), ["eval.data={k0: {filter_level: 0}, k2: {filter_level: 2, val_size: 40}}"])


def test_further_data_gives_the_metrics_of_that_data_alone(run: Run, best: dict[str, Any], further: dict[str, Any]) -> None:
    alone = evaluate(str(run.folder), ["data.filter_level=2", "data.val_size=40"])
    assert ending_with("_k2", further) == metrics_of(alone)
    plain = {name: value for name, value in metrics_of(further).items() if not name.endswith(("_k0", "_k2"))}
    assert plain == metrics_of(best)


def test_the_runs_own_data_is_not_evaluated_twice(
    run: Run, best: dict[str, Any], further: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ending_with("_k0", further) == metrics_of(best)
    rows: list[int] = []
    update = MetricSums.update

    def counted(self: MetricSums, logits_BKV: Any, batch: Any, *further: Any) -> None:
        rows.append(len(batch.row_ids_B))
        update(self, logits_BKV, batch, *further)

    monkeypatch.setattr(MetricSums, "update", counted)
    evaluate(str(run.folder), ["eval.data={k0: {filter_level: 0}, k2: {filter_level: 2, val_size: 40}}"])
    assert sum(rows) == 64 + 40


def test_further_data_counted_by_hand(run: Run, further: dict[str, Any]) -> None:
    """Rows, masks, model and oracle put together without the loaders, the module or Lightning."""
    source = TreeSource(
        depth=2, num_symbols=3, filter_level=2, grammar_seed=read_config(run.folder).get("data.grammar_seed"), val_size=40
    )
    tokens_BL = source.rows("val")[torch.arange(40)]
    batch = Bernoulli(rate=0.15).frozen()(tokens_BL, torch.arange(40), vocab=source.vocab, key=key(0, SPLITS.index("val")))
    predicted_BL = batch.labels_BL != IGNORE_INDEX
    with torch.no_grad():
        probs_BLV = load_run(run.folder).model(batch.input_ids_BL).softmax(-1)
    posterior_BLV = source.oracle().posterior(tokens_BL, ~predicted_BL)
    for name, each_BLV in (("val/loss_k2", probs_BLV), ("val/oracle_loss_k2", posterior_BLV)):
        truth_BL = each_BLV.gather(-1, tokens_BL[..., None]).squeeze(-1)
        assert further[name] == pytest.approx(-truth_BL[predicted_BL].log().mean().item(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_does_not_matter_for_further_data_either(run: Run, batch_size: int) -> None:
    overrides = ["trainer.precision=64-true", "eval.data={k2: {filter_level: 2, test_size: 41}}"]
    one, other = (
        metrics_of(evaluate(str(run.folder), [*overrides, f"data.batch_size={size}"], split="test"))
        for size in (64, batch_size)
    )
    assert "test/excess_loss_se_k2" in one
    assert other == pytest.approx(one, rel=1e-9)


def test_further_data_while_training(tmp_path: Path) -> None:
    """Every validation has it, monitors may watch it, and `mlm evaluate` adds to it."""
    data = "eval.data={k2: {filter_level: 2}}"
    monitors = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/loss_k2")
    config = composed(f"output_dir={tmp_path}", data, *monitors, "callbacks.checkpoint.monitor=val/excess_loss_k2")
    summary = train(config)
    run = run_of(config)
    lines = [line for line in read_metrics(run.folder / "metrics.csv") if line["val/loss"]]
    assert len(lines) == 2
    assert float(lines[-1]["val/loss_k2"]) == summary["val/loss_k2"]
    assert summary["best/val/loss"] == min(float(line["val/excess_loss_k2"]) for line in lines)
    last = evaluate(str(run.checkpoints / "last.ckpt"), ["eval.data={k1: {filter_level: 1}}"])
    assert ending_with("_k2", last) == pytest.approx(ending_with("_k2", summary), abs=1e-6)
    assert ending_with("_k1", last).keys() == ending_with("_k2", last).keys()


def test_further_data_leaves_the_training_as_it_was(tmp_path: Path, run: Run) -> None:
    overrides = ("schedule=constant", "optim.lr=0.3", "eval.data={k2: {filter_level: 2}}")
    config = composed(f"output_dir={tmp_path}", *overrides)
    summary = train(config)
    assert run.summary is not None
    same = {name: value for name, value in run.summary.items() if name.startswith(("val/", "best/", "step"))}
    assert {name: summary[name] for name in same} == same
    assert identity(config) != identity(read_config(run.folder).config)
    assert_equal_checkpoints(
        run.checkpoints / "last.ckpt", run_of(config).checkpoints / "last.ckpt", only=("state_dict", "optimizer_states")
    )


def test_another_vocabulary_is_a_mistake(run: Run) -> None:
    with pytest.raises(UserError, match=r"4 tokens → 5 tokens"):
        evaluate(str(run.folder), ["data.num_symbols=4"])


def test_rows_longer_than_the_model_are_a_mistake(run: Run) -> None:
    with pytest.raises(UserError, match=r"rows have 8 tokens.*at most 4"):
        evaluate(str(run.folder), ["data.depth=3"])


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("data.dpeth=3", ["data.dpeth", "'depth'"]),
        ("data=unifrom", ["data=unifrom", "'uniform'"]),
        ("dta.depth=3", ["dta.depth"]),
        ("seed.deep=3", ["seed"]),
        ("data=null", ["data"]),
        ("data.depth", ["KEY=VALUE"]),
        ("masking.rate=0.1,0.2", ["masking.rate=0.1,0.2", "several values"]),
        ("eval.mask_rates=[2]", ["eval.mask_rates: 2"]),
        ("eval.data={k0: {filtr_level: 0}}", ["eval.data.k0.filtr_level", "'filter_level'"]),
        ("eval.data={k0: {num_symbols: 4}}", ["eval.data.k0", "5 tokens", "4 tokens"]),
        ("eval.data={k0: {_target_: os.system}}", ["eval.data.k0._target_=os.system", "--trust"]),
    ],
)
def test_a_mistaken_override_is_named(run: Run, capsys: pytest.CaptureFixture[str], override: str, names: list[str]) -> None:
    assert main(["evaluate", str(run.folder), override]) == 2
    message = capsys.readouterr().err
    assert [name for name in names if name not in message] == [], message
    assert "Traceback" not in message


def test_the_json_is_all_that_is_printed(run: Run, best: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == best


def test_the_table_names_every_metric(run: Run, best: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run.folder), "eval.mask_rates=[0.3]"]) == 0
    printed = capsys.readouterr().out
    assert f"{best['checkpoint']}\n" in printed  # in one piece, also where it is longer than a line
    for name, value in metrics_of(best).items():
        assert f"{value:.5f}" in next(line for line in printed.splitlines() if line.split()[:1] == [name])
    assert math.isfinite(best["val/loss"])


# a run's folder from somewhere else


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the module `planted` writes when it is imported."""
    marker = tmp_path / "imported"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "planted.py").write_text(
        "from pathlib import Path\nfrom mlm_lightning.data.languages.tree import TreeSource as Planted\n"
        f"Path({str(marker)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(__import__("sys").modules, "planted", raising=False)
    return marker


def planted(run: Run, folder: Path, **targets: str) -> Path:
    """A copy of the run whose config names other classes."""
    shutil.copytree(run.folder, folder)
    config = OmegaConf.load(folder / "config.yaml")
    for name, target in targets.items():
        OmegaConf.update(config, f"{name.replace('__', '.')}._target_", target, force_add=True)
    OmegaConf.save(config, folder / "config.yaml")
    return folder


@pytest.mark.parametrize("group", ["data", "masking", "model"])
def test_a_foreign_class_is_refused_and_nothing_of_it_imported(run: Run, tmp_path: Path, marker: Path, group: str) -> None:
    foreign = planted(run, tmp_path / "foreign", **{group: "planted.Planted"})
    with pytest.raises(UserError, match=rf"{group}._target_=planted.Planted.*--trust"):
        evaluate(str(foreign))
    assert not marker.exists()


def test_an_override_is_no_way_around_it(run: Run, marker: Path) -> None:
    with pytest.raises(UserError, match="--trust"):
        evaluate(str(run.folder), ["data._target_=planted.Planted"])
    with pytest.raises(UserError, match="--trust"):
        evaluate(str(run.folder), ["data._target_=os.system"])
    assert not marker.exists()


def test_what_evaluation_does_not_build_it_does_not_import(
    run: Run, tmp_path: Path, marker: Path, best: dict[str, Any]
) -> None:
    names = ("optim", "schedule", "callbacks__samples", "logger__csv")
    foreign = planted(run, tmp_path / "foreign", **dict.fromkeys(names, "planted.Planted"))
    assert metrics_of(evaluate(str(foreign))) == metrics_of(best)
    assert not marker.exists()


def test_a_foreign_class_in_model_json_is_refused_too(run: Run, tmp_path: Path, marker: Path) -> None:
    foreign = planted(run, tmp_path / "foreign")
    description = json.loads((foreign / "model.json").read_text())
    (foreign / "model.json").write_text(json.dumps(description | {"_target_": "planted.Planted"}))
    for command in (
        ["evaluate", str(foreign)],
        ["predict", str(foreign), "0 _ 1 2"],
        ["export", str(foreign), str(tmp_path / "x")],
    ):
        assert main(command) == 2
    assert not marker.exists()


def test_trust_imports_it(run: Run, tmp_path: Path, marker: Path, best: dict[str, Any]) -> None:
    foreign = planted(run, tmp_path / "foreign", data="planted.Planted")
    assert metrics_of(evaluate(str(foreign), trust=True)) == metrics_of(best)
    assert marker.exists()

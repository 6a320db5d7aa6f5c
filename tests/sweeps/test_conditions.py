"""A sweep that changes the task measures every finished run under all of its conditions, once, with the final weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY
from helpers import failing, steps_of

from mlm_lightning.__main__ import main
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.runs import evaluations
from mlm_lightning.runs.folder import Run

RATES = "masking.rate=0.2,0.5"


def sweep(folder: Path, *overrides: str) -> int:
    return main(["train", "-m", *TOY, f"output_dir={folder}", *overrides])


def runs(folder: Path) -> list[Run]:
    """Those of a sweep, in the order of its jobs."""
    jobs = json.loads((folder / "default" / "sweep.json").read_text())["jobs"]
    return [Run(folder / "default" / job["folder"]) for job in jobs]


def by_name(run: Run) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry["metrics"] for entry in evaluations.read(run).values()}


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rates")
    assert sweep(folder, RATES, "seed=0,1", *failing(folder / "marker", [])) == 0
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are evaluated, in their order."""
    from mlm_lightning.training import evaluate as module

    found: list[str] = []
    original = module.evaluate

    def counted(path: Path, *arguments: Any, **more: Any) -> Any:
        found.append(path.parent.parent.name)
        return original(path, *arguments, **more)

    monkeypatch.setattr(module, "evaluate", counted)
    return found


def test_every_run_is_measured_at_every_rate(rates: Path) -> None:
    for run, own in zip(runs(rates), ("rate_0.20", "rate_0.20", "rate_0.50", "rate_0.50"), strict=True):
        found = by_name(run)
        assert set(found) == {"rate_0.20", "rate_0.50"}
        assert run.summary is not None
        assert found[own] == {name: value for name, value in run.summary.items() if name.startswith("val/")}
        # bit for bit: the same weights, rows, masks, batches and number of threads
        last = str(run.checkpoints / "last.ckpt")
        for name, rate in (("rate_0.20", 0.2), ("rate_0.50", 0.5)):
            again = evaluate(last, [f"masking.rate={rate}"])
            assert found[name] == {metric: again[metric] for metric in found[name]}


def test_the_excess_of_the_same_weights_depends_on_the_rate(rates: Path) -> None:
    """Which is why it ranks nothing across tasks."""
    for run in runs(rates):
        found = by_name(run)
        assert abs(found["rate_0.20"]["val/excess_loss"] - found["rate_0.50"]["val/excess_loss"]) > 0.005


def test_a_gained_value_trains_the_new_runs_and_measures_the_old(rates: Path, measured: list[str]) -> None:
    before = steps_of(rates / "marker").total()
    old = {run.folder.name: evaluations.read(run) for run in runs(rates)}
    identities = {run.folder.name: run.summary for run in runs(rates)}
    assert sweep(rates, RATES, "seed=0,1", *failing(rates / "marker", [])) == 0
    assert measured == []
    assert sweep(rates, "masking.rate=0.2,0.3,0.5", "seed=0,1", *failing(rates / "marker", [])) == 0
    assert steps_of(rates / "marker").total() - before == 2 * 8
    # four old runs at the new rate, two new ones at the old rates
    new = [run.folder.name for run in runs(rates) if run.folder.name not in old]
    assert sorted(measured) == sorted([*old, *new, *new])
    for run in runs(rates):
        entries = evaluations.read(run)
        assert set(by_name(run)) == {"rate_0.20", "rate_0.30", "rate_0.50"}
        assert entries | old.get(run.folder.name, {}) == entries
        assert run.summary == identities.get(run.folder.name, run.summary)


def test_a_key_of_training_alone_measures_nothing(tmp_path: Path, measured: list[str]) -> None:
    assert sweep(tmp_path, "data.train_size=64,128", "masking.mask_share=1,0.8") == 0
    assert measured == []
    assert not list(tmp_path.rglob(evaluations.FILE))


def test_a_search_for_the_easiest_task_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("sweep.trials=1", "trainer.max_steps=1")
    assert sweep(tmp_path / "rates", RATES, *search) == 0
    assert "looks for the easiest one" in capsys.readouterr().err
    assert sweep(tmp_path / "lrs", "optim.lr=1e-3,1e-2", *search) == 0
    assert "the easiest one" not in capsys.readouterr().err


def test_a_vocabulary_that_a_model_does_not_know_is_no_common_condition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "data.num_symbols=3,4") == 0
    said = capsys.readouterr().err
    assert said.count("no condition is common to all runs") == 1
    assert [list(by_name(run)) for run in runs(tmp_path)] == [["num_symbols_3"], ["num_symbols_4"]]


def test_rows_that_one_model_cannot_read_are_asked_of_no_other(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "data=markov", "~data.depth", "data.seq_len=4,6,8") == 0
    said = capsys.readouterr().err
    for length in (6, 8):
        assert said.count(f"seq_len_{length} is no common condition: data.seq_len=4 can't be evaluated there") == 1
    assert [sorted(by_name(run)) for run in runs(tmp_path)] == [
        ["seq_len_4"],
        ["seq_len_4", "seq_len_6"],
        ["seq_len_4", "seq_len_8"],
    ]
    assert [name.split("-")[0] for name in measured] == ["seq_len=4", "seq_len=4", "seq_len=6", "seq_len=8"]


def test_an_interruption_loses_nothing_that_was_measured(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlm_lightning.training import evaluate as module

    counted = module.evaluate

    def interrupted(*arguments: Any, **more: Any) -> Any:
        if len(measured) == 1:
            raise KeyboardInterrupt
        return counted(*arguments, **more)

    overrides = ("data.filter_level=0,1,2", "eval.mask_rates=[0.15,0.3]")
    monkeypatch.setattr(module, "evaluate", interrupted)
    assert sweep(tmp_path, *overrides) == 130
    assert "evaluating 3 runs under 3 conditions" in capsys.readouterr().err
    assert len(measured) == 1
    monkeypatch.setattr(module, "evaluate", counted)
    assert sweep(tmp_path, *overrides) == 0
    assert len(measured) == 6
    assert all(set(by_name(run)) == {f"filter_level_{level}" for level in range(3)} for run in runs(tmp_path))


def test_what_eval_data_measured_already_keeps_its_name_and_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    assert sweep(tmp_path, "data.filter_level=0,2", "eval.data={k0: {filter_level: 0}, k2: {filter_level: 2}}") == 0
    assert measured == []
    for run in runs(tmp_path):
        assert run.summary is not None
        assert {name: found["val/loss"] for name, found in by_name(run).items()} == {
            name: run.summary[f"val/loss_{name}"] for name in ("k0", "k2")
        }


def test_two_keys_make_every_pair_and_each_seed_of_the_data_its_own(tmp_path: Path) -> None:
    assert sweep(tmp_path, RATES, "data.filter_level=0,2", "data.seed=0,1", "trainer.max_steps=1") == 0
    names = {f"filter_level_{level},rate_{rate}" for level in (0, 2) for rate in ("0.20", "0.50")}
    for run in runs(tmp_path):
        assert set(by_name(run)) == names
        seeds = {entry["condition"]["data"]["seed"] for entry in evaluations.read(run).values()}
        assert len(seeds) == 1
        assert f"data.seed={seeds.pop()}" in run.folder.name


@pytest.mark.parametrize("change", [{"step": 7}, {"checkpoint": "0" * 64}, {"metrics": None}])
def test_entries_of_other_weights_are_stale(rates: Path, change: dict[str, Any]) -> None:
    run = runs(rates)[0]
    path = run.folder / evaluations.FILE
    before = path.read_text()
    content = json.loads(before)
    first, *others = content
    content[first] |= change
    path.write_text(json.dumps(content))
    assert list(evaluations.read(run)) == others
    path.write_text("[")
    assert evaluations.read(run) == {}
    path.write_text(before)


def test_each_run_stands_beside_the_counts_of_its_own_text(tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n")
    for name, text in {"one": "a b c a\n", "other": "c c b c\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text * 100)
    paths = [str(tmp_path / f"{name}.txt") for name in ("one", "other")]
    text = ["data=text", "data.val_size=0.2", "data.test_size=null", "~data.num_symbols", "~data.depth", "data.chunk_size=12"]
    text += [f"data.tokenizer={vocab}", "data.vocab_size=null", f"data.cache_dir={tmp_path / 'cache'}"]
    assert sweep(tmp_path, *text, f"data.path={','.join(paths)}") == 0
    one, other = runs(tmp_path)
    found, theirs = by_name(one), by_name(other)
    assert set(found) == set(theirs) == {"path_one.txt", "path_other.txt"}
    for run, measured in ((one, found), (other, theirs)):
        for path in paths:
            again = evaluate(str(run.checkpoints / "last.ckpt"), [f"data.path={path}"])
            metrics = measured[f"path_{Path(path).name}"]
            assert metrics["val/bigram_loss"] > 0
            assert metrics == {name: again[name] for name in metrics}
    # the same rows and masks, beside the counts of other texts
    assert found["path_other.txt"]["val/unigram_loss"] > theirs["path_other.txt"]["val/unigram_loss"] + 0.3

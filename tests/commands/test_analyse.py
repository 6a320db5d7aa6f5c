"""`mlm analyse` writes figures, a CSV and a finding for each analysis beside a run that stays as it is; reports show them."""

import base64
import csv
import json
import re
from pathlib import Path

import pytest
from conftest import TOY, composed
from helpers import run_of, train

from mlm_lightning.__main__ import main
from mlm_lightning.analysis import probe
from mlm_lightning.commands.analyse import ANALYSES, analyse
from mlm_lightning.commands.report import report
from mlm_lightning.runs.folder import Run


@pytest.fixture(autouse=True)
def few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_EXAMPLES", 500)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """By the filter level, that of 2 before that of 0 in their folder's order."""
    folder, found = tmp_path_factory.mktemp("outputs"), {}
    for k in (2, 0):
        config = composed(f"output_dir={folder}", f"data.filter_level={k}")
        train(config)
        found[k] = run_of(config)
    return found


def files_of(run: Run) -> dict[str, bytes]:
    paths = [path for path in run.folder.rglob("*") if path.is_file() and "analysis" not in path.parts]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}


def test_every_analysis_writes_its_files_and_nothing_else_changes(runs: dict[int, Run], capsys) -> None:  # type: ignore[no-untyped-def]
    run, before = runs[0], files_of(runs[0])
    assert main(["analyse", str(run.folder), "--rows", "40", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)[str(run.folder)]
    assert list(said) == list(ANALYSES)
    assert files_of(run) == before
    written = {path.name for path in (run.folder / "analysis").iterdir()}
    pictures = {"attention_maps.png", "attention_by_distance.png", "probe.png", "posterior.png"}
    assert written == pictures | {f"{name}.{kind}" for name in ANALYSES for kind in ("csv", "json")}
    assert {Path(each).name for finding in said.values() for each in finding["files"]} == written
    for name, finding in said.items():
        content = json.loads((run.folder / "analysis" / f"{name}.json").read_text())
        assert content["finding"] == finding["finding"]
        assert content["step"] == 8
    with (run.folder / "analysis" / "attention.csv").open() as file:
        lines = list(csv.DictReader(file))
    of_layer = [float(each["mass"]) for each in lines if each["queries"] == "masked" and each["head"] == "mean"]
    assert len(of_layer) == 3  # distances in a tree of depth 2, one layer
    assert sum(of_layer) == pytest.approx(1, abs=1e-6)
    assert main(["analyse", str(run.folder), "--rows", "40"]) == 0
    table = capsys.readouterr().out
    assert "from masked positions" in table
    assert "whole rows: decoded best are root in" in table
    assert "nats from the exact posterior" in table


def test_the_same_again_gives_the_same_files(runs: dict[int, Run]) -> None:
    folder = runs[0].folder / "analysis"
    analyse([str(runs[0].folder)], rows=40)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    analyse([str(runs[0].checkpoints / "best.ckpt")], rows=40)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_runs_stand_side_by_side_in_the_order_of_what_differs(runs: dict[int, Run], tmp_path: Path) -> None:
    parent = runs[0].folder.parent
    for given, home in (([str(parent)], parent), ([str(runs[2].folder), str(runs[0].folder)], tmp_path)):
        found = analyse(given, ["attention"], 40, output=None if home == parent else str(tmp_path))
        assert set(found) == {runs[0].folder, runs[2].folder, home}
        together = found[home]["attention"]
        assert list(dict.fromkeys(each["model"] for each in together["table"])) == ["filter_level=0", "filter_level=2"]
        assert (home / "analysis" / "attention_maps.png").is_file()
    # side by side, a model's numbers are its own
    (alone,) = (found[runs[2].folder]["attention"]["table"],)
    assert [{**each, "model": "filter_level=2"} for each in alone] == [
        each for each in together["table"] if each["model"] == "filter_level=2"
    ]


def test_a_report_shows_what_was_found(runs: dict[int, Run], tmp_path: Path) -> None:
    parent = runs[0].folder.parent
    analyse([str(parent)], ["attention", "posterior"], 40)
    text = report([str(parent)], str(tmp_path)).read_text()
    shown = {base64.b64decode(each) for each in re.findall(r"base64,([\w+/=]+)", text)}
    for folder in (parent, *(run.folder for run in runs.values())):
        names = ["attention_maps", "attention_by_distance", *(["posterior"] if folder != parent else [])]
        for name in names:
            assert (folder / "analysis" / f"{name}.png").read_bytes() in shown
    for run in runs.values():
        assert f"<h2>posterior: {run.folder.name}, step 8</h2>" in text
    (runs[0].folder / "analysis" / "posterior.json").write_text('{"analysis": "posterior", "figures": [{"file": "gone.png"}]}')
    (runs[0].folder / "analysis" / "attention_maps.png").write_text("no picture")
    text = report([str(parent)], str(tmp_path)).read_text()
    assert f"posterior: {runs[0].folder.name}" not in text
    assert f"attention: {runs[0].folder.name}" not in text
    assert f"posterior: {runs[2].folder.name}" in text


def test_what_does_not_apply_is_left_out_unless_it_is_asked_for(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.txt").write_text("a cat sat on the mat\nthe dog ran after the cat\n" * 50)
    keys = [each for each in TOY if not each.startswith("data.") or "batch_size" in each]
    text = ["data=text", f"data.path={tmp_path / 'a.txt'}", "data.tokenizer=train", "data.chunk_size=16"]
    more = [f"data.cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'outputs'}"]
    assert main(["train", *text, *more, *keys, "trainer.max_steps=2", "trainer.val_check_interval=2"]) == 0
    (summary,) = tmp_path.glob("outputs/*/*/summary.json")
    run = str(summary.parent)
    capsys.readouterr()
    assert main(["analyse", run, "--json"]) == 0
    said = capsys.readouterr()
    assert list(json.loads(said.out)[run]) == ["attention"]
    assert "probe is left out: the data (TextSource) has no latent variables" in said.err
    assert "distance in places" in json.loads(said.out)[run]["attention"]["finding"][0]
    for name, lacks in (("probe", "no latent variables"), ("posterior", "no exact posterior")):
        assert main(["analyse", run, f"analysis={name}"]) == 2
        assert f"analysis={name}: the data (TextSource) has {lacks}" in capsys.readouterr().err


def test_heads_have_maps_of_their_own(runs: dict[int, Run]) -> None:
    picture = runs[0].folder / "analysis" / "attention_maps.png"
    analyse([str(runs[0].folder)], ["attention"], 40)
    average = picture.read_bytes()
    analyse([str(runs[0].folder)], ["attention"], 40, heads=True)
    height = [int.from_bytes(each[20:24]) for each in (average, picture.read_bytes())]
    assert height[1] > 1.5 * height[0]  # two heads, a row each


def test_a_run_that_labels_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(f"output_dir={tmp_path}", "task=classify", "task.label=root")
    train(config)
    assert main(["analyse", str(run_of(config).folder)]) == 2
    assert "labels rows" in capsys.readouterr().err

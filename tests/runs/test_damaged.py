"""Damaged files of a run: each is named with what helps, by every command that reads it; and what is named does help."""

import shutil
from pathlib import Path

import pytest
from conftest import TOY

import mlm_lightning
from mlm_lightning.__main__ import main
from mlm_lightning.commands.evaluate import evaluate

NOISE = b"\xff\x00\x80" * 40
CASES = [
    ("summary.json", b"{", "train"),
    ("summary.json", b"[1, 2]", "train"),
    ("summary.json", NOISE, "train"),
    ("config.yaml", b"seed: 0\nname: toy\n", "evaluate"),
    ("config.yaml", b"seed: [\n", "predict"),
    ("config.yaml", NOISE, "evaluate"),
    ("config.yaml", b"seed: 0\nname: ${oc.env:HOME}\n", "export"),
    ("config.yaml", b"seed: 0\na: &a [1]\nname: *a\n", "evaluate"),
    (
        "config.yaml",
        b"a0: &a0 [1, 1]\n" + b"".join(b"a%d: &a%d [*a%d%s]\n" % (i, i, i - 1, b", *a%d" % (i - 1) * 99) for i in range(1, 9)),
        "evaluate",
    ),
    ("model.json", b"{}", "predict"),
    ("model.json", NOISE, "evaluate"),
    ("vocab.json", b"{}", "predict"),
    ("vocab.json", b"", "export"),
    ("checkpoints/best.ckpt", None, "evaluate"),
    ("checkpoints/best.ckpt", b"", "predict"),
    ("metrics.csv", NOISE + b"\n", "continue"),
    ("metrics.csv", b"step,lr\nabc,1\n", "continue"),
]
"""A file, what it holds (None: the first half of what it held), and a command that reads it."""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("trained")
    given = [*TOY, f"output_dir={folder}", "name=toy", "callbacks.samples=null"]
    mlm_lightning.train(mlm_lightning.settings(given))
    return given


@pytest.fixture
def run(overrides: list[str], tmp_path: Path) -> Path:
    """A copy of a trained run."""
    folder = Path(next(each for each in overrides if each.startswith("output_dir=")).partition("=")[2])
    shutil.copytree(folder, tmp_path / "outputs")
    (run,) = (tmp_path / "outputs" / "toy").iterdir()
    return run


def command_of(reader: str, run: Path, overrides: list[str]) -> list[str]:
    same = [*overrides, f"output_dir={run.parent.parent}"]
    return {
        "train": ["train", *same],
        "continue": ["train", *same],
        "evaluate": ["evaluate", str(run)],
        "predict": ["predict", str(run), "0 _ 1 1"],
        "export": ["export", str(run), str(run.parent / "exported")],
    }[reader]


@pytest.mark.parametrize(("name", "content", "reader"), CASES)
def test_a_damaged_file_is_named_with_what_helps(name, content, reader, run, overrides, capsys):
    if reader == "continue":
        (run / "summary.json").unlink()
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    status = main(command_of(reader, run, overrides))
    errors = capsys.readouterr().err
    assert status == 2, errors
    assert str(path) in errors
    assert "Traceback" not in errors
    assert any(word in errors for word in ("remove", "give another one")), errors


def test_a_manifest_and_a_sweep_that_are_damaged_stop_nothing(run, overrides, capsys):
    for path in (run / "manifest.json", run.parent / "sweep.json"):
        path.write_text('{"jobs": 3')
    (run / "summary.json").unlink()
    assert main(command_of("continue", run, overrides)) == 0
    assert f"{run / 'manifest.json'}: can't be read" in capsys.readouterr().err
    (run.parent / "sweep.json").write_text('{"jobs": [1]}')
    (run / "summary.json").unlink()
    assert main(command_of("continue", run, overrides)) == 0


@pytest.mark.parametrize("content", ['{"own_code": 4}', '{"own_code": {"zero": "1"}, "code_folders": ["/dev"]}', "[]"])
def test_a_foreign_manifest_stops_no_report(content, run, capsys):
    (run / "manifest.json").write_text(content)
    assert main(["report", str(run.parent)]) == 0
    assert main(["runs", str(run.parent)]) == 0
    assert main(["clean", str(run.parent)]) == 0


@pytest.mark.parametrize("name", ["config.yaml", "model.json", "vocab.json"])
def test_removing_the_summary_does_help(name, run, overrides):
    lines, metrics = (run / name).read_text().count("\n"), evaluate(str(run))
    (run / name).write_text("{")
    (run / "summary.json").unlink()
    assert main(command_of("train", run, overrides)) == 0
    assert (run / name).read_text().count("\n") == lines
    assert evaluate(str(run)) == metrics

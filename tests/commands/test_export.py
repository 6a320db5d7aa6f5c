"""An export is whole or not there at all. What an exported model predicts is in test_text_run.py."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import composed
from helpers import run_of, train
from test_text_run import DISTILBERT, TextRun, trained

from mlm_lightning.__main__ import main
from mlm_lightning.commands.export import export
from mlm_lightning.errors import UserError


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    return trained(tmp_path_factory.mktemp("distilbert"), *DISTILBERT)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = composed(f"output_dir={tmp_path_factory.mktemp('outputs')}")
    train(config)
    return str(run_of(config).folder)


def test_the_folder_is_printed(distilbert: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", distilbert.folder, str(tmp_path / "there")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'there'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_empty_folder_is_filled(distilbert: TextRun, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    export(distilbert.folder, tmp_path / "there")
    assert (tmp_path / "there" / "model.safetensors").is_file()


def test_the_present_folder_is_filled(distilbert: TextRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(distilbert.folder, ".")
    assert (tmp_path / "here" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_stays(distilbert: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    there = tmp_path / "there"
    if kind == "folder":
        there.mkdir()
    mine = there / "mine.txt" if kind == "folder" else there
    mine.write_text("mine")
    assert main(["export", distilbert.folder, str(there)]) == 2
    assert f"DIR={there}: is there already" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == (2 if kind == "folder" else 1)


def test_a_model_of_our_own_is_no_hugging_face_model(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", synthetic, str(tmp_path / "there")]) == 2
    errors = capsys.readouterr().err
    assert "no Hugging Face architecture" in errors
    assert "model=distilbert" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_export_leaves_nothing(
    distilbert: TextRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    there = tmp_path / "there"
    if exists:
        there.mkdir()

    def full(loaded: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlm_lightning.commands.export._model_card", full)
    assert main(["export", distilbert.folder, str(there)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == ([there] if exists else [])


def test_a_run_without_its_tokenizer_says_so(distilbert: TextRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(distilbert.run.folder, folder)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="tokenizer"):
        export(str(folder), tmp_path / "there")
    assert not (tmp_path / "there").exists()

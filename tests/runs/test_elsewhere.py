"""A run that was started in one folder, with relative paths, is opened, evaluated and continued from another one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY

from mlm_lightning.__main__ import main
from mlm_lightning.config.paths import resolved
from mlm_lightning.config.settings import Composed
from mlm_lightning.values import located

SHORT = [each for each in TOY if each.startswith(("model.", "trainer."))]
TEXT = ["data=text", "data.path=texts/*.txt", "data.val_path=val.txt", "data.tokenizer=tok", "data.cache_dir=cache"]
TEXT += ["data.chunk_size=8", "data.batch_size=4"]
OWN = """
import torch
from pathlib import Path
from mlm_lightning.batch import Vocab
from mlm_lightning.data.source import Source

class Digits(Source):
    def __init__(self, file: Path):
        digits = [int(digit) for digit in Path(file).read_text().split()]
        self.digits, self.vocab, self.seq_len = torch.tensor(digits), Vocab(size=11, mask_id=10), 4

    def rows(self, split):
        return self.digits.unfold(0, 4, 1)
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders, the first with a text, a tokenizer and a package of the user's own."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("one two three\nfour five six\n" * 30)
    (here / "val.txt").write_text("seven eight nine\n" * 30)
    (here / "tok").mkdir()
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] one two three four five six seven eight nine"
    (here / "tok" / "vocab.txt").write_text(words.replace(" ", "\n") + "\n")
    (here / "digits.txt").write_text("1 2 3 4 5 6 7 8 9 " * 20)
    (here / "own_digits.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_digits", raising=False)
    monkeypatch.chdir(here)
    return here, elsewhere


def train(*overrides: str) -> Path:
    assert main(["train", *SHORT, *overrides]) == 0
    [summary] = Path("outputs").glob("*/*/summary.json")
    return summary.parent.resolve()


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    status = main(arguments)
    said = capsys.readouterr()
    assert status == 0, said.err
    return json.loads(said.out)


def test_a_run_on_text_is_opened_from_another_folder(places, monkeypatch, capsys):
    here, elsewhere = places
    run = train(*TEXT)
    assert "path: texts/*.txt" in (run / "config.yaml").read_text()  # as typed
    evaluated = answer(["evaluate", str(run), "--json"], capsys)
    monkeypatch.chdir(elsewhere)
    assert answer(["evaluate", str(run), "--json"], capsys) == evaluated
    assert answer(["evaluate", f"../here/{run.relative_to(here)}", "--json"], capsys) | {"checkpoint": ""} == (
        evaluated | {"checkpoint": ""}
    )
    [[mask]] = answer(["predict", str(run), "one [MASK] three", "--json"], capsys)
    assert mask["position"] == 2
    assert main(["report", str(run.parent)]) == 0
    assert (run.parent / "report" / "report.html").exists()
    # what is typed here is meant here
    Path("val.txt").write_text("one two three\n" * 30)
    other = answer(["evaluate", str(run), "data.val_path=val.txt", "--json"], capsys)
    assert other["val/loss"] != evaluated["val/loss"]
    assert not (elsewhere / "cache").exists()


def test_a_run_is_continued_from_another_folder(places, monkeypatch):
    here, elsewhere = places
    run = train(*TEXT)
    monkeypatch.chdir(elsewhere)
    there = [each.replace("=texts", "=../here/texts").replace("=val.txt", "=../here/val.txt") for each in TEXT]
    there = [each.replace("=tok", "=../here/tok").replace("=cache", "=../here/cache") for each in there]
    child = train(*there, f"resume=../here/{run.relative_to(here)}", "trainer.max_steps=12")
    summary, manifest = (json.loads((child / name).read_text()) for name in ("summary.json", "manifest.json"))
    assert summary["steps"] == 12
    assert manifest["parent"]["step"] == 8
    assert manifest["working_directory"] == str(elsewhere)


def test_files_that_are_gone_are_asked_for_by_their_key(places, monkeypatch, capsys):
    here, elsewhere = places
    run = train(*TEXT)
    evaluated = answer(["evaluate", str(run), "--json"], capsys)
    monkeypatch.chdir(elsewhere)
    shutil.move(here / "texts", elsewhere / "moved")
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"data.path=texts/*.txt: is neither in {here}, where the run was started, nor here; "
        "say where it is now: data.path=PATH\n"
    )
    assert answer(["evaluate", str(run), "data.path=moved/*.txt", "--json"], capsys) == evaluated
    shutil.move("moved", "texts")  # as in a project that was moved as a whole
    assert answer(["evaluate", str(run), "--json"], capsys) == evaluated


def test_a_class_of_ones_own_is_asked_for_with_the_command(places, monkeypatch, capsys):
    here, elsewhere = places
    (here / "conf" / "data").mkdir(parents=True)
    (here / "conf" / "data" / "digits.yaml").write_text(
        "_target_: own_digits.Digits\nfile: digits.txt\nbatch_size: 4\nnum_workers: 0\n"
    )
    run = train("--config-dir", "conf", "data=digits")
    evaluated = answer(["evaluate", str(run), "--trust", "--json"], capsys)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(here)])
    monkeypatch.delitem(sys.modules, "own_digits")
    assert main(["evaluate", str(run), "--split", "val"]) == 2
    first, command = capsys.readouterr().err.splitlines()
    assert first.startswith("data._target_=own_digits.Digits: the run names a class that is not mlm_lightning's own")
    assert command == f"if you trust that code, run it: mlm evaluate {run} --split val --trust"
    assert answer(["evaluate", str(run), "--trust", "--json"], capsys) == evaluated


def test_what_is_a_path_is_said_by_the_signature():
    class Own:
        def __init__(self, file: Path, more: list[Path] | None = None, name: str = "") -> None: ...

    from mlm_lightning.data.text.source import TextSource
    from mlm_lightning.models.pretrained import PretrainedMLM

    assert set(located(Own)) == {"file", "more"}
    assert set(located(TextSource)) == {"path", "val_path", "test_path", "dataset", "tokenizer", "cache_dir"}
    assert set(located(PretrainedMLM)) == {"checkpoint"}


def test_names_and_words_are_left_alone(tmp_path, monkeypatch):
    start, here = tmp_path / "start [1]", tmp_path / "here"
    for folder in ("train", "owner/name", "texts"):
        (start / folder).mkdir(parents=True)
    (start / "texts" / "a.txt").write_text("a")
    here.mkdir()
    monkeypatch.chdir(here)
    data = {"_target_": "mlm_lightning.data.text.source.TextSource", "path": ["texts", "texts/*.txt"], "tokenizer": "train"}
    further = {"k": {"tokenizer": "owner/name", "dataset": "owner/another"}, "m": {"path": "texts"}}
    composed = Composed({"data": data, "model": {}, "eval": {"data": further}})
    found = resolved(composed, start, ["eval.data.m={path: texts}"], trusted=False).config
    globbed = f"{tmp_path}/start [[]1]/texts/*.txt"
    assert found["data"] == data | {"path": [f"{start}/texts", globbed]}
    assert found["eval"]["data"] == {
        "k": {"tokenizer": f"{start}/owner/name", "dataset": "owner/another"},
        "m": {"path": "texts"},
    }


def test_a_launcher_may_change_the_folder(places):
    """Hydra's workers may start anywhere, or change to a folder of their own; the command's paths are still the command's."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    here, _ = places
    command = [sys.executable, "-m", "mlm_lightning", "train", "-m", "launcher=joblib", "hydra.job.chdir=true", "seed=0,1"]
    command += [*TEXT, *SHORT, "trainer.max_steps=1", "trainer.val_check_interval=1", "hydra.launcher.n_jobs=1"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = [path.parent for path in here.glob("outputs/default/*/summary.json")]
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "manifest.json").read_text())["working_directory"] == str(here)

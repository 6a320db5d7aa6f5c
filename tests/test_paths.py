"""`~` is the home folder in every key and every argument that is a path: here they are listed, and each is tried."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY

from mlm_lightning.__main__ import COMMANDS, main
from mlm_lightning.config.settings import Init
from mlm_lightning.config.signatures import TRUSTED_MODULES
from mlm_lightning.data.languages.pcfg import PCFGFileSource
from mlm_lightning.data.text.settings import shared_cache
from mlm_lightning.data.text.source import TextSource
from mlm_lightning.models.pretrained import PretrainedMLM
from mlm_lightning.report import style
from mlm_lightning.values import expanded, located

KEYS = {
    "TextSource": {"path", "val_path", "test_path", "tokenizer", "dataset", "cache_dir"},
    "PCFGFileSource": {"path"},
    "PretrainedMLM": {"checkpoint"},
    "Init": {"from_run"},
}
"""Beside them: output_dir, resume, and the folders that the framework gives to callbacks and loggers."""
ARGUMENTS = {
    "train": ["DIR"],
    "prepare": ["DIR"],
    "evaluate": ["RUN"],
    "predict": ["RUN"],
    "export": ["RUN", "DIR"],
    "report": ["PATH", "DIR"],
    "analyse": ["RUN", "DIR"],
    "runs": ["FOLDER"],
    "clean": ["FOLDER"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder; the current one is another, which has to stay empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLM_CACHE", "~/shared")
    monkeypatch.chdir(here)
    return home


def test_the_keys_and_arguments_that_are_paths_are_these() -> None:
    classes = {
        each
        for module in map(importlib.import_module, TRUSTED_MODULES)
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__ == module.__name__
    }
    assert {each.__name__: set(located(each)) for each in {*classes, Init} if located(each)} == KEYS
    usages = {name: importlib.import_module(f"mlm_lightning.commands.{name}").HELP.partition("\n")[0] for name in COMMANDS}
    assert {name: re.findall(r"\b(RUN|DIR|FOLDER|PATH)\b", usage) for name, usage in usages.items()} == ARGUMENTS


@pytest.mark.parametrize(
    ("typed", "opened"),
    [("~/x", "{home}/x"), ("~", "{home}"), ("x/~", "x/~"), ("./~/x", "{here}/~/x"), ("~no.body/x", "{here}/~no.body/x")],
)
def test_a_path_is_expanded_once(home: Path, typed: str, opened: str) -> None:
    assert expanded(typed) == Path(opened.format(home=home, here=Path.cwd()))
    assert expanded(expanded(typed)) == expanded(typed)


def test_texts_tokenizers_and_caches(home: Path) -> None:
    for number, name in enumerate(("train", "val", "test")):
        (home / f"{name}.txt").write_text(
            "".join(f"{word} of part {number}\n" for word in ("one", "two", "three") for _ in range(9))
        )
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] one two three of part 0 1 2"
    (home / "vocab.txt").write_text(words.replace(" ", "\n"))
    paths = {"path": "~/t*.txt", "val_path": ["~/val.txt"], "test_path": "~/test.txt"} | {"path": "~/train.txt"}
    source = TextSource(**paths, tokenizer="~/vocab.txt", cache_dir="~/cache", chunk_size=4)
    source.prepare()
    assert source.cache_folder is not None
    assert source.cache_folder.parent == home / "cache"
    assert len(source.rows("test")) > 10
    assert shared_cache() == home / "shared"
    (home / "data").mkdir()
    for name in ("train", "test"):
        (home / f"{name}.txt").rename(home / "data" / f"{name}.txt")
    of_folder = TextSource(dataset="~/data", tokenizer="~/vocab.txt", cache_dir="~/cache", test_split="test", chunk_size=4)
    of_folder.prepare()
    assert len(of_folder.rows("test")) == len(source.rows("test"))
    assert not list(Path.cwd().iterdir())


def test_a_grammar_and_a_checkpoint(home: Path) -> None:
    (home / "toy.pcfg").write_text("S -> A A [1.0]\nA -> 'a' [0.5] | 'b' [0.5]\n")
    assert PCFGFileSource("~/toy.pcfg", seq_len=2).vocab.size == 3
    shape = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    model = PretrainedMLM(architecture="distilbert", config=shape, vocab_size=12, seq_len=8)
    model.save_pretrained(home / "weights")
    again = PretrainedMLM(checkpoint="~/weights", vocab_size=12, seq_len=8)
    weights = model.hf_model.get_input_embeddings().weight
    assert again.hf_model.get_input_embeddings().weight.equal(weights)


def test_runs_and_what_is_done_with_them(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "FORMATS", {"png": style.FORMATS["png"]})
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "mine.yaml").write_text("defaults: [transformer]\n")

    def mlm(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    def run(*overrides: str) -> Path:
        folder = mlm("train", *TOY, *overrides).partition("\nrun ")[2].partition("\n")[0].strip()
        assert Path(folder).is_relative_to(home / "outputs")
        assert (Path(folder) / "summary.json").is_file()
        assert list(Path(folder).glob("tensorboard/events*"))
        return Path(folder)

    first = run("output_dir='~/outputs'", "--config-dir", "~/conf", "model=mine")
    assert "output_dir: ~/outputs\n" in (first / "config.yaml").read_text()  # as typed: it is not in the identity
    typed = f"~/{first.relative_to(home)}"
    run("output_dir=~/outputs", f"resume={typed}", "trainer.max_steps=10")
    run("output_dir=~/outputs", f"init.from_run={typed}", "name=child")
    group = "~/outputs/default"
    assert str(first) in mlm("evaluate", typed)
    assert mlm("predict", typed, "0 _ 1 1")
    assert mlm("export", typed, "~/exported").strip() == str(home / "exported")
    assert str(home / "exported") in mlm("evaluate", "~/exported")
    assert str(home / "page" / "report.html") in mlm("report", group, "--output", "~/page")
    assert str(home) in mlm("analyse", typed, "analysis=attention", "--rows", "8", "--output", "~/analysis")
    assert first.name in mlm("runs", group)
    assert "nothing to clean" in mlm("clean", group)
    mlm("prepare", *TOY[:4], "--config-dir", "~/conf", "model=mine")
    assert not list(Path.cwd().iterdir())


def test_variables_are_no_part_of_a_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's TensorBoardLogger would put their values in."""
    monkeypatch.setenv("PLACE", str(home))
    assert main(["train", *TOY, "output_dir='$PLACE/outputs'"]) == 0
    [folder] = Path("$PLACE").glob("outputs/default/*")
    assert list(folder.glob("tensorboard/events*"))
    assert not list(home.iterdir())

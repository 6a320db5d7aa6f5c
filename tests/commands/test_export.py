"""An export is whole or not there at all, opens without its run, and tells nothing of the machine that it was made on. What
transformers predict with one is in test_text_run.py."""

import ast
import contextlib
import getpass
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import composed
from helpers import run_of, train
from test_text_run import DISTILBERT, TRANSFORMER, TextRun, trained, write_documents

from mlm_lightning.__main__ import main
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.commands.export import export
from mlm_lightning.commands.predict import predict
from mlm_lightning.errors import UserError
from mlm_lightning.runs.load import load_run


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    return trained(tmp_path_factory.mktemp("distilbert"), *DISTILBERT)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    return trained(tmp_path_factory.mktemp("transformer"), *TRANSFORMER)


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    shape = ("model.d_model=16", "model.num_layers=2", "model.nhead=2", "model.dim_feedforward=32", "model.attention_window=4")
    return trained(tmp_path_factory.mktemp("modern"), "model=modern", *shape)


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
    (tmp_path / "any").touch()
    modes = {file.stat().st_mode for file in (tmp_path / "there").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "any").stat().st_mode}  # safetensors' own is 0600


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


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_export_leaves_nothing(
    distilbert: TextRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    there = tmp_path / "there"
    if exists:
        there.mkdir()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlm_lightning.sharing.card.write_card", full)
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


# what an export holds

TEXTS = {
    "synthetic": "0 _ 1 2",
    "transformer": "the [MASK] dog sees",
    "distilbert": "the [MASK] dog sees",
    "modern": "the [MASK] dog sees",
}
OF_TRANSFORMERS = ("distilbert", "modern")


@pytest.fixture(params=list(TEXTS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(request: pytest.FixtureRequest, kind: str) -> str:
    made = request.getfixturevalue(kind)
    return made if isinstance(made, str) else made.folder


@pytest.fixture
def alone(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as somebody else has it: elsewhere, and called otherwise."""
    there = export(run, tmp_path / "made" / "model")
    assert isinstance(there, Path)
    (tmp_path / "else").mkdir()
    shutil.move(there, tmp_path / "else" / "model")
    monkeypatch.chdir(tmp_path / "else")
    return Path("model")


def test_it_predicts_what_the_run_does(kind: str, run: str, alone: Path) -> None:
    (there,), (here,) = predict(str(alone), [TEXTS[kind]]), predict(run, [TEXTS[kind]])
    if kind != "modern":  # the same function in other words
        assert there == here
    for each, other in zip(there[0]["predictions"], here[0]["predictions"], strict=True):
        assert each["token"] == other["token"]
        assert each["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_weights_vocabulary_and_step_are_those_of_the_run(kind: str, run: str, alone: Path) -> None:
    there, here = load_run(run), load_run(alone)
    assert (here.vocab, here.seq_len, here.step) == (there.vocab, there.seq_len, there.step)
    if kind == "modern":  # the same weights under other names
        assert here.model.hf_model.config.model_type == "modernbert"
        ids_BL = torch.randint(there.vocab.size, (3, there.seq_len))
        torch.testing.assert_close(here.model(ids_BL), there.model(ids_BL), atol=1e-5, rtol=0)
        return
    weights = here.model.state_dict()
    assert set(weights) == set(there.model.state_dict())
    for name, weight in there.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert not here.model.training


@pytest.mark.parametrize("kind", OF_TRANSFORMERS, indirect=True)
def test_transformers_fill_the_mask_as_the_run_does(kind: str, run: str, alone: Path) -> None:
    from transformers import pipeline

    (answer,) = predict(run, [TEXTS[kind]], top_k=5)
    found = {each["token_str"]: each["score"] for each in pipeline("fill-mask", str(alone))(TEXTS[kind])}
    wanted = {each["token"]: each["probability"] for each in answer[0]["predictions"]}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_an_export_can_be_exported_again(kind: str, alone: Path) -> None:
    again = export(str(alone), "again")
    assert predict(str(again), [TEXTS[kind]]) == predict(str(alone), [TEXTS[kind]])
    assert json.loads(Path("again/manifest.json").read_text()) == json.loads((alone / "manifest.json").read_text())


def test_a_synthetic_one_is_evaluated_without_anything_else(synthetic: str, tmp_path: Path) -> None:
    there = export(synthetic, tmp_path / "there")
    of_run, of_export = evaluate(synthetic, split="test"), evaluate(str(there), split="test")
    assert of_export.pop("checkpoint") == str(tmp_path / "there" / "model.safetensors")
    del of_run["checkpoint"]
    assert of_export == of_run
    level = ["data.filter_level=2"]
    assert evaluate(str(there), level)["val/loss"] == evaluate(synthetic, level)["val/loss"]


@pytest.mark.parametrize("kind", ["transformer", "distilbert"])
def test_one_of_text_is_evaluated_on_text_that_is_given(
    kind: str, run: str, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(alone)]) == 2
    assert "data.path" in capsys.readouterr().err
    other = write_documents(tmp_path / "other.txt", seed=1)
    given = [f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert evaluate(str(alone), given)["val/loss"] == evaluate(run, given)["val/loss"]


def test_metrics_are_those_of_the_weights(synthetic: str, tmp_path: Path) -> None:
    for name in ("previous.ckpt", "last.ckpt"):
        there = export(f"{synthetic}/checkpoints/{name}", tmp_path / name)
        manifest = json.loads((Path(there) / "manifest.json").read_text())
        measured = evaluate(f"{synthetic}/checkpoints/{name}")
        assert manifest["step"] == measured["step"]
        assert manifest["metrics"] == pytest.approx({key: measured[key] for key in manifest["metrics"]}, abs=1e-6)
        assert "val/loss" in manifest["metrics"]


def test_no_file_tells_of_this_machine(kind: str, run: str, alone: Path, tmp_path: Path) -> None:
    places = [str(Path(run).resolve()), str(Path(run).resolve().parents[2]), str(tmp_path), str(Path.cwd()), str(Path.home())]
    names = [rf"\b{re.escape(name)}\b" for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4]
    for file in (each for each in alone.rglob("*") if each.is_file()):
        content = file.read_bytes()
        assert [place for place in places if place.encode() in content] == [], file
        if file.suffix != ".safetensors":
            assert [name for name in names if re.search(name, content.decode())] == [], file


def test_nothing_in_it_is_code(alone: Path) -> None:
    suffixes = {file.suffix for file in alone.rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".yaml", ".md"}


def test_a_class_of_somebody_else_is_not_built(
    synthetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "there"
    export(synthetic, folder)
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | {"_target_": "own_module.Own"}))
    (tmp_path / "own_module.py").write_text("from mlm_lightning.models.transformer import TransformerClassifier as Own\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["predict", str(folder), "0 _ 1 2"]) == 2
    errors = capsys.readouterr().err
    assert "own_module.Own" in errors
    assert "--trust" in errors
    assert predict(str(folder), ["0 _ 1 2"], trust=True) == predict(synthetic, ["0 _ 1 2"])


# the model card


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)


def test_the_commands_and_the_python_of_the_card_run(kind: str, run: str, alone: Path, tmp_path: Path) -> None:
    card = (alone / "README.md").read_text()
    write_documents(Path("your-texts.txt"), seed=0)
    (commands,) = blocks(card, "bash")
    for line in commands.splitlines():
        cache = [f"data.cache_dir={tmp_path / 'cache'}"] if "data.path" in line else []
        program, *arguments = shlex.split(line)
        assert program == "mlm"
        assert main([*arguments, *cache]) == 0, line
    codes = blocks(card, "python")
    assert len(codes) == (2 if kind in OF_TRANSFORMERS else 1)
    for code in codes:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        assert printed.getvalue().strip(), code


def test_what_the_python_of_the_card_prints_is_the_best_token(kind: str, alone: Path) -> None:
    card = (alone / "README.md").read_text()
    text = shlex.split(blocks(card, "bash")[0].splitlines()[0])[-1]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(blocks(card, "python")[0], {})
    assert printed.getvalue().strip() == predict(str(alone), [text])[0][0]["predictions"][0]["token"]


def test_the_front_matter_is_what_the_hub_reads(kind: str, run: str, alone: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(alone / "README.md")
    assert card.data.pipeline_tag == "fill-mask"
    assert card.data.library_name == ("transformers" if kind in OF_TRANSFORMERS else "mlm-lightning")
    assert card.data.license is None
    found = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    summary = json.loads((Path(run) / "summary.json").read_text())
    assert found == {name: summary[f"val/{name}"] for name in ("loss", "perplexity", "accuracy")}


def test_the_card_tells_data_training_and_limits(kind: str, run: str, alone: Path) -> None:
    card = (alone / "README.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n\n(.*?)(?=\n\n## |\n\n<details>)", card, flags=re.DOTALL | re.MULTILINE))
    assert list(sections) == ["How to use it", "Data", "Training", "Metrics", "Limits", "Versions"]
    summary = json.loads((Path(run) / "summary.json").read_text())
    assert f"| steps | {summary['steps']} |" in sections["Training"]
    assert "`AdamW(lr=" in sections["Training"]
    assert "layer_decay" not in sections["Training"]  # no argument of the optimizer
    assert f"at most {load_run(run).seq_len} tokens" in sections["Limits"]
    assert run.rpartition("-")[2] in sections["Versions"]
    if kind == "synthetic":
        assert "| depth | 2 |" in sections["Data"]
        assert f"{summary['val/oracle_loss']:.4f} nats a token" in sections["Metrics"]
        assert f"{summary['val/excess_loss']:.4f} above it" in sections["Metrics"]
    else:
        assert "Text of `corpus.txt`." in sections["Data"]
        assert "| train | 160 |" in sections["Data"]
        assert json.loads((Path(run) / "manifest.json").read_text())["data"] in sections["Data"]
    (config,) = blocks(card, "yaml")
    assert yaml.safe_load(config) == load_run(alone).config


# mistakes


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("model.safetensors", "cut off", ["model.safetensors: cannot be read"]),
        ("model.json", "{", ["model.json: can't be read", "export the run again"]),
        ("model.json", None, ["was not written by mlm export", "model.json"]),
        ("vocab.json", None, ["neither vocab.json nor a tokenizer"]),
    ],
)
def test_a_damaged_export_says_so(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | None, names: list[str]
) -> None:
    folder = tmp_path / "there"
    export(synthetic, folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert main(["predict", str(folder), "0 _ 1 2"]) == 2
    errors = capsys.readouterr().err
    assert [name for name in names if name not in errors] == [], errors
    assert "Traceback" not in errors


def test_an_export_is_nothing_to_resume_from(synthetic: str, tmp_path: Path) -> None:
    there = export(synthetic, tmp_path / "there")
    with pytest.raises(UserError, match="has no checkpoint"):
        train(composed(f"output_dir={tmp_path / 'outputs'}", f"resume={there}", "trainer.max_steps=12"))
    assert not (tmp_path / "outputs").exists()


def test_a_run_without_a_checkpoint_leaves_nothing(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(synthetic, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "there")]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_made(synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["export", synthetic, str(tmp_path / "file" / "there")]) == 2
    assert "cannot be made there" in capsys.readouterr().err


def test_a_model_that_names_a_file_of_this_machine(synthetic: str, tmp_path: Path) -> None:
    from mlm_lightning.sharing.folder import write_model

    loaded = load_run(synthetic)
    loaded.folder = tmp_path / "run"
    shutil.copytree(synthetic, loaded.folder)
    description = json.loads((loaded.folder / "model.json").read_text()) | {"vectors": ["/home/me/vectors.bin"]}
    (loaded.folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"model\.vectors=/home/me/vectors\.bin: is a place on this machine"):
        write_model(loaded, tmp_path / "there")


def test_a_damaged_summary_costs_the_card_its_numbers_alone(
    synthetic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(synthetic, run)
    (run / "summary.json").write_text("{")
    assert main(["export", str(run), str(tmp_path / "there")]) == 0
    assert "summary.json: can't be read" in capsys.readouterr().err
    assert load_run(tmp_path / "there").step == load_run(synthetic).step


@pytest.fixture
def copied(distilbert: TextRun, transformer: TextRun, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A run that somebody has sent."""
    run = {"distilbert": distilbert, "transformer": transformer}[request.param]
    return Path(shutil.copytree(run.folder, tmp_path / "run"))


@pytest.mark.parametrize("copied", ["distilbert", "transformer"], indirect=True)
@pytest.mark.parametrize("name", ["tokenizer/vocab.txt", "tokenizer/tokenizer_config.json", "manifest.json", "tokenizer"])
def test_a_link_out_of_the_run_is_named_and_nothing_is_copied(copied: Path, name: str, tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", copied / name
    if link.exists():
        link.rename(elsewhere)
    else:
        elsewhere.write_text("secret")
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"{re.escape(str(link))}.*: is a link to {re.escape(str(elsewhere))}"):
        export(str(copied), tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert [path.name for path in tmp_path.glob(".there*")] == []


@pytest.mark.parametrize("copied", ["transformer"], indirect=True)
def test_of_a_tokenizer_only_its_own_files_are_copied(copied: Path, tmp_path: Path) -> None:
    names = {path.name for path in (copied / "tokenizer").iterdir()}
    (copied / "tokenizer" / "id_rsa").write_text("secret")
    (copied / "tokenizer" / "folder").mkdir()
    export(str(copied), tmp_path / "there")
    assert {path.name for path in (tmp_path / "there" / "tokenizer").iterdir()} == names


@pytest.mark.parametrize("copied", ["transformer"], indirect=True)
def test_an_export_opens_from_the_hubs_cache_of_links(copied: Path, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "hub" / "models--a--b" / "snapshots" / "1a2b", tmp_path / "hub" / "models--a--b" / "blobs"
    export(str(copied), folder)
    blobs.mkdir()
    for number, file in enumerate(filter(Path.is_file, [*folder.rglob("*")])):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    export(str(folder), tmp_path / "again")
    for file in filter(Path.is_file, folder.rglob("*")):
        if file.name != "README.md":
            assert (tmp_path / "again" / file.relative_to(folder)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("copied", ["distilbert"], indirect=True)
def test_a_foreign_mask_token_stays_a_text_in_the_card(copied: Path, tmp_path: Path) -> None:
    token = '"); import os; os.abort(); ("'
    for file in (copied / "tokenizer").glob("*.json"):
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content).replace('"[MASK]"', json.dumps(token)))
    vocabulary = copied / "tokenizer" / "vocab.txt"
    if vocabulary.exists():
        vocabulary.write_text(vocabulary.read_text().replace("[MASK]", token))
    export(str(copied), tmp_path / "there")
    card = (tmp_path / "there" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        called = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Attribute)]
        assert "abort" not in {node.attr for node in called}
        assert json.dumps(token)[1:-1] in block


def test_a_full_disk_is_named(synthetic: str, tmp_path: Path) -> None:
    limited = f"ulimit -f 4; exec {sys.executable} -m mlm_lightning export {synthetic} {tmp_path / 'there'}"
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert f"{tmp_path / 'there'}: File too large. Nothing is left there" in ended.stderr
    assert list(tmp_path.iterdir()) == []

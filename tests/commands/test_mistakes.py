"""A user's mistakes: one clear message each, status 2, no traceback, nothing on disk."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY
from mistakes import MISTAKES

from mlm_lightning.__main__ import main

_BERT = {"model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_FILES = {
    "conf/data/deep.yaml": "defaults: [tree]\ndpeth: 8\n",
    "conf/data/broken.yaml": "depth: [1\nsigma: 2\n",
    "conf/data/raising.yaml": "_target_: no_such_module.Source\n",
    "conf/experiment/no_package.yaml": "data: {depth: 3}\nname: mine\n",
    "conf/experiment/no_package_overrides.yaml": "defaults:\n  - override /data: uniform\nname: mine\n",
    "conf/experiment/no_override.yaml": "# @package _global_\ndefaults:\n  - /data: uniform\n",
    "conf/experiment/own_folder.yaml": "# @package _global_\nhydra: {run: {dir: mine}}\n",
    "conf/experiment/empty_group.yaml": "# @package _global_\ndefaults:\n  - override /data: nothing\n",
    "conf/experiment/a_list.yaml": "# @package _global_\n- 1\n- 2\n",
    "conf/sweep/no_package.yaml": "name: mine\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n",
    "files/own/model/transformer.yaml": "defaults: [transformer, _self_]\nnhead: 2\n",
    "files/one.txt": "a cat sat on the mat\nthe dog ran\n" * 20,
    "files/empty.txt": "",
    "files/empty/.keep": "",
    "files/bad.jsonl": '{"text": "a"}\n{"text": \n',
    "files/rows.csv": "words,n\na b c,1\nd e f,2\n",
    "files/picture.png": "no text",
    "files/tiny-bert/config.json": json.dumps(_BERT | {"intermediate_size": 16, "max_position_embeddings": 64}),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The places that the command lines name."""
    import mlm_lightning

    base = tmp_path_factory.mktemp("world")
    for name, content in _FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(content)
    mlm_lightning.train(mlm_lightning.settings([*TOY, f"output_dir={base / 'outputs'}", "name=toy", "callbacks.samples=null"]))
    (run,) = (base / "outputs" / "toy").iterdir()
    return {"run": run, "conf": base / "conf", "files": base / "files"}


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # `mlm train` looks for the user's packages in this folder
    monkeypatch.delenv("MLM_DEBUG", raising=False)
    monkeypatch.setenv("MLM_CACHE", str(tmp_path / "cache"))
    return folder


def status_of(command: str) -> Any:
    try:
        return main(shlex.split(command))
    except SystemExit as exit_:
        return exit_.code


def assert_refused(status: Any, errors: str, names: list[str], folder: Path) -> None:
    assert status == 2, errors
    assert [name for name in names if name not in errors] == [], errors
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def snapshot(world: dict[str, Path]) -> dict[Path, tuple[int, int]]:
    paths = [path for place in world.values() for path in place.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_the_lines_differ():
    assert len({command for command, _ in MISTAKES}) == len(MISTAKES) >= 150


@pytest.mark.parametrize(("command", "names"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_message_and_leaves_nothing(command, names, world, empty_folder, capsys):
    before = snapshot(world)
    for place, path in world.items():
        command = command.replace(f"{{{place}}}", str(path))
    status = status_of(command)
    errors = capsys.readouterr().err
    assert_refused(status, errors, names, empty_folder)
    assert snapshot(world) == before
    refusal = errors[errors.rfind("resume=") :] if command.startswith("train resume=") else errors  # after what differs
    assert len(refusal.splitlines()) <= 8, errors


def test_all_mistakes_are_told_at_once(empty_folder, capsys):
    status = status_of("train sede=1 data.dpeth=3 trainer.precision=fp12 masking.rate=2 data.batch_size=0")
    errors = capsys.readouterr().err
    assert_refused(
        status, errors, ["sede", "data.dpeth", "trainer.precision", "masking.rate=2", "data.batch_size=0"], empty_folder
    )
    assert len(errors.splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["trian"], ["trian", "'train'"]),
        (["train", "data.dpeth=3"], ["data.dpeth", "'depth'"]),
        (["train", "trainer.accelerator=cpu", "trainer.strategy=foo"], ["trainer.strategy=foo", "ddp"]),
    ],
)
def test_the_same_in_a_process_of_its_own(arguments, names, empty_folder):
    command = [sys.executable, "-m", "mlm_lightning", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_refused(done.returncode, done.stderr, names, empty_folder)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("run  ")]  # said before Lightning is imported
    assert len(lines) == 1

"""`mlm train --help` knows what there is to choose from, at once."""

import re
from pathlib import Path

import pytest

from mlm_lightning.__main__ import main
from mlm_lightning.config.compose import config_folder


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", "--help", *arguments]) == 0
    return capsys.readouterr().out


def test_every_shipped_option_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r",\n {10,}", ", ", helped(capsys))  # a group's options over several lines
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    files = list(config_folder().glob("*/*.yaml"))
    assert len(files) > 30
    for file in files:
        group, name = file.parent.name, file.stem
        if group in ("experiment", "sweep"):
            assert [line for line in lines if line[0] == name and len(line) > 3] != []
        else:
            assert [line for line in lines if line[0] == group and name in " ".join(line[1:]).split(", ")] != [], file


def test_it_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    choices = helped(capsys).partition("Groups, and their options")[2]
    assert max(map(len, choices.splitlines())) <= 80


def test_the_user_s_own_are_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "data/mine": "a: 1\n",
        "experiment/deep": "# @package _global_\n# Deep grammars. And more.\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(content)
    for arguments in (("--config-dir", str(tmp_path)), (f"--config-dir={tmp_path}",), ("-cd", str(tmp_path))):
        shown = helped(capsys, *arguments)
        assert ", xsum, mine\n" in shown
        assert "  deep              Deep grammars\n" in shown
    assert "deep" not in helped(capsys)

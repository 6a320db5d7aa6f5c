"""One route from a command line to a run: composed once and checked once a process, each object built once."""

import functools
from collections import Counter
from pathlib import Path

import pytest
from conftest import TOY

import mlm_lightning
from mlm_lightning.__main__ import main
from mlm_lightning.config import parse
from mlm_lightning.data.languages.tree import TreeSource
from mlm_lightning.masking import Bernoulli
from mlm_lightning.training.module import MLMModule

SHORT = (*TOY, "trainer.max_steps=2", "trainer.val_check_interval=2")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of these was called."""
    counted: Counter[str] = Counter()

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counting(*args: object, **kwargs: object) -> object:
            counted[name if name != "__init__" else owner.__name__] += 1  # type: ignore[attr-defined]
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    import hydra

    count(hydra, "compose")
    count(hydra, "main")
    count(parse, "_parse_parts")
    for owner in (TreeSource, Bernoulli, MLMModule):
        count(owner, "__init__")
    return counted


def test_a_single_run(tmp_path: Path, calls: Counter[str]) -> None:
    assert main(["train", *SHORT, f"output_dir={tmp_path}"]) == 0
    assert (calls["compose"], calls["_parse_parts"], calls["main"]) == (1, 1, 0)
    assert (calls["TreeSource"], calls["MLMModule"]) == (1, 1)
    # the training's own, and the frozen one of its evaluation
    assert calls["Bernoulli"] == 2


def test_from_python(tmp_path: Path, calls: Counter[str]) -> None:
    settings = mlm_lightning.settings([*SHORT, f"output_dir={tmp_path}"])
    summary = mlm_lightning.train(settings)
    assert summary["steps"] == 2
    assert calls["compose"] == calls["TreeSource"] == 1


def test_hydra_answers_its_own_flags(calls: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "data.depth=3"]) == 0
    assert "depth: 3" in capsys.readouterr().out
    assert calls["TreeSource"] == 0

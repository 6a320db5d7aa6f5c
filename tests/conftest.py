"""Tests run offline, on toy sizes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# two threads on toy sizes wait for each other more than they compute, and results depend on their number
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

for each in (signal.SIGINT, signal.SIGHUP):  # a shell's background jobs and nohup ignore them, and so would what tests start
    if signal.getsignal(each) == signal.SIG_IGN:
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

TOY = (
    "data.num_symbols=3",
    "data.depth=2",
    "data.val_size=64",
    "data.test_size=64",
    "data.batch_size=16",
    "model.d_model=16",
    "model.num_layers=1",
    "model.nhead=2",
    "model.dim_feedforward=32",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Composes a toy config: the default experiment in small, writing below `tmp_path`; overrides come on top."""
    return lambda *overrides: composed(f"output_dir={tmp_path / 'outputs'}", *overrides)


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules that have the names of others and raise when they are imported."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    for name in ("calendar", "numpy", "random"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not mine')")
    monkeypatch.chdir(folder)
    return folder


def composed(*overrides: str) -> dict[str, Any]:
    from mlm_lightning.config.compose import composer, to_plain

    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain([*TOY, *overrides])))

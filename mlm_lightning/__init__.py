"""Masked-language-model experiments: rows of tokens → a mask → a model → a masked cross-entropy, and everything random on the
way is a pure function of (seed, step, row)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlm_lightning.commands.evaluate import evaluate
    from mlm_lightning.config.parse import settings
    from mlm_lightning.runs.load import load_run
    from mlm_lightning.training.train import train

__all__ = ["evaluate", "load_run", "settings", "train"]

_HOMES = {
    "evaluate": "mlm_lightning.commands.evaluate",
    "load_run": "mlm_lightning.runs.load",
    "settings": "mlm_lightning.config.parse",
    "train": "mlm_lightning.training.train",
}


def __getattr__(name: str) -> Any:
    # they import torch, which `mlm --help` does without
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

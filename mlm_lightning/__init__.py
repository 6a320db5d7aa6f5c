"""Masked-language-model experiments: rows of tokens → a mask → a model → a masked cross-entropy, and everything random on the
way is a pure function of (seed, step, row)."""

import sys

if sys.argv[:1] == ["-m"] and "mlm_lightning" in sys.orig_argv and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # the current folder, of `python -m mlm_lightning`: a `random.py` there is none of ours

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlm_lightning.deferred import defer_torchmetrics

if TYPE_CHECKING:
    from mlm_lightning.commands.evaluate import evaluate
    from mlm_lightning.commands.predict import predict
    from mlm_lightning.config.parse import settings
    from mlm_lightning.data.datamodule import MLMDataModule
    from mlm_lightning.runs.load import load_run
    from mlm_lightning.training.module import MLMModule
    from mlm_lightning.training.train import train

    __version__: str

__all__ = ["MLMDataModule", "MLMModule", "__version__", "evaluate", "load_run", "predict", "settings", "train"]

_HOMES = {
    "MLMDataModule": "mlm_lightning.data.datamodule",
    "MLMModule": "mlm_lightning.training.module",
    "evaluate": "mlm_lightning.commands.evaluate",
    "load_run": "mlm_lightning.runs.load",
    "predict": "mlm_lightning.commands.predict",
    "settings": "mlm_lightning.config.parse",
    "train": "mlm_lightning.training.train",
}


defer_torchmetrics()


def __getattr__(name: str) -> Any:
    # they import torch, which `mlm --help` does without
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("mlm-lightning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

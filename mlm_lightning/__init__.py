"""Masked-language-model experiments: rows of tokens → a mask → a model → a masked cross-entropy, and everything random on the
way is a pure function of (seed, step, row)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlm_lightning.commands.train import train
    from mlm_lightning.runs import load_run

__all__ = ["load_run", "train"]


def __getattr__(name: str) -> Any:
    # both import torch, which `mlm --help` does without
    if name == "load_run":
        from mlm_lightning.runs import load_run

        return load_run
    if name == "train":
        from mlm_lightning.commands.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""`trainer.compile`: the layers of a model, each compiled by itself. Those of one class share the code, so that 12 layers take
as long to compile as one; torch keeps it on disk (TORCHINDUCTOR_CACHE_DIR), where the next run finds it.

The last digits of results depend on the code. Shapes are therefore never generalised, and validation stays as it is without:
what a step gives depends on neither what ran before it nor when the run was resumed.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mlm_lightning.config.settings import Settings
from mlm_lightning.data.batches import Plan

_MANY_STEPS = 10_000
"""From here on, compiling pays for itself, cold as it may be."""


def compiles(settings: Settings, model: nn.Module, plan: Plan) -> bool:
    """Whether the run is to compile its layers: with `auto`, where that is likely to pay."""
    wanted, trainer = settings.trainer.compile, settings.trainer
    if wanted != "auto":
        return wanted
    # dropout of compiled layers takes longer on a CPU than ours
    drops = trainer.is_cpu and any(isinstance(each, nn.Dropout) and each.p > 0 for each in model.modules())
    grows = settings.loader.length_schedule is not None or trainer.batch_schedule is not None
    return not grows and not drops and not trainer.lacks_compiler() and plan.total_steps >= _MANY_STEPS


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles what the model's lists of modules hold, in place: its state dict stays as it is. The number of layers; a model
    without a list is compiled whole, as one."""
    layers = list(_layers(model)) or [model]
    for layer in layers:
        layer.compile(dynamic=False, backend=backend)
    return len(layers)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (layer for layer in child if any(True for _ in layer.children()))  # no single matrices and norms
        else:
            yield from _layers(child)


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Within it, compiled layers work as if they were not."""
    # without it nothing has been compiled
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()

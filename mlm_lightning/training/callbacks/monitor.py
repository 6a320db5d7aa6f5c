"""What the process and each layer do, as curves: to look at, and without a trace in the run.

gradients  summed over micro-batches and ranks   ─►  norms, times what MLMModule scales them by   (before clipping)
weights    before the step, after it             ─►  norm, and |change| / |weights|
"""

import contextlib
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mlm_lightning.training.limit import peak_memory_gb
from mlm_lightning.values import checked

_GB = 1e9


class Monitor(Callback):
    """Logs `monitor/…` every `trainer.log_every_n_steps` steps. `system`: the memory of the first rank's process and its CPU
    time (100 % is one core), and of its GPU. `layers`: by layer the norm of the gradient that a step applies, before clipping,
    the norm of the weights, and `update_ratio`, how far a step moves them in relation to it. The weights of before the step
    are kept for that while a logged step is made."""

    @checked("callbacks.monitor")
    def __init__(self, system: bool = True, layers: bool = True) -> None:
        self.system, self.layers = system, layers
        self._before: dict[str, tuple[Tensor | None, Tensor]] = {}  # the gradient's norm and the weights, by parameter
        self._clock = (0.0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._clock = (time.monotonic(), time.process_time())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.layers and (trainer.global_step + 1) % pl_module.plan.log_every_n_steps == 0:
            trained = ((name, each) for name, each in pl_module.model.named_parameters() if each.requires_grad)
            self._before = {name: (_norm(each.grad), each.detach().clone()) for name, each in trained}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not pl_module.at_step_boundary(batch_idx) or step % pl_module.plan.log_every_n_steps != 0:
            return
        metrics = self._of_system(pl_module.device) if self.system else {}
        if self.layers:
            metrics |= self._of_layers(pl_module)
        pl_module.log_scalars({f"monitor/{name}": value for name, value in metrics.items()}, step)

    def _of_layers(self, module: Any) -> dict[str, float]:
        """Each layer's norms, from those of its parameters: the root of the sum of their squares."""
        after, names, norms = dict(module.model.named_parameters()), [], []
        for name, (gradient_norm, before) in self._before.items():
            changes = [gradient_norm, _norm(before), _norm(after[name].detach() - before)]
            names.append(layer_of(name))
            norms.append(torch.stack([before.new_zeros((), dtype=torch.float32) if n is None else n for n in changes]))
        self._before = {}
        layers = list(dict.fromkeys(names))
        index_P = torch.tensor([layers.index(name) for name in names], device=module.device)
        squares_P3 = torch.stack(norms).square()
        norms_N3 = squares_P3.new_zeros(len(layers), 3).index_add(0, index_P, squares_P3).sqrt().tolist()
        scale, metrics = module.gradient_scale.item(), dict[str, float]()
        for layer, (gradient, weight, change) in zip(layers, norms_N3, strict=True):
            metrics |= {f"grad_norm/{layer}": gradient * scale, f"weight_norm/{layer}": weight}
            metrics[f"update_ratio/{layer}"] = change / weight if weight > 0 else math.nan
        return metrics

    def _of_system(self, device: torch.device) -> dict[str, float]:
        """Of this process, without its data workers."""
        before, self._clock = self._clock, (time.monotonic(), time.process_time())
        elapsed, busy = (now - then for now, then in zip(self._clock, before, strict=True))
        metrics = {"cpu_percent": 100 * busy / max(elapsed, 1e-9)} | _memory()
        if device.type == "cuda":
            metrics["gpu_memory_gb"] = torch.cuda.memory_allocated(device) / _GB
            metrics["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / _GB
            with contextlib.suppress(ImportError, RuntimeError):  # torch asks NVML, by a package of its own
                metrics["gpu_percent"] = float(torch.cuda.utilization(device))
        return metrics


def layer_of(parameter: str) -> str:
    """The layer of a parameter: `blocks.0` of `blocks.0.attention.qkv.weight`; without a number its module."""
    numbered = re.match(r"(.*?\.\d+)\.", parameter)
    return numbered[1] if numbered else parameter.rpartition(".")[0] or parameter


def _norm(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.linalg.vector_norm(tensor, dtype=torch.float32)


def _memory() -> dict[str, float]:
    metrics, statm = peak_memory_gb(torch.device("cpu")), Path("/proc/self/statm")
    if statm.exists():
        metrics["memory_gb"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _GB
    return metrics

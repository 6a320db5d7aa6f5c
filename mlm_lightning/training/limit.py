"""The machine's limit: the matrix work that a step's loss needs, and how fast this machine multiplies matrices, just now.

    work of a step / its seconds        what the run does
    ───────────────────────────── =  ────────────────────────  = share of peak
    rate of large matrix products       what could be done

Only products of matrices count: norms, activations and the optimizer are what keeps a share below 1.
"""

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.tasks import Batch
from mlm_lightning.training.compiled import eagerly
from mlm_lightning.training.loss import training_loss

_SECONDS = 0.1


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second (a multiplication and an addition are two) of the fastest of some products of square matrices."""
    size = 1024 if device.type == "cpu" else 8192
    one, other = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
    fastest, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _SECONDS or fastest == float("inf"):
        _wait(device)
        start = time.perf_counter()
        torch.mm(one, other)
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak_memory_gb(device: torch.device) -> dict[str, float]:
    """The most memory so far, of the GPU or of this process, as `peak_memory_gb`; empty where that is not known."""
    if device.type == "cuda":
        return {"peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}


def matrix_work(model: nn.Module, batch: Batch) -> float:
    """Operations of the matrix products of a forward and a backward pass over `batch`, with as many predicted places a row as
    its mean: counted without doing them. What a model can't do on the meta device raises what it raises."""
    shapes: Batch = batch._replace(attention_mask_BL=None)
    if isinstance(shapes, MLMBatch):
        predicted = int((shapes.labels_BL != IGNORE_INDEX).sum())
        places = max(1, round(predicted / len(shapes.labels_BL)))
        positions_BK = torch.zeros(len(shapes.labels_BL), places, dtype=torch.long)
        shapes = shapes._replace(positions_BK=positions_BK, hidden_BL=None)
    on_meta = type(batch)(*(None if each is None else each.to("meta") for each in shapes))  # type: ignore[arg-type]
    whole = _Loss(model)
    state: dict[str, Tensor] = {
        name: torch.empty_like(each, device="meta").requires_grad_(each.requires_grad)
        for name, each in [*whole.named_parameters(), *whole.named_buffers()]
    }
    with eagerly(), FlopCounterMode(display=False) as counter:
        torch.func.functional_call(whole, state, (on_meta,), tie_weights=True).backward()
    return float(counter.get_total_flops())


class _Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Any:
        return training_loss(self.model, batch, 0.0)[0]

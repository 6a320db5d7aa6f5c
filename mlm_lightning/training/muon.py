"""Muon for the matrices inside of a model, AdamW for everything else, as one optimizer with one learning rate.

hidden matrices                    momentum ─► orthogonalised ─► 0.2 · sqrt(larger side) · lr      torch.optim.Muon
embeddings, output, norms, biases                                                                  torch.optim.AdamW

Muon: Jordan et al. 2024; the factor on its learning rate, by which an update is as large as one of AdamW: Liu et al. 2025 (Muon
is scalable for LLM training, arXiv 2502.16982).
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.overrides import TorchFunctionMode

from mlm_lightning.config.trainer import cpu_multiplies_bf16
from mlm_lightning.errors import ConfigError
from mlm_lightning.values import checked


class MuonWithAdamW(Optimizer):
    """`matrices` are the weights that Muon trains, each with the number of equal matrices that are stacked in it, which are
    orthogonalised each for itself; None: all parameters of two dimensions. `mlm train` gives those of the model.

    `momentum`, `nesterov` and `ns_steps` (of the Newton-Schulz iteration) are Muon's, `betas`, `eps` and `fused` AdamW's.
    """

    @checked("optim")
    def __init__(
        self,
        params: Any,
        lr: Annotated[float, Gt(0)] = 3e-3,
        weight_decay: Annotated[float, Ge(0)] = 0.01,
        momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Interval(ge=1, le=99)] = 5,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: Annotated[float, Ge(0)] = 1e-8,
        fused: bool | None = None,
        matrices: Mapping[Tensor, int] | None = None,
    ) -> None:
        if getattr(torch.optim, "Muon", None) is None:
            raise ConfigError("optim._target_", "MuonWithAdamW", f"torch {torch.__version__} has no Muon", "install torch>=2.9")
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        of_muon: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        of_adamw: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "fused": fused}
        # they hold no parameters of their own: each step hands them the groups and the state
        self._muon = torch.optim.Muon([{"params": []}], **shared, **of_muon, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW([{"params": []}], **shared, **of_adamw)
        given = list(params)
        groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        split: list[dict[str, Any]] = []
        for group in groups:
            parameters = list(group["params"])
            counts = {p: 1 for p in parameters if p.ndim == 2} if matrices is None else matrices
            hidden, others = [p for p in parameters if p in counts], [p for p in parameters if p not in counts]
            if hidden:
                stacked = {"params": hidden, "stacked": [counts[p] for p in hidden]}
                split.append({**self._muon.defaults, **group, **stacked})
            if others:
                split.append({**self._adamw.defaults, **group, "params": others})
        super().__init__(split or groups, shared)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if "stacked" not in group]
        self._adamw.step()
        self._muon.state = defaultdict(dict)
        self._muon.param_groups = [self._views(group) for group in self.param_groups if "stacked" in group]
        on_cpu = any(view.device.type == "cpu" for view in self._muon.state)
        with _Float32() if on_cpu and not cpu_multiplies_bf16() else contextlib.nullcontext():
            self._muon.step()
        return loss

    def _views(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group with each stacked matrix for itself: views of weights, gradients and momentum, which a step writes to."""
        views: list[Tensor] = []
        for parameter, count in zip(group["params"], group["stacked"], strict=True):
            if parameter.grad is None:
                continue
            if not (state := self.state[parameter]):
                state["momentum_buffer"] = torch.zeros_like(parameter)
            parts = (each.detach().chunk(count) for each in (parameter, parameter.grad, state["momentum_buffer"]))
            for view, view.grad, buffer in zip(*parts, strict=True):
                self._muon.state[view] = {"momentum_buffer": buffer}
                views.append(view)
        return group | {"params": views}


class _Float32(TorchFunctionMode):
    """torch's Muon iterates in bfloat16. A CPU without instructions for it takes 15 to 40 times as long as in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].clone() if func == Tensor.bfloat16 else func(*args, **(kwargs or {}))

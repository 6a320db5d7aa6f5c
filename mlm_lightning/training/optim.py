"""What the optimizer decays, how fast each layer learns, and how the learning rate moves.

A schedule is a pure function: `schedule(step, total_steps)` is the factor on `optim.lr` at that optimizer step.

    factor  1 ┤    ╭──────╮  constant          warm-up is a number of steps, or a share of all steps if below 1
              │   ╱│╲     │╲ wsd
              │  ╱ │  ╲ linear, cosine
            0 ┤ ╱  │    ╲ │ ╲
              └─ warm-up ────────► step
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mlm_lightning.data.warmup import STEPS, in_steps
from mlm_lightning.errors import ConfigError
from mlm_lightning.training.parameters import depths, hidden_matrices
from mlm_lightning.values import checked

Warmup = Annotated[float, Ge(0), STEPS]
Final = Annotated[float, Interval(ge=0, le=1), "it is the last factor on optim.lr"]


def make_optimizer(make: Callable[..., Optimizer], model: nn.Module, layer_decay: float | None = None) -> Optimizer:
    """The optimizer that `make` builds from a model's groups. One that treats hidden matrices in its own way has a parameter
    `matrices`, for what `hidden_matrices` finds."""
    given = {"matrices": hidden_matrices(model)} if "matrices" in inspect.signature(make).parameters else {}
    optimizer = make(parameter_groups(model, layer_decay), **given)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def parameter_groups(model: nn.Module, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: matrices and embeddings decay as the optimizer says, biases and norms (fewer than
    two dimensions) don't (Devlin et al. 2018, as in their published optimizer).

    With `layer_decay` two groups for each depth from the top, whose `lr_scale` is layer_decay^depth (Howard, Ruder 2018,
    section 3.2; Clark et al. 2020)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if layer_decay is None:
        return _by_weight_decay(parameters)
    depth, groups = depths(model), list[dict[str, Any]]()
    for each in sorted({depth[parameter] for parameter in parameters}):
        scale = {"lr_scale": layer_decay**each}
        groups += [group | scale for group in _by_weight_decay([p for p in parameters if depth[p] == each])]
    return groups


def _by_weight_decay(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Schedule(ABC):
    """A warm-up from 0 to 1 over `warmup_steps` (below 1: that share of all steps), then `after_warmup`."""

    @checked("schedule")
    def __init__(self, warmup_steps: Warmup = 0) -> None:
        if warmup_steps > 1 and warmup_steps % 1 != 0:
            raise ConfigError("schedule.warmup_steps", warmup_steps, "is no whole number of steps", STEPS)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, total_steps: int) -> float:
        warmup = in_steps(self.warmup_steps, total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after_warmup(step - warmup, max(1, total_steps - warmup), total_steps)

    @abstractmethod
    def after_warmup(self, step: int, steps: int, total_steps: int) -> float:
        """The factor `step` steps after the warm-up, of `steps` after it and `total_steps` in all."""


class Constant(Schedule):
    """Stays at 1."""

    def after_warmup(self, step: int, steps: int, total_steps: int) -> float:
        return 1.0


class Linear(Schedule):
    """Falls from 1 to `final` in a straight line."""

    @checked("schedule")
    def __init__(self, warmup_steps: Warmup = 0, final: Final = 0.0) -> None:
        super().__init__(warmup_steps)
        self.final = float(final)

    def after_warmup(self, step: int, steps: int, total_steps: int) -> float:
        return 1.0 + (self.final - 1.0) * min(1.0, step / steps)


class Cosine(Schedule):
    """Falls from 1 to `final` along half a cosine (Loshchilov, Hutter 2017, without restarts)."""

    @checked("schedule")
    def __init__(self, warmup_steps: Warmup = 0, final: Final = 0.0) -> None:
        super().__init__(warmup_steps)
        self.final = float(final)

    def after_warmup(self, step: int, steps: int, total_steps: int) -> float:
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


class WSD(Schedule):
    """Warm-up, stable, decay: stays at 1, then falls to `final` in a straight line over the last `decay_steps` (below 1: that
    share of all steps) (Hu et al. 2024, MiniCPM)."""

    @checked("schedule")
    def __init__(self, warmup_steps: Warmup = 0, decay_steps: Annotated[float, Gt(0), STEPS] = 0.2, final: Final = 0.0) -> None:
        super().__init__(warmup_steps)
        self.decay_steps, self.final = decay_steps, float(final)

    def after_warmup(self, step: int, steps: int, total_steps: int) -> float:
        decay = max(1, min(in_steps(self.decay_steps, total_steps), steps))
        progress = max(0.0, step - (steps - decay)) / decay
        return 1.0 + (self.final - 1.0) * min(1.0, progress)


def scheduler(optimizer: Optimizer, schedule: Callable[[int, int], float], total_steps: int) -> LambdaLR:
    """torch's scheduler that multiplies each group's learning rate by `schedule(step, total_steps)`."""
    return LambdaLR(optimizer, partial(_factor, schedule=schedule, total_steps=total_steps))


def _factor(step: int, schedule: Callable[[int, int], float], total_steps: int) -> float:
    return schedule(step, total_steps)

"""A run that begins with the weights of another one: at its first step, with a new optimizer.

the other's checkpoint                      this model
    embedding.weight        ───────────►    embedding.weight          the encoder: all of it, or the run is refused
    encoder.layers.0 …      ───────────►    encoder.layers.0 …        init.freeze=encoder: and stays so
    decoder.head.weight     ─ ─ ─ ─ ─ ─►    decoder.head.weight       the head: kept where the task is the same, and it fits
"""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mlm_lightning.config.compose import read_config
from mlm_lightning.config.located import locate
from mlm_lightning.config.settings import Init, Settings
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.files import checksum
from mlm_lightning.models.protocol import HasHead
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, read_checkpoint

log = logging.getLogger(__name__)

_PREFIX = "model."
_MLM = {"_target_": "mlm_lightning.tasks.MLM"}


def freeze(model: nn.Module, init: Init) -> None:
    """Keeps what `init.freeze` names from being trained."""
    if init.freeze is None:
        return
    if not isinstance(model, HasHead):
        problem = f"the model {type(model).__name__} doesn't say what its head is: is_head(name)"
        raise ConfigError("init.freeze", init.freeze, problem, "set init.freeze=null")
    for name, parameter in model.named_parameters():
        if not model.is_head(name):
            parameter.requires_grad_(False)


def take_weights(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Gives a model the weights of the run that `init.from_run` names; what a manifest says about it. Raises UserError where it
    is gone or has changed, and ConfigError where its encoder doesn't fit."""
    init = settings.init
    assert init.from_run is not None
    folder, checkpoint = locate(init.from_run, "init.from_run")
    if checksum(checkpoint) != init.weights:
        raise UserError(f"init.from_run={init.from_run}: {checkpoint} has changed since this command began; call it again")
    try:
        read = read_checkpoint(checkpoint, sealed=True)
    except DamagedCheckpointError as error:
        raise ConfigError("init.from_run", str(checkpoint), str(error)) from error
    there = {name.removeprefix(_PREFIX): each for name, each in read["state_dict"].items() if name.startswith(_PREFIX)}
    same_task = (read_config(folder).get("task") or _MLM) == (settings.composed.get("task") or _MLM)
    taken = _fitting(model, there, same_task, init.from_run)
    model.load_state_dict(taken, strict=False)
    new = [name for name in model.state_dict() if name not in taken]
    step = read["global_step"]
    log.info("%-12s of %s, step %s; new: %s", "weights", checkpoint, f"{step:,}", ", ".join(new) or "nothing")
    return {"checkpoint": str(checkpoint), "step": step, "content": init.weights, "new": new}


def _fitting(model: nn.Module, there: dict[str, Tensor], same_task: bool, run: str) -> dict[str, Tensor]:
    """Those of the other run's weights that the model takes."""
    here, taken, wrong = model.state_dict(), dict[str, Tensor](), []
    for name in {**here, **there}:
        is_head = isinstance(model, HasHead) and model.is_head(name)
        shapes = [tuple(state[name].shape) if name in state else None for state in (there, here)]
        if shapes[0] == shapes[1] and (same_task or not is_head):
            taken[name] = there[name]
        elif not is_head:
            before, now = ("not there" if shape is None else str(shape) for shape in shapes)
            wrong.append(f"{name}: {before} → {now}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        problem = f"its encoder is not that of this model (there → here): {', '.join(wrong[:3])}{more}"
        raise ConfigError("init.from_run", Path(run).name, problem, "choose the same model and data as there")
    return taken

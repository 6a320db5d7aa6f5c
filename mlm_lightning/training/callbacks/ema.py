"""An average of the weights over the steps, which is what a run evaluates, shows and leaves behind.

step       1     2     3                    the model has the weights that are trained,
weights    w1    w2    w3                   and from a validation to the next step their average
average    w1 ─► a2 ─► a3    a = decay · a + (1 - decay) · w
"""

from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Interval
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlm_lightning.errors import UserError
from mlm_lightning.runs.checkpoint import AVERAGING
from mlm_lightning.values import checked


class EMA(Callback):
    """Keeps an exponential moving average of the weights. Validations, samples, the summary and checkpoints use it, and so does
    all that opens a checkpoint; the weights that training goes on with lie beside it there. Training is what it is without.

    The average of n steps has the decay min(`decay`, (1 + n) / (10 + n)): the weights of the first steps, which know nothing
    yet, are soon forgotten.
    """

    @checked("callbacks.ema")
    def __init__(self, decay: Annotated[float, Interval(gt=0, lt=1), "0.999 averages over about 1,000 steps"] = 0.999) -> None:
        self.decay = decay
        self._average: AveragedModel | None = None
        self._updates = 0
        self._is_in_model = False  # then `_average` holds the weights that training goes on with

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            raise UserError("callbacks.ema: averages whole weights, and trainer.strategy shards them; use trainer.strategy=ddp")
        # of the model alone: Lightning's WeightAveraging copies its LightningModule whole, with the data sources in it, and
        # gives the weights back before callbacks that look at the model, or save it, after a validation
        self._average = AveragedModel(pl_module.model, multi_avg_fn=self._move)
        self._updates, self._is_in_model = 0, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self._average is not None
        self._average.module.to(pl_module.device)

    def _move(self, average: Any, weights: Any, _: Any) -> None:
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        get_ema_multi_avg_fn(decay)(average, weights, self._updates)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._put_into_model(pl_module.model, average=False)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.at_step_boundary(batch_idx):
            assert self._average is not None
            self._average.update_parameters(pl_module.model)
            self._updates += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._put_into_model(pl_module.model, average=True)

    # not after validations: what looks at the model then is to see what was evaluated
    on_test_start = on_predict_start = on_train_end = on_validation_start

    @torch.no_grad()
    def _put_into_model(self, model: nn.Module, average: bool) -> None:
        if self._average is None or self._updates == 0 or self._is_in_model == average:
            return
        for one, other in zip(model.parameters(), self._average.module.parameters(), strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
        self._is_in_model = average

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._average is None or self._updates == 0:
            return
        held = [_as_in_checkpoint(each) for each in (pl_module.model, self._average.module)]
        average, weights = held if self._is_in_model else reversed(held)
        state = dict(checkpoint["state_dict"])
        checkpoint["state_dict"] = state | average
        checkpoint[AVERAGING] = {"weights": state | weights, "updates": self._updates}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if AVERAGING in checkpoint and self._average is not None:
            self._updates, average = checkpoint[AVERAGING]["updates"], checkpoint[AVERAGING]["average"]
            names = _as_in_checkpoint(self._average.module)
            self._average.module.load_state_dict({name.removeprefix("model."): average[name] for name in names})
            self._average.n_averaged.fill_(self._updates)


def _as_in_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": value for name, value in model.state_dict().items()}

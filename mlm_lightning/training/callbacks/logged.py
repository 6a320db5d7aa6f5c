"""What callbacks log in a validation, by `pl_module.log`, is a metric of the run like ours."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback

from mlm_lightning.config.feasible import no_metric
from mlm_lightning.errors import refuse
from mlm_lightning.training.lightning_internals import count_step


class Logged(Callback):
    """The first of the callbacks: lets the others see what was logged as `val/…` (on the first rank) in `last_metrics`, and
    Lightning draw it at the step of ours. After the first validation it refuses `asked`, metrics by the keys of settings that
    name them, which nobody logged."""

    def __init__(self, asked: Mapping[str, str]) -> None:
        self._asked = asked

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        count_step(trainer, int(trainer.state.fn == "fit"))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        count_step(trainer, -int(trainer.state.fn == "fit"))
        logged = trainer.callback_metrics
        theirs = {name: float(value) for name, value in logged.items() if name.startswith("val/")}
        pl_module.last_metrics = trainer.strategy.broadcast(theirs) | pl_module.last_metrics
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            there = {**logged, **pl_module.last_metrics}
            refuse(no_metric(key, name, list(there)) for key, name in self._asked.items() if name not in there)

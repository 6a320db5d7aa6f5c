"""A run of a search that falls behind is given up once its checkpoint is written."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.errors import PrunedError
from mlm_lightning.runs.study import open_study
from mlm_lightning.training.module import MLMModule


class Pruning(Callback):
    """Reports each validation to the search, and ends a run that falls behind once its checkpoint is written."""

    def __init__(self, folder: Path, settings: SweepSettings) -> None:
        assert settings.trial is not None
        self._folder, self._settings, self._trial = folder, settings, settings.trial
        self._message = ""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        assert isinstance(pl_module, MLMModule)
        if trainer.state.fn != "fit" or trainer.global_step >= pl_module.plan.total_steps:
            return
        message = ""
        if trainer.is_global_zero:
            from optuna.trial import Trial

            study = open_study(self._folder, self._settings)
            trial = Trial(study, study.trials[self._trial]._trial_id)
            name, step = self._settings.objective, trainer.global_step
            trial.report(pl_module.last_metrics[name], step)
            if trial.should_prune():
                message = f"given up after step {step}: {name} {pl_module.last_metrics[name]:.4g} is worse than the median"
        self._message = trainer.strategy.broadcast(message)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._message:
            raise PrunedError(self._message)

"""The record of a search: Optuna's study of a sweep's folder, which its runs report to and its next command goes on from."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.packages import need

if TYPE_CHECKING:
    import optuna

STORAGE = "search.log"


def open_study(folder: Path, settings: SweepSettings) -> "optuna.Study":
    """The study of a sweep's folder; made if it isn't there."""
    need(f"sweep.trials={settings.trials}", "optuna")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if settings.prune else optuna.pruners.NopPruner()
    return optuna.create_study(
        study_name=folder.name, storage=storage, pruner=pruner, direction=settings.direction, load_if_exists=True
    )

"""The record of a search: Optuna's study of a sweep's folder, which its runs report to and its next command goes on from.

A study notes what it was made for, and no other search may go on with it: its trials would be counted as results of that one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_lightning.config.composed import Composed
from mlm_lightning.config.settings import SweepSettings
from mlm_lightning.errors import UserError, as_typed
from mlm_lightning.packages import need
from mlm_lightning.runs.checkpoint import differences, flat
from mlm_lightning.runs.identity import deciding

if TYPE_CHECKING:
    import optuna

STORAGE = "search.log"
NOTE = "made for"
"""The attribute of a study that notes it; studies of earlier versions have none."""


def open_study(folder: Path, settings: SweepSettings) -> "optuna.Study":
    """The study of a sweep's folder, whatever the folder was called when it began; made if it isn't there."""
    need(f"sweep.trials={settings.trials}", "optuna")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if settings.prune else optuna.pruners.NopPruner()
    if names := optuna.get_all_study_names(storage):
        name = folder.name if folder.name in names else names[0]
        return optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    return optuna.create_study(
        study_name=folder.name, storage=storage, pruner=pruner, direction=settings.direction, load_if_exists=True
    )


def description(run: Composed, processes: int, space: "Mapping[str, optuna.distributions.BaseDistribution]") -> dict[str, str]:
    """What a search is, by the config of one of its runs: what it looks for, the keys that decide, and all values of those that
    it searches in."""
    sweep = {key: run.get(key) for key in ("sweep.objective", "sweep.direction", "sweep.seed")}
    fixed = flat(deciding(run.config, processes)) | sweep
    # the values of a choice are texts
    searched = {key.lstrip("+"): ",".join(getattr(each, "choices", [str(each)])) for key, each in space.items()}
    return {key: as_typed(value) for key, value in fixed.items()} | searched


def check_same(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError where two descriptions of the search in a folder differ."""
    if changes := differences(before, now):
        raise UserError(
            f"name={folder.name}: {folder / STORAGE} has the trials of another search (there → here):\n"
            + "".join(f"  {each}\n" for each in changes)
            + "name=OTHER begins a search of its own; of the same one, sweep.trials, jobs, retries and prune may change"
        )

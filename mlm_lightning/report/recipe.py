"""The command line that trains a run once more: `mlm train` and the overrides that the run's manifest keeps.

    manifest.json   overrides  ["sweep=mask_rate", "masking.rate=0.1", "sweep.jobs=2"]
                    config_dir "conf"
    ─►  mlm train --config-dir conf sweep=mask_rate masking.rate=0.1 hydra.mode=RUN

It is composed to see whether it gives the run's config, so a report prints a command that has been checked.
"""

import shlex
from typing import NamedTuple

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.errors import UserError
from mlm_lightning.report.results import Result
from mlm_lightning.runs.identity import identity


class Recipe(NamedTuple):
    command: str
    is_checked: bool
    """Whether the command gives the run's config with the version and the configs that are here."""


def recipe_of(result: Result) -> Recipe | None:
    """None where a run kept no overrides: one of an older version, outside of a sweep."""
    overrides = result.manifest.get("overrides")
    overrides = result.job_overrides if overrides is None else overrides
    if overrides is None:
        return None
    # how the runs of a sweep are started is nothing that one run needs; and resume=never would start it again
    left_out = ("hydra/", "hydra.mode", "hydra.sweep", "hydra.launcher", "launcher=", "sweep.")
    overrides = [each for each in overrides if not each.lstrip("+~").startswith(left_out) and each != "resume=never"]
    config_dir, config_name = result.manifest.get("config_dir"), result.manifest.get("config_name")
    is_checked = False
    try:
        with composer(config_dir, config_name) as hydra:
            config = hydra.compose(hydra.plain(overrides))
            if str(config.hydra.mode) == "RunMode.MULTIRUN":  # sweep=NAME would start all runs of the sweep
                overrides.append("hydra.mode=RUN")
            is_checked = identity(to_plain(config)) == identity(result.config)
    except UserError:  # made by another version, or its folder of configs is gone
        pass
    flags = [("--config-dir", config_dir), ("--config-name", config_name)]
    words = [word for name, value in flags if value is not None for word in (name, value)]
    return Recipe(shlex.join(["mlm", "train", *words, *overrides]), is_checked)

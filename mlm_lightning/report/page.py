"""One page that needs nothing else: the question and its answer, the figures, the tables, the conditions it was made under.

    question, answer ─ command ─ what went wrong ─ figures ─ groups ─ runs ─ manifest

The page is `templates/page.html.jinja`; here is what it is filled with. Style, script and pictures are in the file, and nothing
is loaded from anywhere. Whatever comes from a run is escaped.

The command is `mlm train` with the overrides that the best run's manifest keeps:

    manifest.json   overrides  ["sweep=mask_rate", "masking.rate=0.1", "sweep.jobs=2"]
                    config_dir "conf"
    ─►  mlm train --config-dir conf sweep=mask_rate masking.rate=0.1 hydra.mode=RUN

It is composed to see whether it gives the run's config, so a report prints a command that has been checked.
"""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlm_lightning.config.compose import composer, to_plain
from mlm_lightning.errors import UserError
from mlm_lightning.report import tables
from mlm_lightning.report.results import Result
from mlm_lightning.report.study import Study
from mlm_lightning.report.style import Picture
from mlm_lightning.runs.identity import identity

TEMPLATES = Path(__file__).parent / "templates"
MOST_SIDE_BY_SIDE = 6
"""Runs whose every difference and metric are shown."""


class Recipe(NamedTuple):
    """A command line that trains a run once more."""

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


def page(study: Study, pictures: Sequence[Picture], recipe: Recipe | None) -> str:
    """The whole page; `recipe` is that of the best run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    results = study.collection.results
    equal, unequal = tables.manifest_table(study)
    data_swept = any(axis.key.startswith("data.") for axis in study.axes)
    repeated = len(study.ranked) > 1 and any(len(group.results) > 1 for group in study.ranked)
    few = study.collection.home is None and 1 < len(results) <= MOST_SIDE_BY_SIDE
    problems = [each for each in results if each.status in ("failed", "pruned", "damaged")]
    return environment.get_template("page.html.jinja").render(
        study=study,
        question=tables.question(study),
        answer=tables.answer(study),
        recipe=recipe,
        unequal=[(key, values) for key, values in unequal if not (key == "data" and data_swept)],
        problems=tables.Table(["run", "status", "reason"], [[each.name, each.status, each.detail] for each in problems]),
        conditions=tables.condition_table(study) if study.conditions and study.ranked else None,
        pictures=pictures,
        groups=tables.group_table(study) if repeated else None,
        comparisons=few
        * [("What differs", tables.difference_table(results)), ("Metrics side by side", tables.metric_table(results))],
        runs=tables.run_table(study),
        made_with=tables.Table(["", "value"], [*equal, *unequal]),
    )

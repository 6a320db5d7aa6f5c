"""One page that needs nothing else: the question and its answer, the figures, the tables, the conditions it was made under.

    question, answer ─ command ─ what went wrong ─ figures ─ groups ─ runs ─ manifest

The page is `templates/page.html.jinja`; here is what it is filled with. Style, script and pictures are in the file, and nothing
is loaded from anywhere. Whatever comes from a run is escaped.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

from mlm_lightning.report.answer import answer, question
from mlm_lightning.report.figures.style import Picture
from mlm_lightning.report.recipe import Recipe
from mlm_lightning.report.study import Study
from mlm_lightning.report.tables import (
    Table,
    condition_table,
    difference_table,
    group_table,
    manifest_table,
    metric_table,
    run_table,
)

TEMPLATES = Path(__file__).parent / "templates"
MOST_SIDE_BY_SIDE = 6
"""Runs whose every difference and metric are shown."""
PIXELS_PER_INCH = 110


def page(study: Study, pictures: Sequence[Picture], recipe: Recipe | None) -> str:
    """The whole page; `recipe` is that of the best run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    collection, results = study.collection, study.collection.results
    equal, unequal = manifest_table(study)
    data_swept = any(axis.key.startswith("data.") for axis in study.axes)
    repeated = len(study.ranked) > 1 and any(len(group.results) > 1 for group in study.ranked)
    side_by_side = collection.home is None and 1 < len(results) <= MOST_SIDE_BY_SIDE
    problems = [result for result in results if result.status in ("failed", "pruned", "damaged")]
    return environment.get_template("page.html.jinja").render(
        title=collection.title,
        question=question(study),
        counts=collection.counts,
        answer=answer(study),
        best=study.best,
        recipe=recipe,
        unequal=[row for row in unequal if not (row[0] == "data" and data_swept)],
        problems=Table(["run", "status", "reason"], [[result.name, result.status, result.detail] for result in problems]),
        conditions=condition_table(study) if study.conditions and study.ranked else None,
        pictures=[
            {
                "base64": base64.b64encode(picture.png).decode(),
                "caption": picture.caption,
                "width": round(picture.figure.get_figwidth() * PIXELS_PER_INCH),
            }
            for picture in pictures
        ],
        groups=group_table(study) if repeated else None,
        comparisons={"What differs": difference_table(results), "Metrics side by side": metric_table(results)}
        if side_by_side
        else {},
        runs=run_table(study),
        axes=study.axes,
        unlisted=collection.unlisted,
        made_with=Table(["", "value"], [*equal, *unequal]),
    )

"""What a reader sees of a report: a page that needs nothing else, and a summary on the terminal.

    question, answer ─ command ─ what went wrong ─ figures ─ groups ─ runs ─ analyses ─ manifest

The page is `templates/page.html.jinja`; here is what it is filled with. Style, script and pictures are in the file, and nothing
is loaded from anywhere. Whatever comes from a run is escaped.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

from mlm_lightning.messages import print_table, print_text
from mlm_lightning.report import gaps, tables
from mlm_lightning.report.analyses import analyses
from mlm_lightning.report.answer import answer, pairing, question
from mlm_lightning.report.results import Recipe
from mlm_lightning.report.study import Study
from mlm_lightning.report.style import TEMPLATES, Picture

MOST_SIDE_BY_SIDE = 6
"""Runs whose every difference and metric are shown."""


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
        question=question(study),
        answer=answer(study),
        recipe=recipe,
        unequal=[(key, values) for key, values in unequal if not (key == "data" and data_swept)],
        problems=tables.Table(["run", "status", "reason"], [[each.name, each.status, each.detail] for each in problems]),
        conditions=tables.condition_table(study) if study.conditions and study.ranked else None,
        languages=gaps.table(found) if (found := gaps.gaps(study)) else None,
        pairing=pairing(study),
        differences=tables.paired_table(study) if any(each.differences for each in study.standings) else None,
        pictures=pictures,
        groups=tables.group_table(study) if repeated else None,
        comparisons=few
        * [("What differs", tables.difference_table(results)), ("Metrics side by side", tables.metric_table(results))],
        runs=tables.run_table(study),
        analyses=analyses(study.collection),
        made_with=tables.Table(["", "value"], [*equal, *unequal]),
    )


def show(study: Study, recipe: Recipe | None, page: Path) -> None:
    """Prints a line a run, then the question, its answer, and the command of the best run; `page` is the path of the page."""
    show_runs(study)
    counts = ", ".join(f"{count} {status}" for status, count in study.collection.counts.items())
    lines = [f"{study.collection.title}: {counts}", question(study), *(f"  {each}" for each in answer(study))]
    lines += [f"{', '.join(axis.noted)}: changes with {axis.name}" for axis in study.axes if axis.noted]
    if unlisted := study.collection.unlisted:
        lines.append(f"in the folder, but not of this sweep: {', '.join(unlisted)}")
    if copies := study.collection.copies:
        lines.append(f"counted once: {', '.join(copies)}")
    if study.best:
        lines.append(f"best run     {study.best.folder}")
    if recipe:
        note = "" if recipe.is_checked else "   (gives another config here: version or configs differ)"
        lines.append(f"             {recipe.command}{note}")
    print_text("\n".join([*lines, f"report       {page}"]))


def show_runs(study: Study, most: int = 10**9) -> None:
    """Prints a line a run, the best one starred where groups can be compared; then a line a group, where each is on data of
    its own."""
    (header, rows), left_out = tables.short_table(study, most)
    start = header.index("status") + 1
    print_table(rows, header, right=range(start, len(header) - 1))
    if left_out:
        print_text(f"  … and {left_out} further runs")
    if found := gaps.gaps(study):
        table = gaps.table(found)
        print_text()
        print_table(table.rows, table.header, right=range(1, len(table.header)))

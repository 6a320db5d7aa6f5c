"""A report on the terminal: a line a run, then the question, its answer, and the command of the best run."""

import sys
from pathlib import Path

from mlm_lightning.report.answer import answer, question
from mlm_lightning.report.recipe import Recipe
from mlm_lightning.report.study import Study
from mlm_lightning.report.tables import run_table


def show(study: Study, recipe: Recipe | None, page: Path) -> None:
    """Prints it; `page` is where the whole report was written."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # a pipe or a file has no width that a table must fit in
    console = Console(width=None if sys.stdout.isatty() else 240)
    runs, table = run_table(study), Table(box=None, padding=(0, 2, 0, 0))
    for name in runs.header:
        table.add_column(name, overflow="fold", justify="right" if name.startswith(("val/", "mean")) else "left")
    for row in runs.rows:
        table.add_row(*map(Text, row))
    console.print(table)
    counts = ", ".join(f"{count} {status}" for status, count in study.collection.counts.items())
    lines = [f"{study.collection.title}: {counts}", question(study), *(f"  {sentence}" for sentence in answer(study))]
    lines += [f"{', '.join(axis.also)}: changes with {axis.name}" for axis in study.axes if axis.also]
    if unlisted := study.collection.unlisted:
        lines.append(f"in the folder, but not of this sweep: {', '.join(unlisted)}")
    if study.best:
        lines.append(f"best run     {study.best.folder}")
    if recipe:
        note = "" if recipe.is_checked else "   (gives another config here: version or configs differ)"
        lines.append(f"             {recipe.command}{note}")
    for line in [*lines, f"report       {page}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

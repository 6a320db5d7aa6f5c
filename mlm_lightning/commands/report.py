"""`mlm report`: tables and plots of a sweep, also while it runs, or of some runs side by side."""

from pathlib import Path

from mlm_lightning.commands.arguments import Parser
from mlm_lightning.errors import UserError
from mlm_lightning.files import write_atomically
from mlm_lightning.packages import need
from mlm_lightning.values import expanded

HELP = """\
mlm report PATH… [--output DIR] [--metric val/loss]

What a sweep has found so far, or how some runs compare: on the terminal, and as report.html, results.csv (a line a run),
groups.csv and groups.tex (a line a group) and plots (PNG, SVG, PDF).

  mlm report outputs/mask_rate                    a sweep's folder; also while the sweep runs
  mlm report RUN RUN                              runs side by side, written to ./report
  mlm report outputs/mask_rate --metric val/accuracy --output mask_rate_report

Runs that differ in a seed alone are one group: mean and 95 % interval (Student's t). Where the task differs, groups are
compared under one condition at a time, or not at all. Needs matplotlib and Jinja2.
"""


def main(arguments: list[str]) -> int:
    parser = Parser(HELP)
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser.add_argument("--output")
    parser.add_argument("--metric")
    flags = parser.parse(arguments)
    report(flags.paths, flags.output, flags.metric)
    return 0


def report(paths: list[str], output: str | None = None, metric: str | None = None) -> Path:
    """Prints and writes the report; returns the page's path. Raises UserError for a path that is no run and no sweep."""
    need("mlm report", "matplotlib", "Jinja2")
    from mlm_lightning.report.figures import draw
    from mlm_lightning.report.page import page, show
    from mlm_lightning.report.results import collect, recipe_of
    from mlm_lightning.report.study import study
    from mlm_lightning.report.style import FORMATS
    from mlm_lightning.report.tables import groups_csv, groups_tex, results_csv

    found = study(collect(paths), metric)
    recipe = recipe_of(found.best) if found.best else None
    folder = expanded(output) if output else (found.collection.home or Path()) / "report"
    pictures = draw(found)
    texts = {"results.csv": results_csv(found.collection), "groups.csv": groups_csv(found), "groups.tex": groups_tex(found)}
    files = {name: text.encode() for name, text in texts.items()}
    files |= {
        f"{each.name}.{kind}": each.png if kind == "png" else each.rendered(kind) for each in pictures for kind in FORMATS
    }
    files["report.html"] = page(found, pictures, recipe).encode()  # last: where it is, the others are
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise UserError(f"--output {folder}: can't be written: {error.strerror or error}") from error
    show(found, recipe, folder / "report.html")
    return folder / "report.html"

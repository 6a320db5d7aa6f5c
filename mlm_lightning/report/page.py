"""One page that needs nothing else: the question and its answer, the figures, the tables, the conditions it was made under.

    question, answer ─ command ─ what went wrong ─ figures ─ groups ─ runs ─ manifest

Style and pictures are in the file, and nothing is loaded from anywhere. Whatever comes from a run is escaped.
"""

import base64
import math
from collections.abc import Sequence
from html import escape

from mlm_lightning.report.figures import Picture, label
from mlm_lightning.report.study import Interval, Study
from mlm_lightning.report.tables import (
    condition_table,
    difference_table,
    group_table,
    manifest_table,
    metric_table,
    number,
    run_table,
    with_interval,
)

MOST_SIDE_BY_SIDE = 6
"""Runs whose every difference and metric are shown."""

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 66rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.question { color: #555; margin: .2rem 0 1rem; }
.answer { border-left: 4px solid #0072B2; padding: .3rem 0 .3rem 1rem; margin: 1rem 0; }
.answer p { margin: .25rem 0; } .answer .main { font-size: 1.15rem; }
.warning { border-left: 4px solid #D55E00; padding: .3rem 0 .3rem 1rem; margin: 1rem 0; }
.note, figcaption { color: #555; font-size: .9rem; }
.counts span { display: inline-block; border: 1px solid #bbb; border-radius: 1rem; padding: 0 .7rem; margin: 0 .3rem .3rem 0; }
.command { display: flex; gap: .6rem; align-items: flex-start; }
pre { background: #f5f5f5; padding: .6rem .8rem; margin: 0; flex: 1; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.45 ui-monospace, monospace; user-select: all; }
button { font: inherit; font-size: .85rem; padding: .3rem .7rem; border: 1px solid #999; border-radius: .3rem;
  background: #fff; cursor: pointer; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
th { border-bottom: 1.5px solid #555; font-weight: 600; } td.n { text-align: right; white-space: nowrap; }
th.n { text-align: right; }
td { overflow-wrap: anywhere; } td.s, th.s, th.n { white-space: nowrap; } th { overflow-wrap: anywhere; }
.sortable { font-size: .84rem; } .sortable th { cursor: pointer; } .sortable th:hover { color: #0072B2; }
.sortable th[data-up="1"]::after { content: " ↑"; }
.sortable th[data-up="0"]::after { content: " ↓"; }
@media print { button { display: none; } body { margin: 0; max-width: none; font-size: 11pt; } figure { break-inside: avoid; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.up !== "1", body = table.tBodies[0];
    const key = row => row.cells[column].textContent.replace(/,/g, "");
    table.querySelectorAll("th").forEach(each => delete each.dataset.up);
    head.dataset.up = up ? "1" : "0";
    [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)], order = parseFloat(x) - parseFloat(y);
      return (up ? 1 : -1) * (isNaN(order) ? x.localeCompare(y, undefined, {numeric: true}) : order);
    }).forEach(row => body.append(row));
  }));
for (const button of document.querySelectorAll("button.copy"))
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    document.execCommand("copy");
    button.textContent = "copied";
  });
"""


def page(study: Study, pictures: Sequence[Picture], command: tuple[str, bool] | None) -> str:
    """The whole page. `command` is that of the best run, and whether it was found to give that run's config."""
    title = study.collection.title
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="question">{escape(question(study))}</p>',
        _counts(study),
        _answer(study),
        _best_command(study, command),
        _warnings(study),
        _problems(study),
        _conditions(study),
        *map(_figure, pictures),
        _groups(study),
        _differences(study),
        _section("Runs", _table(*run_table(study), sortable=True) + _notes(study)),
        _manifest(study),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def question(study: Study) -> str:
    """What the runs can answer, in one sentence."""
    words = label(study.metric).partition(" (")[0].partition(",")[0]
    goal = f"{'highest' if study.metric.maximize else 'lowest'} {words}"
    if not study.axes:
        return f"Which {words} does this configuration reach?"
    if study.collection.home is None and len(study.collection.results) == len(study.groups):
        return f"Which of these {len(study.groups)} runs has the {goal}?"
    return f"Which {' and '.join(axis.name for axis in study.axes)} give{'s' * (len(study.axes) == 1)} the {goal}?"


def answer(study: Study) -> list[str]:
    """The answer's sentences: the best group, its metric, the oracle's limit, how sure it is."""
    if not study.ranked:
        return ["No complete run has it yet."]
    best = study.ranked[0]
    found, limit = best.interval(study.metric), best.limit(study.metric)
    assert found is not None
    unit = label(study.metric).partition(" (")[2].rstrip(")")
    several = f" (95 % interval, {found.n} seeds)" if found.n > 1 else " (one run: no interval)"
    lines = [f"{study.name(best)}: {with_interval(found)} {unit}".rstrip() + several]
    if math.isfinite(limit) and limit != 0:
        lines.append(f"Best possible (oracle): {number(limit)}; the excess over it is {number(abs(found.mean - limit))}.")
    if study.metric.note:
        lines.append(f"Compared by {study.metric.name}: {study.metric.note}.")
    return [*lines, *_certainty(study, found)]


def _certainty(study: Study, best: Interval) -> list[str]:
    """How the best group's interval lies to the others'."""
    others = [(group, found) for group in study.ranked[1:] if (found := group.interval(study.metric)) is not None]
    if not others:
        return []
    if best.n == max(found.n for _, found in others) == 1:
        return ["One run a group: how much of the difference is chance can't be told."]
    alike = [study.name(group) for group, found in others if found.overlaps(best)]
    if not alike:
        return ["No other group's interval overlaps it."]
    share = (
        f"all {len(others)} other groups" if len(alike) == len(others) > 1 else f"{len(alike)} of {len(others)} other groups"
    )
    names = "; ".join(alike[:4]) + ("; …" if len(alike) > 4 else "")
    return [f"Its interval overlaps that of {share} ({names})."]


def _counts(study: Study) -> str:
    chips = "".join(f"<span>{count} {escape(status)}</span>" for status, count in study.collection.counts.items())
    return f'<p class="counts">{chips}</p>'


def _answer(study: Study) -> str:
    first, *more = answer(study)
    rest = "".join(f"<p>{escape(line)}</p>" for line in more)
    return f'<div class="answer"><p class="main"><b>{escape(first)}</b></p>{rest}</div>'


def _best_command(study: Study, command: tuple[str, bool] | None) -> str:
    if command is None or study.best is None:
        return ""
    text, checked = command
    note = "" if checked else '<p class="note">This command gives another config here: version or configs differ.</p>'
    body = f'<div class="command"><pre>{escape(text)}</pre><button class="copy">copy</button></div>{note}'
    return _section("The best run", f'<p class="note">{escape(str(study.best.folder))}</p>{body}')


def _warnings(study: Study) -> str:
    _, unequal = manifest_table(study)
    data_swept = any(axis.key.startswith("data.") for axis in study.axes)
    rows = [row for row in unequal if not (row[0] == "data" and data_swept)]
    if not rows:
        return ""
    items = "".join(f"<li><b>{escape(key)}</b>: {escape(values)}</li>" for key, values in rows)
    return (
        '<div class="warning"><p>These runs were not made under the same conditions, and may not be comparable:</p>'
        f"<ul>{items}</ul></div>"
    )


def _problems(study: Study) -> str:
    found = [result for result in study.collection.results if result.status in ("failed", "pruned", "damaged")]
    rows = [[result.name, result.status, result.detail] for result in found]
    return _section("What went wrong", _table(["run", "status", "reason"], rows)) if rows else ""


def _conditions(study: Study) -> str:
    if not study.conditions or not study.ranked:
        return ""
    return _section("By evaluation condition", _table(*condition_table(study)))


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    width = round(picture.figure.get_figwidth() * 110)
    caption = escape(picture.caption)
    image = f'<img src="data:image/png;base64,{data}" style="width: {width}px" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _groups(study: Study) -> str:
    if len(study.ranked) < 2 or all(len(group.results) == 1 for group in study.ranked):
        return ""
    note = '<p class="note">Mean ± half of the 95 % interval over the n runs of a group (Student’s t).</p>'
    return _section("Groups", _table(*group_table(study), sortable=True) + note)


def _differences(study: Study) -> str:
    """Of a few runs that are compared: all that differs between them, and all metrics."""
    results = study.collection.results
    if study.collection.home is not None or not 1 < len(results) <= MOST_SIDE_BY_SIDE:
        return ""
    tables = (("What differs", difference_table(results)), ("Metrics side by side", metric_table(results)))
    return "\n".join(_section(title, _table(*table)) for title, table in tables if table[1])


def _notes(study: Study) -> str:
    lines = [f"{', '.join(axis.also)}: changes with {axis.name}." for axis in study.axes if axis.also]
    if unlisted := study.collection.unlisted:
        lines.append(f"In the folder, but not of this sweep: {', '.join(unlisted)}.")
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _manifest(study: Study) -> str:
    equal, unequal = manifest_table(study)
    rows = [*equal, *unequal]
    return _section("Made with", _table(["", "value"], rows)) if rows else ""


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], sortable: bool = False) -> str:
    numeric = [all(_is_numeric(row[column]) for row in rows) for column in range(len(header))]
    short = [all(len(row[column]) <= 28 for row in rows) for column in range(len(header))]
    kind = [' class="n"' if n else ' class="s"' if s else "" for n, s in zip(numeric, short, strict=True)]
    heads = (of if len(name) <= 24 else "" for of, name in zip(kind, header, strict=True))
    head = "".join(f"<th{of}>{escape(name)}</th>" for of, name in zip(heads, header, strict=True))
    lines = ("".join(f"<td{of}>{escape(cell)}</td>" for of, cell in zip(kind, row, strict=True)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    classes = ' class="sortable" title="a click on a column sorts by it"' if sortable else ""
    return f'<div class="wide"><table{classes}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _is_numeric(text: str) -> bool:
    try:
        float(text.partition(" ± ")[0].replace(",", ""))
    except ValueError:
        return text == "–"
    return True

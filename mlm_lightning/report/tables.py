"""A study's tables as plain cells, for terminal and page, and the files of them."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlm_lightning.report.groups import Group, as_text, differing
from mlm_lightning.report.metric import DEFAULT, Interval, Metric, condition_name, label, mean
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.report.study import Study
from mlm_lightning.runs.checkpoint import flat

_MAIN_METRICS = ("val/loss", "val/oracle_loss", "val/excess_loss", "val/unigram_loss", "val/bigram_loss", "val/accuracy")
_COSTS = ("seconds", "tokens")
_MOST_COLUMNS = 4  # of metrics, in a terminal
# They name a run, follow from its config, or have a sentence of their own.
_NOT_COMPARED = (
    *("kinship", "on_one_process", "processes", "parent", "num_parameters", "splits", "code_folders", "ngrams"),
    *("overrides", "config_dir", "config_name", "working_directory", "folder"),
)


class Table(NamedTuple):
    """A header and rows of the same length."""

    header: list[str]
    rows: list[list[str]]

    @property
    def classes(self) -> list[str | None]:
        """How the page sets each column: `n`, numbers, to the right; `s`, short texts, without a break; None as it comes."""
        columns = [[row[index] for row in self.rows] for index in range(len(self.header))]
        return [
            "n" if all(map(_is_numeric, cells)) else "s" if all(len(cell) <= 28 for cell in cells) else None
            for cells in columns
        ]


def _is_numeric(text: str) -> bool:
    try:
        float(text.partition(" ± ")[0].replace(",", ""))
    except ValueError:
        return text == "–"
    return True


def number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"


def with_interval(found: Interval | None) -> str:
    if found is None:
        return "–"
    # the oracle's does not vary, on frozen masks
    return number(found.mean) + ("" if found.margin < 1e-9 else f" ± {number(found.half)}")


def signed(found: Interval) -> str:
    """A difference: `+0.0123 ± 0.0040`; `n = 1` where there is no interval."""
    return f"{found.mean:+.4f}" + (" (n = 1)" if math.isnan(found.half) else f" ± {number(found.half)}")


def compared(study: Study) -> dict[str, Metric]:
    """The metrics that a table of runs or groups shows, by the names of their columns."""
    own = " (own task)" if study.tasks else ""
    wanted = {_column(study, metric): metric for metric in study.metrics}
    wanted |= {f"{name}{own}": Metric(name) for name in _MAIN_METRICS if own or name not in wanted}
    return {name: metric for name, metric in wanted.items() if any(group.measured(metric) for group in study.groups)}


def _column(study: Study, metric: Metric) -> str:
    """`val/loss at mask rate 0.30`, where that is what groups are compared by."""
    return f"{DEFAULT} at {condition_name(metric.condition)}" if study.by_condition else metric.name


def _names(study: Study) -> dict[str, str]:
    """The columns of axes and replicates, by their keys."""
    return {axis.key: axis.name for axis in study.axes} | {key: key for key in study.replicates}


def run_table(study: Study) -> Table:
    """A line a run: what was swept, its status, the main metrics, and its step or what went wrong."""
    metrics, names = compared(study), _names(study)
    has_name = study.collection.home is None or not names
    rows = []
    for result in study.collection.results:
        values = [as_text(result.get(key, "")) for key in names]
        numbers = [number(metric.of(result)) for metric in metrics.values()]
        costs = [_count(result.value(name)) for name in _COSTS] + [_count(parameters(result))]
        rows.append([*[result.name] * has_name, *values, result.status, *numbers, *costs, result.detail])
    return Table([*["run"] * has_name, *names.values(), "status", *metrics, *_COSTS, "parameters", "step or reason"], rows)


def short_table(study: Study, most: int = 10**9) -> tuple[Table, int]:
    """For a terminal: of each run what was swept, its status and what it is compared by, the best one starred where groups can
    be compared; at most so many runs with a result. Returns also how many are left out."""
    names = _names(study)
    metrics = study.metrics[:_MOST_COLUMNS] or [Metric()]
    has_name = study.collection.home is None or not names
    results = list(study.collection.results)
    if len(results) > most:
        sign = -1 if metrics[0].maximize else 1
        done = sorted(
            study.collection.complete, key=lambda result: (math.isnan(metrics[0].of(result)), sign * metrics[0].of(result))
        )
        results = [*done[:most], *(result for result in results if result.status != "complete")]
    rows = []
    for result in results:
        cells = [number(each.of(result)) + " *" * study.is_starred(result, each) for each in metrics]
        cells = ["" if cell == "–" else cell for cell in cells]
        values = [as_text(result.get(key, "")) for key in names]
        seconds = _count(result.value("seconds")) if result.status == "complete" else ""
        rows.append([*[result.name] * has_name, *values, result.status, *cells, seconds, result.detail])
    columns = [each.condition or each.name if study.by_condition else each.name for each in metrics]
    header = [*["run"] * has_name, *names.values(), "status", *columns, "seconds", "step or reason"]
    return Table(header, rows), len(study.collection.results) - len(results)


def parameters(result: Result) -> float:
    """Of the model; NaN where the manifest doesn't say it."""
    value = result.manifest.get("num_parameters")
    return float(value) if isinstance(value, int) else math.nan


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def group_table(study: Study) -> Table:
    """A line a group, the best one first where groups are compared by one number; what its runs cost on average."""
    metrics = compared(study)
    rows = []
    for group in study.ranked:
        intervals = [with_interval(group.interval(metric)) for metric in metrics.values()]
        rows.append([*map(as_text, group.values.values()), str(len(group.results)), *intervals, *_costs(group)])
    return Table([*(axis.name for axis in study.axes), "n", *metrics, *_COSTS, "parameters"], rows)


def _costs(group: Group) -> list[str]:
    return [_count(each) for each in costs_of(group)]


def costs_of(group: Group) -> list[float]:
    """Seconds, tokens and parameters, the means over its runs."""
    costs = [mean([result.value(name) for result in group.results]) for name in _COSTS]
    return [*costs, mean([parameters(result) for result in group.results])]


def paired_table(study: Study) -> Table:
    """How far each group is from the best one, a column for each condition."""
    rows = []
    for group in study.ranked:
        cells = []
        for standing in study.standings:
            found = standing.to_best(group)
            cells.append("best" if group is standing.best else signed(found) if found else "–")
        rows.append([*map(as_text, group.values.values()), *cells])
    names = [condition_name(each.metric.condition) if study.by_condition else each.metric.name for each in study.standings]
    return Table([*(axis.name for axis in study.axes), *names], rows)


def condition_table(study: Study) -> Table:
    """The best group under each evaluation condition."""
    rows = []
    for condition in study.conditions:
        metric = Metric(f"{DEFAULT}_{condition}")
        for best in study.rank(metric)[:1]:  # none where it is not a number in any run
            loss, excess = (with_interval(best.interval(f"val/{each}_{condition}")) for each in ("loss", "excess_loss"))
            standing = next((each for each in study.standings if each.metric.name == metric.name), None)
            contested = [] if standing is None else [study.name(group) for group, found in standing.contested if found.n > 1]
            apart = "; ".join(contested[:3]) + f"; and {len(contested) - 3} more" * (len(contested) > 3) or "–"
            rows.append([condition_name(condition), study.name(best), loss, number(best.limit(metric)), excess, apart])
    return Table(["evaluated at", "best group", "val/loss", "best possible", "excess", "not told apart from"], rows)


def difference_table(results: Sequence[Result]) -> Table:
    """Every key in which some runs differ, and its value in each."""
    rows = [[key, *map(as_text, column)] for key, column in sorted(differing(results).items())]
    return Table(["key", *(result.name for result in results if result.config)], rows)


def metric_table(results: Sequence[Result]) -> Table:
    """Every metric of some complete runs, side by side."""
    complete = [result for result in results if result.status == "complete"]
    names = dict.fromkeys(name for result in complete for name in result.summary)
    rows = [[name, *(number(result.value(name)) for result in complete)] for name in names]
    return Table(["metric", *(result.name for result in complete)], rows)


def manifest_table(study: Study) -> tuple[list[list[str]], list[list[str]]]:
    """What the runs' manifests agree on, and what not: `[key, value]` and `[key, "value (3 runs), other (1 run)"]`."""
    manifests = [flat(result.manifest) for result in study.collection.results if result.manifest]
    keys = dict.fromkeys(key for manifest in manifests for key in manifest if key.partition(".")[0] not in _NOT_COMPARED)
    equal, unequal, packages = [], [], []
    for key in keys:
        counts = Counter("none" if manifest.get(key) is None else str(manifest[key]) for manifest in manifests)
        if len(counts) > 1:
            shares = (f"{value} ({count} run{'s' * (count > 1)})" for value, count in counts.most_common())
            unequal.append([key, ", ".join(shares)])
        elif key.startswith("packages."):
            packages.append(f"{key.removeprefix('packages.')} {next(iter(counts))}")
        else:
            equal.append([key, next(iter(counts))])
    if packages:
        equal.append(["packages", ", ".join(packages)])
    return equal, unequal


def results_csv(collection: Collection) -> str:
    """A line a run: folder, status, step, every key that differs, every metric of the summaries, reason."""
    results = collection.results
    keys = sorted(differing(results))
    asked = (key for result in results if not result.config for key in result.settings)
    keys += [key for key in dict.fromkeys(asked) if key not in keys]
    metrics = list(dict.fromkeys(name for result in results for name in result.summary))
    lines: list[list[Any]] = [["folder", "status", "step", *keys, *metrics, "parameters", "reason"]]
    for result in results:
        values = [result.settings.get(key, "") for key in keys] + [result.summary.get(name, "") for name in metrics]
        cells = [value if isinstance(value, str) else json.dumps(value) for value in values]
        size = result.manifest.get("num_parameters", "")
        lines.append([str(result.folder), result.status, result.step, *cells, size, result.reason])
    return _csv(lines)


def groups_csv(study: Study) -> str:
    """A line a group: the axes' values, n, and of every metric the mean and half of its 95 % interval; under each condition the
    difference to the best group, and half of its interval; seconds, tokens and parameters."""
    names = list(dict.fromkeys(name for result in study.collection.complete for name in result.summary))
    metrics = [name for name in names if "/" in name]
    header = [*(axis.key for axis in study.axes), "n", *(each for name in metrics for each in (name, f"{name} ±"))]
    header += [f"{standing.metric.name} {each}" for standing in study.standings for each in ("to best", "to best ±")]
    lines: list[list[Any]] = [[*header, *_COSTS, "parameters"]]
    for group in study.groups:
        found = [group.interval(name) for name in metrics]
        same = Interval(0.0, 0.0, len(group.results))
        found += [same if group is standing.best else standing.to_best(group) for standing in study.standings]
        cells = [_exact(value) for each in found for value in ((each.mean, each.half) if each else (math.nan, math.nan))]
        values = [value if isinstance(value, str) else json.dumps(value) for value in group.values.values()]
        lines.append([*values, len(group.results), *cells, *map(_exact, costs_of(group))])
    return _csv(lines)


def _exact(value: float) -> str:
    """A number that reads back as itself; empty where it is none."""
    return repr(value) if math.isfinite(value) else ""


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue()


_TEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
}


def groups_tex(study: Study) -> str:
    """The groups as a LaTeX table, in the style of booktabs: mean ± half of the 95 % interval, the best in bold."""
    metrics = {metric.name: metric for metric in [*study.metrics, *map(Metric, () if study.by_condition else _MAIN_METRICS)]}
    shown = [metric for metric in metrics.values() if any(group.measured(metric) for group in study.groups)]
    best = {each.metric: [each.best, *(group for group, found in each.contested if found.n > 1)] for each in study.standings}
    rows = []
    for group in study.groups:
        cells = [_tex(with_interval(group.interval(metric))) for metric in shown]
        marked = [
            rf"\textbf{{{cell}}}" if group in best.get(metric, []) else cell for metric, cell in zip(shown, cells, strict=True)
        ]
        rows.append(
            [*(_tex(as_text(value)) for value in group.values.values()), str(len(group.results)), *marked, *_costs(group)]
        )
    names = [condition_name(each.condition) if study.by_condition else label(each, study.per) for each in shown]
    header = [*(axis.name for axis in study.axes), "n", *names, *_COSTS, "parameters"]
    lines = [" & ".join(each) + r" \\" for each in ([_tex(name) for name in header], *rows)]
    columns = "l" * len(study.axes) + "r" * (len(header) - len(study.axes))
    fair = "" if study.standings else " (none here: no condition is common to all runs)"
    notes = [
        f"% {label(DEFAULT, study.per)}{', evaluated at' if study.by_condition else ''}",
        r"% needs \usepackage{booktabs}; mean and half of the 95 % interval (Student's t) over the n runs of a group;",
        f"% bold: the best of its column, and what is not told apart from it{fair}",
    ]
    body = [lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*notes, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, ""])


def _tex(text: str) -> str:
    return "".join(_TEX.get(each, each) for each in text)

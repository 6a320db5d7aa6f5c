"""A study in words: what it asks and has found, and its tables as plain cells, for terminal, page and `results.csv`."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mlm_lightning.report.metric import Interval, Metric, condition_name, describe
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.report.study import Study, as_text, differing
from mlm_lightning.runs.checkpoint import flat

_MAIN_METRICS = ("val/loss", "val/oracle_loss", "val/excess_loss", "val/accuracy")
# They name a run, or follow from its config.
_NOT_COMPARED = ("kinship", "on_one_process", "processes", "parent", "num_parameters", "overrides", "config_dir", "config_name")


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


def question(study: Study) -> str:
    """What the runs can answer, in one sentence."""
    words, *_ = describe(study.metric)
    goal = f"{'highest' if study.metric.maximize else 'lowest'} {words}"
    if not study.axes:
        return f"Which {words} does this configuration reach?"
    if study.collection.home is None and len(study.collection.results) == len(study.groups):
        return f"Which of these {len(study.groups)} runs has the {goal}?"
    return f"Which {' and '.join(axis.name for axis in study.axes)} give{'s' * (len(study.axes) == 1)} the {goal}?"


def answer(study: Study) -> list[str]:
    """The best group, its metric, the oracle's limit, and whether other groups' intervals overlap the best one's."""
    ranked = [(group, found) for group in study.ranked if (found := group.interval(study.metric))]
    if not ranked:
        return ["No complete run has it yet."]
    (best, found), *others = ranked
    *_, unit = describe(study.metric)
    runs = f" (95 % interval, {found.n} seeds)" if found.n > 1 else " (one run: no interval)"
    sentences = [f"{study.name(best)}: {with_interval(found)} {unit}".rstrip() + runs]
    limit = best.limit(study.metric)
    if math.isfinite(limit) and limit != 0:
        sentences.append(f"Best possible (oracle): {number(limit)}; the excess over it is {number(abs(found.mean - limit))}.")
    if study.metric.note:
        sentences.append(f"Compared by {study.metric.name}: {study.metric.note}.")
    overlapping = [study.name(group) for group, other in others if other.overlaps(found)]
    if others and all(each.n == 1 for _, each in ranked):
        sentences.append("One run a group: how much of the difference is chance can't be told.")
    elif overlapping:
        share = "all" if len(overlapping) == len(others) > 1 else f"{len(overlapping)} of"
        names = "; ".join(overlapping[:4]) + ("; …" if len(overlapping) > 4 else "")
        sentences.append(f"Its interval overlaps that of {share} {len(others)} other groups ({names}).")
    elif others:
        sentences.append("No other group's interval overlaps it.")
    return sentences


def compared(study: Study) -> dict[str, Metric]:
    """The metrics that a table of runs or groups shows, by the names of their columns."""
    is_mean = len(study.metric.columns) > 1
    wanted = dict.fromkeys(_MAIN_METRICS if is_mean else (study.metric.name, *_MAIN_METRICS))
    measured = {name: Metric((name,)) for name in wanted if any(group.measured(name) for group in study.groups)}
    return {"mean over conditions": study.metric} | measured if is_mean else measured


def run_table(study: Study) -> Table:
    """A line a run: what was swept, its status, the main metrics, and its step or what went wrong."""
    metrics = compared(study)
    names = {axis.key: axis.name for axis in study.axes} | {key: key for key in study.replicates}
    has_name = study.collection.home is None or not names
    rows = []
    for result in study.collection.results:
        values = [as_text(result.get(key, "")) for key in names]
        numbers = [number(metric.of(result)) for metric in metrics.values()]
        rows.append([*[result.name] * has_name, *values, result.status, *numbers, result.detail])
    return Table([*["run"] * has_name, *names.values(), "status", *metrics, "step or reason"], rows)


def group_table(study: Study) -> Table:
    """A line a group, the best one first."""
    metrics = compared(study)
    rows = []
    for group in study.ranked:
        intervals = [with_interval(group.interval(metric)) for metric in metrics.values()]
        rows.append([*map(as_text, group.values.values()), str(len(group.results)), *intervals])
    return Table([*(axis.name for axis in study.axes), "n", *metrics], rows)


def condition_table(study: Study) -> Table:
    """The best group under each evaluation condition."""
    rows = []
    for condition in study.conditions:
        metric = Metric((f"val/loss_{condition}",))
        for best in study.rank(metric)[:1]:  # none where it is not a number in any run
            loss, excess = (with_interval(best.interval(f"val/{each}_{condition}")) for each in ("loss", "excess_loss"))
            rows.append([condition_name(condition), study.name(best), loss, number(best.limit(metric)), excess])
    return Table(["evaluated at", "best group", "val/loss", "best possible", "excess"], rows)


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
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["folder", "status", "step", *keys, *metrics, "reason"])
    for result in results:
        values = [result.settings.get(key, "") for key in keys] + [result.summary.get(name, "") for name in metrics]
        cells = [value if isinstance(value, str) else json.dumps(value) for value in values]
        writer.writerow([str(result.folder), result.status, result.step, *cells, result.reason])
    return text.getvalue()

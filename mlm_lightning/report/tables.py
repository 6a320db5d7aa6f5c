"""The tables of a report, as plain cells: for the terminal, for `results.csv` and for the page."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mlm_lightning.report.axes import NOT_SET, as_text, differing
from mlm_lightning.report.metric import Metric, condition_name
from mlm_lightning.report.results import Collection, Result
from mlm_lightning.report.statistics import Interval
from mlm_lightning.report.study import Study
from mlm_lightning.runs.checkpoint import flat

_MAIN_METRICS = ("val/loss", "val/oracle_loss", "val/excess_loss", "val/accuracy")
# They name a run, or follow from its config.
_NOT_COMPARED = ("kinship", "parent", "num_parameters", "overrides", "config_dir", "config_name")


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


def metric_columns(study: Study) -> list[str]:
    """The metrics that a table of runs shows."""
    compared = study.metric.columns if len(study.metric.columns) == 1 else ()
    wanted = dict.fromkeys([*compared, *_MAIN_METRICS])
    return [name for name in wanted if any(math.isfinite(result.value(name)) for result in study.complete)]


def run_table(study: Study) -> Table:
    """A line a run: what was swept, its status, the main metrics, and its step or what went wrong."""
    metrics = metric_columns(study)
    has_mean = len(study.metric.columns) > 1
    keys = [*(axis.key for axis in study.axes), *study.replicates]
    names = [*(axis.name for axis in study.axes), *study.replicates]
    has_name = study.collection.home is None or not keys
    header = ["run"] * has_name + names + ["status"] + ["mean over conditions"] * has_mean + metrics + ["step or reason"]
    rows = []
    for result in study.collection.results:
        values = [result.name] * has_name
        for key in keys:  # of a run that is missing, its job's
            default = NOT_SET if result.config else result.settings.get(key.removesuffix("._target_"), "")
            values.append(as_text(result.settings.get(key, default)))
        mean = [number(study.metric.of(result))] * has_mean
        rows.append([*values, result.status, *mean, *(number(result.value(name)) for name in metrics), result.detail])
    return Table(header, rows)


def group_table(study: Study) -> Table:
    """A line a group, the best one first."""
    metrics: list[str | Metric] = [study.metric] if len(study.metric.columns) > 1 else []
    names = ["mean over conditions"] * len(metrics) + metric_columns(study)
    metrics += metric_columns(study)
    rows = []
    for group in study.ranked:
        values = [as_text(group.values[axis.key]) for axis in study.axes]
        rows.append([*values, str(len(group.results)), *(with_interval(group.interval(metric)) for metric in metrics)])
    return Table([*(axis.name for axis in study.axes), "n", *names], rows)


def condition_table(study: Study) -> Table:
    """The best group under each evaluation condition."""
    rows = []
    for condition in study.conditions:
        metric = Metric((f"val/loss_{condition}",))
        best = next(iter(study.rank(metric)), None)
        if best is None:  # not a number in any run
            continue
        excess = with_interval(best.interval(f"val/excess_loss_{condition}"))
        loss = with_interval(best.interval(metric))
        rows.append([condition_name(condition), study.name(best), loss, number(best.limit(metric)), excess])
    return Table(["evaluated at", "best group", "val/loss", "best possible", "excess"], rows)


def difference_table(results: Sequence[Result]) -> Table:
    """Every key in which some runs differ, and its value in each."""
    read = [result for result in results if result.config]
    rows = [[key, *map(as_text, column)] for key, column in sorted(differing(read).items())]
    return Table(["key", *(result.name for result in read)], rows)


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
    keys = sorted(differing([result for result in results if result.config]))
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

"""Runs become rows: what a folder says of a run, whatever state it is in.

    outputs/mask_rate/
        sweep.json                        the jobs that were asked for
        masking.rate=0.1,seed=0-3f…/      config, summary, curves        ─►  Result(status="complete", …)
        masking.rate=0.1,seed=1-9c…/      being written right now        ─►  Result(status="running", …)
        masking.rate=0.2,seed=0-77…/      (a job without a folder)       ─►  Result(status="missing", …)

Nothing here fails on a run that is half-written or damaged: the row says what is wrong with it.
"""

import contextlib
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mlm_lightning.config.compose import composer, read_config, to_plain
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.flags import is_sweep
from mlm_lightning.config.located import with_weights
from mlm_lightning.errors import UserError, one_line
from mlm_lightning.runs import evaluations
from mlm_lightning.runs.checkpoint import flat
from mlm_lightning.runs.folder import Run, processes_of, read_metrics, runs_of
from mlm_lightning.runs.identity import LATER_KEYS, deciding, identity
from mlm_lightning.values import expanded

STATUSES = ("complete", "running", "failed", "pruned", "interrupted", "missing", "damaged")
"""Those of `Run`, and `damaged`: a file of the run can't be read."""

NOT_SET = "not set"

DEFAULT = "val/loss"
"""What runs are compared by where nobody chose anything, and an objective of a sweep that nobody chose."""

_UNREADABLE = (OSError, ValueError, RecursionError)


@dataclass
class Result:
    """One run, or one job of a sweep that has no run yet."""

    folder: Path
    name: str
    status: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """As in config.yaml; empty where there is none."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What decides the result, flat: `{"masking.rate": 0.1}`. Of a missing run: its job's overrides."""
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, tuple[str, dict[str, float]]] = field(default_factory=dict)
    """What was measured under the conditions of a sweep: name and metrics, by what is the same for runs of all seeds."""
    evaluated: list[str] = field(default_factory=list)
    """The conditions' names in `summary`, which has these metrics too: `val/loss_rate_0.40`."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """The columns of metrics.csv: `{"val/loss": [(50, 1.25), …]}`."""
    job_overrides: list[str] | None = None
    """Where sweep.json lists it."""

    def value(self, metric: str) -> float:
        """A number of the summary; NaN where it has none."""
        value = self.summary.get(metric)
        return float(value) if isinstance(value, int | float) else math.nan

    def get(self, key: str, missing: Any = NOT_SET) -> Any:
        """A setting; without a config, what its job says (of `masking._target_` as `masking`), else `missing`."""
        if self.config:
            return self.settings.get(key, LATER_KEYS.get(key, NOT_SET))
        return self.settings.get(key, self.settings.get(key.removesuffix("._target_"), missing))

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Of the steps at which it was a number."""
        return [(step, value) for step, value in self.curves.get(metric, []) if math.isfinite(value)]

    @property
    def step(self) -> int:
        """How far it is known to have come."""
        logged = [curve[-1][0] for curve in self.curves.values() if curve]
        return int(self.summary.get("steps") or max(logged, default=0))

    @property
    def detail(self) -> str:
        """What a table says of a run beside its metrics: its reason, or how far it is."""
        if self.reason:
            return self.reason
        if self.status in ("running", "interrupted"):
            total = self.settings.get("trainer.max_steps")
            return f"step {self.step:,}" + (f" of {total:,}" if isinstance(total, int) else "")
        if self.status == "missing":
            return "not started"
        return f"step {self.step:,}" if self.step else ""


@dataclass
class Collection:
    """All that a report is about."""

    title: str
    results: list[Result]
    home: Path | None = None
    """The folder of the one sweep, or folder of runs, that it is about."""
    swept: list[str] = field(default_factory=list)
    """Keys that a sweep says it changes."""
    objective: str | None = None
    """What a sweep was told to minimise, or to maximise; None where nobody chose it."""
    maximize: bool = False
    unlisted: list[str] = field(default_factory=list)
    """Runs in a sweep's folder that are not the sweep's."""
    copies: list[str] = field(default_factory=list)
    """The folders that are counted, and what is not, because it is the same run: `RUN (not its copies RUN.bak)`."""

    @property
    def complete(self) -> list[Result]:
        return [result for result in self.results if result.status == "complete"]

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(result.status for result in self.results)
        return {status: counts[status] for status in STATUSES if counts[status]}


def collect(paths: Sequence[str]) -> Collection:
    """Reads sweeps' folders, folders of runs and runs. Raises UserError for a path that is none of them."""
    parts = [_open(expanded(path)) for path in paths]
    results, copies = _without_copies([result for part in parts for result in part.results])
    _name_conditions(results)
    if len(parts) == 1:
        return replace(parts[0], results=results, copies=copies)
    names = [result.name for result in results]
    for result in results:
        if names.count(result.name) > 1:
            result.name = f"{result.folder.parent.name}/{result.name}"
    return Collection(
        title=f"{len(results)} runs",
        results=results,
        swept=list(dict.fromkeys(key for part in parts for key in part.swept)),
        unlisted=[name for part in parts for name in part.unlisted],
        copies=copies,
    )


def _without_copies(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """One of those that compute the same, whatever their folders are called: a complete one, then the original. The others are
    named; a folder that comes twice (two jobs of a search, two paths of a command) is no copy."""
    alike: dict[Any, list[Result]] = {}
    for result in {each.folder.resolve(): each for each in results}.values():
        same = identity(result.config, result.settings["processes"]) if result.config else result.folder
        alike.setdefault(same, []).append(result)
    chosen, copies = [], []
    for group in alike.values():
        first, *others = sorted(group, key=lambda each: (each.status != "complete", Run(each.folder).originality))
        chosen.append(first)
        if others:
            copies.append(f"{first.folder} (not its copies {', '.join(str(other.folder) for other in others)})")
    return chosen, copies


def _open(path: Path) -> Collection:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a sweep's folder (outputs/NAME) or runs' folders (outputs/NAME/…)")
    if (path / "config.yaml").is_file():
        return Collection(path.name, [read_result(path)])
    runs = sorted(each.parent for each in path.glob("*/config.yaml") if not each.parent.name.startswith("."))
    file, title = path / "sweep.json", path.resolve().name
    if not file.is_file():
        if not runs:
            raise UserError(f"{path}: is no run, and there is none in it (no config.yaml, no sweep.json)")
        return Collection(title, [read_result(run) for run in runs], home=path)
    try:
        content = _read_dict(file)
        jobs = [(path / str(job["folder"]), [str(each) for each in job["overrides"]]) for job in content["jobs"]]
        swept = [str(each) for each in content.get("swept") or []]
    except (*_UNREADABLE, KeyError, TypeError) as error:
        reason = f"an entry is not as expected: {error!r}" if isinstance(error, KeyError | TypeError) else one_line(error)
        raise UserError(
            f"{file}: doesn't list a sweep's jobs ({reason}); without this file, the report is of the runs there"
        ) from error
    for place, (folder, overrides) in enumerate(jobs):
        if not folder.exists() and (renamed := runs_of(path, folder.name[-8:])):
            jobs[place] = renamed[0].folder, overrides
    return Collection(
        title=title,
        results=[read_result(folder, overrides) for folder, overrides in jobs],
        home=path,
        swept=swept,
        objective=content.get("objective") if content.get("objective_chosen", content.get("objective") != DEFAULT) else None,
        maximize=content.get("direction") == "maximize",
        unlisted=[run.name for run in runs if run.name not in {folder.name for folder, _ in jobs}],
    )


def _name_conditions(results: Sequence[Result]) -> None:
    """Adds what was measured under conditions to the summaries, by names that mean the same in all of them."""
    names: dict[str, str] = {}
    for result in results:
        for key, (name, metrics) in result.evaluations.items():
            if key not in names:
                names[key] = f"{name},{key[:4]}" if name in names.values() else name
            result.evaluated.append(names[key])
            result.summary |= {f"{metric}_{names[key]}": value for metric, value in metrics.items()}


def read_result(folder: Path, job_overrides: list[str] | None = None) -> Result:
    """What a run's folder says."""
    settings = dict(map(setting, job_overrides or ()))
    result = Result(folder, folder.resolve().name, "missing", settings=settings, job_overrides=job_overrides)
    has_config = (folder / "config.yaml").is_file()
    with contextlib.suppress(*_UNREADABLE):
        result.manifest = _read_dict(folder / "manifest.json") if has_config else {}
    with _reading("config.yaml", result, "damaged"):
        if has_config:
            result.config = dict(read_config(folder).config)
            result.settings = _decided(result.config) | {"processes": processes_of(result.manifest, result.config)}
    if result.status == "damaged":
        return result
    run = Run(folder)
    result.status, result.reason = run.status, " ".join(run.reason.split())
    if not has_config:  # a process that has only just begun holds its run's lock already
        return result
    with _reading("metrics.csv", result):  # whatever was written there: a report shows the rest
        curves: dict[str, list[tuple[int, float]]] = {}
        for line in read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else []:
            for name, value in line.items():
                if name != "step" and value:
                    curves.setdefault(name, []).append((int(line["step"]), float(value)))
        result.curves = curves
    if result.status == "complete":
        with _reading("manifest.json", result):
            result.reason = f"its code has been edited since: {', '.join(edits)}" if (edits := run.edits) else ""
        with _reading("summary.json", result, "damaged"):
            result.summary = _read_dict(folder / "summary.json")
        for entry in evaluations.read(run).values():
            shared = evaluations.without_seeds(entry["condition"]) | {"files": entry["files"]}
            result.evaluations[evaluations.key_of(shared)] = (entry["name"], entry["metrics"])
    return result


def _decided(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result, flat. A run that weights come from is shown by its name instead of their digest."""
    settings = flat(deciding(config))
    if settings.pop("init.weights", None):
        settings["init.from_run"] = Path(str(Composed(config).get("init.from_run"))).name
        if settings.get("init.freeze") is None:
            del settings["init.freeze"]
    return settings


@contextlib.contextmanager
def _reading(name: str, result: Result, status: str | None = None) -> Iterator[None]:
    """Notes why a file can't be read; OmegaConf, YAML and the csv module have errors of many kinds."""
    try:
        yield
    except Exception as error:
        result.reason = result.reason or f"{name} can't be read: {one_line(error)}"
        result.status = status or result.status


def _read_dict(path: Path) -> dict[str, Any]:
    """What a JSON file holds; raises one of _UNREADABLE where that is no dict."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("it holds no dict")
    return content


def setting(override: str) -> tuple[str, Any]:
    """`++masking.rate=0.1` as ("masking.rate", 0.1)."""
    key, _, text = override.lstrip("+~").partition("=")
    try:
        return key, json.loads(text)
    except ValueError:
        return key, text


class Recipe(NamedTuple):
    """A command line that trains a run once more."""

    command: str
    is_checked: bool
    """Whether the command gives the run's config with the version and the configs that are here."""


def recipe_of(result: Result) -> Recipe | None:
    """`mlm train` with the overrides that the run's manifest keeps, composed to see whether it gives the run's config:

    manifest.json   overrides  ["sweep=mask_rate", "masking.rate=0.1", "sweep.jobs=2"]
                    config_dir "conf"
    ─►  mlm train --config-dir conf sweep=mask_rate masking.rate=0.1 hydra.mode=RUN

    None where a run kept no overrides: one of an older version, outside of a sweep.
    """
    overrides = result.manifest.get("overrides")
    overrides = result.job_overrides if overrides is None else overrides
    if overrides is None:
        return None
    # how the runs of a sweep are started is nothing that one run needs; and resume=never would start it again
    left_out = ("hydra/", "hydra.mode", "hydra.sweep", "hydra.launcher", "launcher=", "sweep.")
    overrides = [each for each in overrides if not each.lstrip("+~").startswith(left_out) and each != "resume=never"]
    config_dir, config_name = result.manifest.get("config_dir"), result.manifest.get("config_name")
    is_checked = False
    # it can't be composed where another version made it, or its folder of configs is gone
    with contextlib.suppress(UserError), composer(config_dir, config_name, quiet=True) as hydra:
        config = hydra.compose(hydra.plain(overrides))
        if is_sweep(config):  # sweep=NAME would start all runs of the sweep
            overrides.append("hydra.mode=RUN")
        plain = with_weights(Composed(to_plain(config))).config
        is_checked = deciding(plain) == deciding(result.config)  # of which 1e3 is 1000
    flags = [("--config-dir", config_dir), ("--config-name", config_name)]
    words = [word for name, value in flags if value is not None for word in (name, value)]
    return Recipe(shlex.join(["mlm", "train", *words, *overrides]), is_checked)

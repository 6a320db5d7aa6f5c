"""The runs below a folder: where each stands, what it has found so far, and the space it takes.

outputs/             a group of runs is a folder with runs in it; that of a sweep has a sweep.json
  mask_rate/         ─► Group(sweep's objective)
    <run>/ <run>/    ─► Listed(status, result, step, size …), a sweep's best one first, else the newest
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlm_lightning.errors import UserError, one_line
from mlm_lightning.runs.folder import Run, Status, read_metrics, read_note
from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.values import expanded

DEFAULT_OBJECTIVE = "val/loss"


@dataclass(frozen=True)
class Listed:
    """A run. `value` is its objective: of a complete run the result, of another one the last that it logged."""

    folder: Path
    status: Status | Literal["damaged"]
    bytes: int
    objective: str
    value: float | None
    step: int | None
    changed: float
    """When its folder was last written to, in seconds since 1970."""
    reason: str


@dataclass(frozen=True)
class Group:
    folder: Path
    is_sweep: bool
    objective: str
    runs: list[Listed]

    @property
    def bytes(self) -> int:
        return sum(run.bytes for run in self.runs)


def run_folders(folder: Path) -> Iterator[Path]:
    """The folders of runs below `folder`, or itself; those that were moved aside (`.old`) are not among them."""
    for path, names, files in os.walk(folder):
        if "config.yaml" in files and ("checkpoints" in names or "manifest.json" in files):
            names.clear()
            yield Path(path)
        names[:] = sorted(name for name in names if not name.startswith("."))


def existing(folder: str) -> Path:
    """The folder of an argument; UserError where there is none."""
    if not (found := expanded(folder)).is_dir():
        raise UserError(f"FOLDER={folder}: no such folder; give one with runs in it (output_dir, outputs by default)")
    return found


def groups(folder: Path) -> list[Group]:
    """The groups of runs below a folder, the one that was last worked on first."""
    by_parent: dict[Path, list[Path]] = {}
    for path in run_folders(folder):
        by_parent.setdefault(path.parent, []).append(path)
    found = []
    for parent, paths in by_parent.items():
        sweep = read_note(parent / "sweep.json")
        objective = str(sweep.get("objective") or DEFAULT_OBJECTIVE)
        runs = [_listed(path, objective) for path in paths]
        runs.sort(key=lambda run: -run.changed)
        if sweep:
            sign = -1 if sweep.get("direction") == "maximize" else 1
            runs.sort(key=lambda run: (run.status != "complete", sign * run.value if run.value is not None else float("inf")))
        found.append(Group(parent, bool(sweep), objective, runs))
    return sorted(found, key=lambda group: -max(run.changed for run in group.runs))


def _listed(folder: Path, objective: str) -> Listed:
    try:
        return _read(folder, objective)
    except Exception as error:  # whatever is wrong with a folder, the others are shown
        return Listed(folder, "damaged", 0, objective, None, None, 0.0, one_line(error))


def _read(folder: Path, objective: str) -> Listed:
    run = Run(folder)
    summary, status = read_note(folder / "summary.json"), run.status
    value, step = summary.get(objective, summary.get(DEFAULT_OBJECTIVE)), summary.get("steps")
    if status != "complete":
        value, step = _last_logged(folder / "metrics.csv", objective)
    if status == "running" and (progress := RunProgress.read(folder)) is not None:
        step = progress.step
    if not isinstance(value, int | float | None) or not isinstance(step, int | None):
        raise ValueError(f"its {objective} is {value}, and its steps are {step}")
    files = [path for path in folder.iterdir() if path.is_file()]
    changed = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
    return Listed(folder, status, size_of([folder]), objective, value, step, changed, run.reason)


def _last_logged(path: Path, name: str) -> tuple[float | None, int | None]:
    """The last value of a metric, and the last step, of a metrics.csv."""
    value, step = None, None
    with contextlib.suppress(OSError, ValueError):
        for line in read_metrics(path):
            step = int(line["step"])
            value = float(line[name]) if line.get(name) else value
    return value, step


def size_of(paths: Iterable[Path], freed: bool = False) -> int:
    """The bytes in files and folders: each file once, whatever the number of its names (best.ckpt and last.ckpt may be one).
    `freed`: those alone that no name elsewhere keeps."""
    names: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for path in paths:
        walked = os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]
        for parent, _, files in walked:
            for file in files:
                with contextlib.suppress(OSError):
                    stat = os.lstat(os.path.join(parent, file))
                    key = (stat.st_dev, stat.st_ino)
                    names[key] = names.get(key, 0) + 1
                    sizes[key] = (stat.st_size, stat.st_nlink)
    return sum(size for key, (size, links) in sizes.items() if not freed or names[key] >= links)


def readable_size(size: int) -> str:
    """`12.3 MB`."""
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} GB"

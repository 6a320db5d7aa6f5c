"""What could go from a folder of runs, by kinds; nothing here touches a complete run, or one that a process works in.

old           runs that were started again, in NAME/.old
failed        runs that ended in an error: the same command would try them again
interrupted   runs that were stopped: the same command would continue them
pruned        the checkpoints of runs that a search has given up; what they found stays
cache         token caches that no run needs, and unfinished ones: made again when they are needed. A cache notes the runs that
              are trained on it: none of them is there, but for runs below the folder that have other data now
unknown       token caches that have not noted their runs: of an earlier version, or only prepared
files         half-written files, and messages of runs that are gone
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlm_lightning.config.compose import read_config
from mlm_lightning.data.text.prepare.cache import is_being_built, noted_runs, token_caches
from mlm_lightning.data.text.settings import shared_cache
from mlm_lightning.errors import BusyError, UserError
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.listing import run_folders, size_of
from mlm_lightning.values import expanded

KINDS = {
    "old": "--old  runs that were started again (resume=never)",
    "failed": "--failed  failed runs; the same command would try them again",
    "interrupted": "--interrupted  interrupted runs; the same command would continue them",
    "pruned": "--pruned  checkpoints of runs that a search gave up",
    "cache": "--cache  token caches that no run needs; made again when needed",
    "unknown": "token caches whose users are unknown; mlm clean CACHE --cache --yes removes one by its path",
    "files": "--files  half-written files, messages of runs that are gone",
}


@dataclass(frozen=True)
class Leftover:
    kind: str
    path: Path
    bytes: int
    run: Run | None = None
    """The run that it is, or is a part of."""

    def remove(self) -> bool:
        """Whether it could be removed: not if a process works there now, or has made a complete run of it."""
        if self.run is None:
            if self.kind == "cache" and is_being_built(self.path):
                return False
            return _delete(self.path)
        try:
            with self.run.locked():
                return not (self.run.folder / "summary.json").exists() and _delete(self.path)
        except BusyError:
            return False


def _delete(path: Path) -> bool:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return not path.exists()


def leftovers(folder: Path) -> list[Leftover]:
    """All that could go, by kind in the order of KINDS. The folder may be a token cache; UserError where a run needs that."""
    runs = [Run(path) for path in run_folders(folder)]
    status = {run.folder: run.status for run in runs}
    found = [_leftover("old", path) for old in _below(folder, ".old") for path in sorted(old.iterdir())]
    for kind in ("failed", "interrupted"):
        found += [_leftover(kind, run.folder, run) for run in runs if status[run.folder] == kind]
    given_up = [run for run in runs if status[run.folder] == "pruned" and run.checkpoints.is_dir()]
    found += [_leftover("pruned", run.checkpoints, run) for run in given_up]
    found += list(_unused_caches(folder, runs))
    found += [_leftover("files", path) for path in _files(folder, runs)]
    return [each for each in found if each.bytes or each.kind != "pruned"]


def _leftover(kind: str, path: Path, run: Run | None = None) -> Leftover:
    return Leftover(kind, path, size_of([path], freed=True), run)


def _below(folder: Path, name: str) -> Iterator[Path]:
    """The folders `name` in groups of runs: in `folder`, or a level or two below it."""
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_dir())


def _unused_caches(folder: Path, runs: list[Run]) -> Iterator[Leftover]:
    """The folder itself, or those in the shared cache, and where the runs' configs say."""
    homes, fingerprints = {shared_cache()}, dict[Path, list[str]]()
    for run in runs:
        fingerprints[run.folder] = re.split("[+:]", str(run.manifest.get("data")))
        with contextlib.suppress(Exception):  # a damaged config names no cache
            if own := read_config(run.folder).get("data.cache_dir"):
                homes.add(expanded(own))
    here = folder.resolve()
    is_cache = here in token_caches(here.parent)
    for path in [folder] if is_cache else [path for home in sorted(homes) for path in token_caches(home)]:
        noted, are_all = noted_runs(path)
        users = [run.folder for run in runs if path.name in fingerprints[run.folder]]
        users += [run for run in noted if not _is_gone(run) and not run.resolve().is_relative_to(here)]
        if is_cache and users:
            raise UserError(f"CACHE={path}: {users[0]} was trained on it; it goes once that run is gone")
        if not users and not is_being_built(path):
            yield _leftover("cache" if is_cache or are_all or path.suffix == ".work" else "unknown", path)


def _is_gone(folder: Path) -> bool:
    """Not so a folder that only may not be looked into."""
    try:
        folder.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _files(folder: Path, runs: list[Run]) -> Iterator[Path]:
    names = {run.folder.name for run in runs}
    for logs in _below(folder, ".logs"):
        yield from (path for path in sorted(logs.glob("*.txt")) if path.stem not in names)
    for parent in sorted({folder, *(run.folder.parent for run in runs)}):
        yield from sorted(parent.glob(".*.tmp"))

"""A run's folder: found by what the run computes, locked while it works, complete when `summary.json` is there.

    outputs/<name>/<slug>-<hash8>/        hash8: of every key that decides the result
        config.yaml  manifest.json        written before training
        model.json  vocab.json  tokenizer/     what it takes to open the model again, without its source
        checkpoints/  tensorboard/  metrics.csv
        summary.json                      written last
        error.json, pruned.json           why it failed, or why a search gave it up
        .progress.json                    how far it is, while a process works in it (progress.py)
        .lock                             locked by the operating system while a process works in the folder, until it
                                          ends, however it ends; holds the id of that process

The same command finds the same folder, and continues it or says that it is done. A renamed folder is known by its config, the
original among copies by the name in its manifest. `filelock` closes the lock in forked children, which may outlive the run.
"""

import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout

from mlm_lightning.config.compose import config_yaml, read_config
from mlm_lightning.config.located import CHECKPOINTS
from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import BusyError, UserError
from mlm_lightning.files import read_json, run_disk_named, write_atomically
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, Position, differences
from mlm_lightning.runs.identity import identity, slug
from mlm_lightning.runs.own_code import digests_now
from mlm_lightning.runs.progress import RunProgress
from mlm_lightning.values import expanded

log = logging.getLogger(__name__)

_PACKAGES = (
    *("mlm-lightning", "torch", "lightning", "hydra-core", "omegaconf"),
    *("numpy", "transformers", "tokenizers", "datasets"),
)
_COMMAND = ("overrides", "config_dir", "config_name", "working_directory")
_LOCK = ".lock"
_PATIENCE = 2.0  # seconds: a process that was just killed may still be ending

Status = Literal["complete", "running", "failed", "pruned", "interrupted", "missing"]


@dataclass
class Run:
    """A run's folder."""

    folder: Path

    @classmethod
    def find(cls, settings: Settings, naming: Sequence[str] | None = None) -> "Run":
        """The folder of these settings: the one that is there, under whatever name, else a new name, of the overrides `naming`
        (None: of all, in their order); creates nothing. Says which one it is where there are copies."""
        parent = expanded(settings.output_dir) / settings.name
        hash8 = identity(settings.composed.config, settings.trainer.world_size())
        words = (settings.composed.overrides or ()) if naming is None else naming
        first, *copies = runs_of(parent, hash8) or [cls(parent / f"{slug(words, settings.composed.config)}-{hash8}")]
        if copies:
            _say_copies(first.folder, ", ".join(run.folder.name for run in copies))
        return first

    @property
    def identity(self) -> str | None:
        """Of what its config computes, whatever the folder is called; None where that can't be read."""
        with contextlib.suppress(OSError, ValueError, UserError):
            return _identity_of(self.folder, (self.folder / "config.yaml").stat().st_mtime_ns)
        return None

    @property
    def originality(self) -> tuple[bool, float, int, str]:
        """Sorts the folders of one run: first that whose name its manifest notes, then the oldest. Of equal age are copies that
        keep times; their names are mostly longer (`RUN.bak`, `a-RUN`)."""
        config, name = self.folder / "config.yaml", self.folder.name
        written = config.stat().st_mtime if config.is_file() else math.inf
        return self.manifest.get("folder") != name, written, len(name), str(self.folder)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a complete run."""
        path = self.folder / "summary.json"
        if not path.is_file():
            return None
        return read_json(path, "remove it, and the command that trained this run writes it again")

    @property
    def working_directory(self) -> Path | None:
        """Where its command was called; None for runs of versions that did not note it."""
        noted = self.manifest.get("working_directory")
        return Path(noted) if isinstance(noted, str) else None

    @property
    def status(self) -> Status:
        """Where the run stands. `interrupted`: stopped or killed, and continued by the same command."""
        if (self.folder / "summary.json").is_file():
            return "complete"
        if self.is_locked:
            return "running"
        for name, status in (("error.json", "failed"), ("pruned.json", "pruned")):
            if (self.folder / name).is_file():
                return status  # type: ignore[return-value]
        return "interrupted" if (self.folder / "config.yaml").is_file() else "missing"

    @property
    def reason(self) -> str:
        """Why the run failed or was pruned; empty otherwise."""
        for name in ("error.json", "pruned.json"):
            if content := read_note(self.folder / name):
                return str(content.get("message", ""))
        return ""

    @property
    def manifest(self) -> dict[str, Any]:
        return read_note(self.folder / "manifest.json")

    @property
    def edits(self) -> list[str]:
        """Which files of the user's code hold something else than when they trained it, of those that are found."""
        return differences(self.manifest.get("own_code", {}), digests_now(self.manifest))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and holds its lock; raises BusyError where another process holds it. Of a run that never started
        nothing is left: no lock, no empty folder."""
        folder, path = self.folder, self.folder / _LOCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir={folder.parent.parent}: {folder} cannot be made there: {error.strerror}") from error
        try:
            with run_disk_named(folder):
                lock = FileLock(path, timeout=_PATIENCE, on_acquired=_write_process_id).acquire()
        except Timeout as error:
            process = path.read_text().strip() or "?"
            raise BusyError(f"{folder}: process {process} is working in this run; wait for it, or stop it first") from error
        with lock:
            try:
                yield
            finally:
                if folder.is_dir() and [each.name for each in folder.iterdir()] == [_LOCK]:
                    path.unlink()
                    for each in (folder, folder.parent, folder.parent.parent):
                        with contextlib.suppress(OSError):  # others are in it
                            each.rmdir()

    @property
    def is_locked(self) -> bool:
        """Whether a process is working in the folder. Creates nothing, and only reads: it may belong to another user."""
        import fcntl

        try:
            with (self.folder / _LOCK).open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who looks at the same time is not a holder
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def move_aside(self) -> Path:
        """Moves the folder to `<name>/.old/`; never deletes."""
        old = self.folder.parent / ".old"
        old.mkdir(exist_ok=True)
        target = old / f"{self.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.folder.rename(target)
        return target

    def open(self, settings: Settings) -> None:
        """Makes the folder ready: its config, and nothing half-written."""
        for ended in ("error.json", "pruned.json"):
            (self.folder / ended).unlink(missing_ok=True)
        RunProgress.clear(self.folder)  # of a killed process
        self.checkpoints.mkdir(exist_ok=True)
        for half_written in [*self.checkpoints.glob(".*.tmp"), *self.folder.glob(".*.tmp")]:  # by a killed process
            half_written.unlink()
        write_atomically(self.folder / "config.yaml", config_yaml(settings.composed))
        if (composed := settings.composed).overrides is not None:  # a rank does not know its command
            command: dict[str, Any] = {"overrides": composed.typed_overrides}
            command |= {"config_dir": composed.config_dir, "config_name": composed.config_name}
            command |= {"working_directory": os.getcwd()}  # that relative paths of the config start from
            self.write_json("manifest.json", read_note(self.folder / "manifest.json") | command)

    def describe(self, **more: Any) -> list[str]:
        """Writes the manifest; returns what has changed since the one that was there of what last digits depend on."""
        environment, before = describe_environment(), read_note(self.folder / "manifest.json")
        command = {name: before.get(name) for name in _COMMAND}
        self.write_json("manifest.json", environment | command | {"folder": self.folder.name} | more)
        now = environment | (more if "classes_of" in before else {})
        return differences(of_last_digits(before), of_last_digits(now)) if "packages" in before else []

    def fail(self, error: BaseException) -> None:
        """Writes why the run failed."""
        reason = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exception(error)}
        with contextlib.suppress(OSError):  # a full disk may be the reason
            self.write_json("error.json", reason)

    def write_json(self, name: str, content: Any) -> None:
        write_atomically(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def last_checkpoint(self) -> Position | None:
        """The newest checkpoint that is what was written; says which ones are not."""
        damaged = []
        for path in (self.checkpoints / name for name in CHECKPOINTS):
            if path.exists():
                try:
                    return Position.read(path)
                except DamagedCheckpointError as error:
                    damaged.append(f"{path}: {error}")
                    log.warning("damaged checkpoint, trying the one before it: %s", damaged[-1])
        if damaged:
            raise UserError("no checkpoint of this run can be read; resume=never starts it again:\n" + "\n".join(damaged))
        return None

    @property
    def is_of_sweep(self) -> bool:
        """Whether a sweep expects it."""
        jobs = read_note(self.folder.parent / "sweep.json").get("jobs")
        listed = jobs if isinstance(jobs, list) else ()
        return any(isinstance(job, dict) and job.get("folder") == self.folder.name for job in listed)


@cache
def _identity_of(folder: Path, written: int) -> str:
    """Of a config.yaml that was `written` then."""
    config = read_config(folder).config
    return identity(config, processes_of(Run(folder).manifest, config))


def runs_of(parent: Path, hash8: str) -> list[Run]:
    """The folders of an identity, the original first: those with the name that we give, or, if there is none, those with
    another name, by their configs. A name that ends as ours do is another run's (eight digits may be a date)."""
    there = [Run(path) for path in parent.glob(f"*-{hash8}")]
    if not there:
        others = [Run(path) for path in parent.glob("*") if not re.search(r"-(?!\d+$)[0-9a-f]{8}$", path.name)]
        there = [run for run in others if run.identity == hash8]
    return sorted(there, key=lambda run: run.originality)


@cache  # once a process
def _say_copies(folder: Path, copies: str) -> None:
    log.info("%s is taken for this run; beside it are copies, which stay as they are: %s", folder, copies)


def _write_process_id(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


def read_note(path: Path) -> dict[str, Any]:
    """What a file says that a run can do without; of a damaged one nothing, and a note."""
    if not path.is_file():
        return {}
    try:
        return read_json(path, "going on without it")
    except UserError as error:
        log.warning("%s", error)
        return {}


def processes_of(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """How many processes trained a run; where an earlier version did not note it, as its config says."""
    if "processes" in manifest:
        return int(manifest["processes"])
    trainer = config.get("trainer") or {}
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return count * trainer.get("num_nodes", 1)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The lines of a `metrics.csv`, each a dict of its columns; a last line that was cut off in the middle is left out."""
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    return [line for line in csv.DictReader(io.StringIO(whole, newline="")) if line.get("step")]


def describe_environment() -> dict[str, Any]:
    """What a result may depend on beside the config."""
    diff = _git("diff", "HEAD")
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cuda = torch.cuda.is_available()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None,
        "packages": versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def of_last_digits(environment: dict[str, Any]) -> dict[str, Any]:
    """What the last digits of a result depend on."""
    versions = {name: environment.get("packages", {}).get(name) for name in ("torch", "transformers")}
    versions |= environment.get("classes_of", {})
    return {"device": environment.get("device"), "threads": environment.get("threads")} | versions


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

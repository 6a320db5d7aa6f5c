"""A run's folder: found by what the run computes, locked while it works, complete when `summary.json` is there.

    outputs/<name>/<slug>-<hash8>/        hash8: of every key that decides the result
        config.yaml  manifest.json        written before training
        model.json  vocab.json  tokenizer/     what it takes to open the model again, without its source
        checkpoints/  tensorboard/  metrics.csv
        summary.json                      written last
        error.json, pruned.json           why it failed, or why a search gave it up

The same command finds the same folder, so it continues what it left, or says that it is done.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from torch import nn

from mlm_lightning.batch import Vocab
from mlm_lightning.checkpoints import FORMAT, STATE, DamagedCheckpointError, differences, read_checkpoint
from mlm_lightning.config import Config, TrainerSettings, resolve_target
from mlm_lightning.errors import BusyError, UserError
from mlm_lightning.files import write_atomically

CHECKPOINTS = ("last.ckpt", "previous.ckpt")

Status = Literal["complete", "running", "failed", "pruned", "interrupted", "missing"]

# They decide where, how fast or how watched a run is, not its result.
_NOT_IDENTITY = frozenset(
    {
        *("name", "resume", "output_dir", "logger", "sweep", "launcher", "hydra"),
        *("prepare", "data.cache_dir", "data.num_workers"),
        *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.auto_requeue"),
    }
)
# They may differ where one run goes on from another as if it were the same: its length, and the parts of its batches.
_NOT_KINSHIP = frozenset({"trainer.max_steps", "trainer.max_epochs", "data.batch_size", "trainer.accumulate_grad_batches"})


# A lock belongs to an open file, and a forked data worker inherits that: it would hold the lock of a killed run for seconds.
_held_locks: set[int] = set()


def _close_held_locks() -> None:
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


def _lock(descriptor: int, patience: float) -> None:
    """Locks an open file. Raises OSError where another process keeps it for longer than `patience` seconds."""
    import fcntl

    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


os.register_at_fork(after_in_child=_close_held_locks)


def deciding(config: Config, without: frozenset[str] = frozenset()) -> Config:
    """The part of a config that decides the result."""

    def decides(key: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        inside = {name: f"{key}.{name}" if key else name for name in value}
        return {name: decides(path, value[name]) for name, path in inside.items() if path not in _NOT_IDENTITY | without}

    return decides("", config)


def identity(config: Config) -> str:
    """Eight hex digits of everything in a config that decides the result."""
    return _hash8(deciding(config))


def kinship(config: Config) -> str:
    """Eight hex digits that runs share which differ in their length alone, or in the parts that their batches are made of."""
    return _hash8([deciding(config, without=_NOT_KINSHIP), rows_per_step(config)])


def rows_per_step(config: Config) -> int:
    """The rows of an optimizer step, on all ranks."""
    trainer = TrainerSettings(**config["trainer"])
    return config["data"]["batch_size"] * trainer.accumulate_grad_batches * trainer.world_size()


def _hash8(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def slug(overrides: Sequence[str]) -> str:
    """A readable name from the overrides that decide the result, in their order, at most 80 characters."""
    words = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if key not in _NOT_IDENTITY and key.partition(".")[0] not in _NOT_IDENTITY:
            words.append(re.sub(r"[^A-Za-z0-9._=+-]+", "-", override.lstrip("+~")).strip("-"))
    return ",".join(filter(None, words))[:80].strip("-,.") or "default"


@dataclass
class Run:
    """A run's folder and config."""

    folder: Path
    config: Config

    @classmethod
    def find(cls, config: Config, overrides: Sequence[str] = ()) -> "Run":
        """The folder of this config: the one that is there, else a new name; creates nothing."""
        parent = Path(config["output_dir"]) / config["name"]
        hash8 = identity(config)
        there = sorted(parent.glob(f"*-{hash8}")) if parent.is_dir() else []
        return cls(there[0] if there else parent / f"{slug(overrides)}-{hash8}", config)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def summary(self) -> dict[str, Any] | None:
        """The result of a complete run."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def status(self) -> Status:
        """Where the run stands. `interrupted`: stopped or killed, and continued by the same command."""
        if (self.folder / "summary.json").is_file():
            return "complete"
        if self.is_locked():
            return "running"
        for name, status in (("error.json", "failed"), ("pruned.json", "pruned")):
            if (self.folder / name).is_file():
                return status  # type: ignore[return-value]
        return "interrupted" if (self.folder / "config.yaml").is_file() else "missing"

    @property
    def reason(self) -> str:
        """Why the run failed or was pruned; empty otherwise."""
        for name in ("error.json", "pruned.json"):
            if content := _read_json(self.folder / name):
                return str(content.get("message", ""))
        return ""

    def is_locked(self) -> bool:
        """Whether a process is working in the run."""
        import fcntl

        try:
            with (self.folder / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and holds its lock; BusyError if another process holds it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output_dir={self.folder.parent.parent}: {self.folder} cannot be made there: {error.strerror}"
            ) from error
        with (self.folder / ".lock").open("a+") as lock:
            try:
                _lock(lock.fileno(), patience=2.0)  # a process that was just killed may still be dying
            except OSError as error:
                lock.seek(0)
                raise BusyError(
                    f"{self.folder}: process {lock.read().strip() or '?'} is working in this run; wait for it, or stop it first"
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            _held_locks.add(lock.fileno())
            try:
                yield
            finally:
                _held_locks.discard(lock.fileno())
                lock.truncate(0)
                if self.folder.is_dir() and [path.name for path in self.folder.iterdir()] == [".lock"]:
                    self._remove_empty()

    def _remove_empty(self) -> None:
        """Leaves nothing behind of a run that never started."""
        (self.folder / ".lock").unlink()
        for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
            with contextlib.suppress(OSError):  # others are in it
                folder.rmdir()

    def move_aside(self) -> Path | None:
        """Moves the folder to `<name>/.old/`; never deletes."""
        if not self.folder.exists():
            return None
        old = self.folder.parent / ".old"
        old.mkdir(exist_ok=True)
        target = old / f"{self.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.folder.rename(target)
        return target

    def open(self) -> None:
        """Makes the folder ready: its config, and nothing half-written."""
        for ended in ("error.json", "pruned.json"):
            (self.folder / ended).unlink(missing_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        for half_written in [*self.checkpoints.glob(".*.tmp"), *self.folder.glob(".*.tmp")]:  # by a killed process
            half_written.unlink()
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)).encode())

    def describe(self, **more: Any) -> list[str]:
        """Writes the manifest; returns what has changed since the one that was there of what last digits depend on."""
        environment, before = describe_environment(), _read_json(self.folder / "manifest.json")
        self.write_json("manifest.json", environment | more)
        return differences(_of_digits(before), _of_digits(environment)) if before else []

    def fail(self, error: BaseException) -> None:
        """Writes why the run failed."""
        reason = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exception(error)}
        with contextlib.suppress(OSError):  # a full disk may be the reason
            self.write_json("error.json", reason)

    def write_json(self, name: str, content: Any) -> None:
        write_atomically(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def last_checkpoint(self) -> "Position | None":
        """The newest checkpoint that is what was written; says which ones are not."""
        damaged = []
        for path in (self.checkpoints / name for name in CHECKPOINTS):
            if path.exists():
                try:
                    return Position.read(path)
                except DamagedCheckpointError as error:
                    damaged.append(f"{path}: {error}")
                    print(f"damaged checkpoint, trying the one before it: {damaged[-1]}", file=sys.stderr)
        if damaged:
            raise UserError("no checkpoint of this run can be read; resume=never starts it again:\n" + "\n".join(damaged))
        return None

    def kin(self, below: int) -> tuple[Path, int] | None:
        """The folder and the step of an unequal run that this one could go on from: the longest of its kin with less than
        `below` steps."""
        found, wanted = [], kinship(self.config)
        for manifest in self.folder.parent.glob("*/manifest.json"):
            last = manifest.parent / "checkpoints" / CHECKPOINTS[0]
            if manifest.parent != self.folder and _read_json(manifest).get("kinship") == wanted and last.exists():
                with contextlib.suppress(Exception):  # whatever is wrong with it, it's not this run's
                    step = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"]
                    found += [(step, manifest.parent)] if step < below else []
        return (max(found)[1], max(found)[0]) if found else None


@dataclass
class Position:
    """Where a run stands: a checkpoint."""

    path: Path
    step: int
    state: dict[str, Any]
    """Our own entries: the record of what is computed, and where it stands."""

    @classmethod
    def read(cls, path: Path) -> "Position":
        """Raises DamagedCheckpointError, and UserError for a checkpoint of a version that can't be continued."""
        checkpoint = read_checkpoint(path, sealed=True)
        state = checkpoint.get(STATE, {})
        written = state.get("record", {}).get("format")
        if written != FORMAT:
            raise UserError(
                f"{path}: is a checkpoint of format {written}, and this version continues format {FORMAT}. Continue it with "
                f"the version that wrote it ({state.get('record', {}).get('version', 'unknown')}), or start again: resume=never"
            )
        return cls(path, checkpoint["global_step"], state)

    @property
    def record(self) -> dict[str, Any]:
        return self.state["record"]

    def changes(self, record: dict[str, Any]) -> list[str]:
        """What differs from a run with this record: `key: before → now`."""
        before, now = ({"data files": each["data"]} | each["config"] for each in (self.record, record))
        return differences(before, now)


def record_of(config: Config, fingerprint: str | None) -> dict[str, Any]:
    """What a run's checkpoints say about what it computes."""
    return {
        "format": FORMAT,
        "version": metadata.version("mlm-lightning"),
        "config": deciding(config),
        "data": fingerprint,
        "world_size": TrainerSettings(**config["trainer"]).world_size(),
        "rows_per_step": rows_per_step(config),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_environment() -> dict[str, Any]:
    """What a result may depend on beside the config."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    diff = git("diff", "HEAD")
    packages: tuple[str, ...] = ("mlm-lightning", "torch", "lightning", "hydra-core", "omegaconf", "numpy")
    packages += ("transformers", "tokenizers", "datasets")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_diff": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None,
        "packages": versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _of_digits(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the last digits of a result depend on."""
    versions = {name: manifest.get("packages", {}).get(name) for name in ("torch", "transformers")}
    return {"device": manifest.get("device"), "threads": manifest.get("threads")} | versions


# opening a run again


@dataclass
class LoadedRun:
    """A trained model, in evaluation mode on the CPU, with all that belongs to it."""

    folder: Path
    checkpoint: Path
    step: int
    config: Config
    model: nn.Module
    vocab: Vocab
    tokenizer: Any | None


def load_run(path: str | Path, trust: bool = False) -> LoadedRun:
    """Opens a run's folder (its best checkpoint, else the last) or one checkpoint in it.

    A folder may come from anywhere: checkpoints are read with `weights_only=True`, and only this package's own classes are
    instantiated unless `trust` says otherwise. Raises UserError where `path` is no run.
    """
    folder, checkpoint = locate(path)
    config = read_config(folder)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        description = json.loads((folder / "model.json").read_text())
        target_name, separates = description.pop("_target_"), description.pop(_SEPARATES, False)
        vocab = _vocab_from_json(json.loads((folder / "vocab.json").read_text()))
    except Exception as error:
        raise UserError(f"{checkpoint}: cannot be read: {' '.join(str(error).split())[:300]}") from error
    target = resolve_target(target_name, trust)
    model: Any = target(**description)
    if separates:
        model.separate_documents()
    prefix = "model."
    weights = {name.removeprefix(prefix): value for name, value in state["state_dict"].items() if name.startswith(prefix)}
    model.load_state_dict(weights)
    model.eval()
    return LoadedRun(folder, checkpoint, state["global_step"], config, model, vocab, load_tokenizer(folder))


def locate(path: str | Path, argument: str = "RUN") -> tuple[Path, Path]:
    """The folder and the checkpoint that a RUN argument (or `resume`) names."""
    path = Path(path)
    if path.is_file() and path.suffix == ".ckpt":
        folder, checkpoint = path.parent.parent, path
    elif path.is_dir():
        folder = path
        there = [path / "checkpoints" / name for name in ("best.ckpt", *CHECKPOINTS)]
        found = [each for each in there if each.is_file()]
        if not found:
            raise UserError(f"{argument}={path}: has no checkpoint; give a run's folder (outputs/NAME/…) or a .ckpt file in it")
        checkpoint = found[0]
    else:
        raise UserError(
            f"{argument}={path}: no such folder or checkpoint; give a run's folder (outputs/NAME/…) or a .ckpt file in it"
        )
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{argument}={path}: is not a run: there is no {folder / 'config.yaml'}")
    return folder, checkpoint


def read_config(folder: Path) -> Config:
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


_SEPARATES = "separates_documents"  # of model.json: no argument of the model, but a method to call on it


def describe_model(run: Run, model: nn.Module, vocab: Vocab, seq_len: int, separates_documents: bool = False) -> None:
    """Writes model.json and vocab.json: enough to build the model again without its data or the hub."""
    rebuild: Any = getattr(model, "rebuild_config", None)
    if rebuild is not None:
        description = rebuild()
    else:
        arguments = {"vocab_size": vocab.size, "seq_len": seq_len}
        description = run.config["model"] | arguments
    run.write_json("model.json", description | ({_SEPARATES: True} if separates_documents else {}))
    run.write_json("vocab.json", asdict(vocab))


def load_tokenizer(folder: Path) -> Any | None:
    """The tokenizer that a text run keeps in its folder."""
    if not (folder / "tokenizer").is_dir():
        return None
    from mlm_lightning.data.text.tokenizer.load import load_tokenizer as load

    return load(folder / "tokenizer")


def _vocab_from_json(content: dict[str, Any]) -> Vocab:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    return Vocab(**fields)

"""The folder of a text's tokens: whole or not there, found again by what it depends on, built by one process at a time.

    <cache_dir>/<fingerprint>/
      meta.json               counts, warnings, where it came from; written last
      vocab.json  tokenizer/  all that a run needs of the tokenizer; `tokenizer/` opens with AutoTokenizer
      train.tokens  val.tokens  test.tokens            the tokens, nothing else: uint16 or uint32, to be memory-mapped
      train.ends    val.ends    test.ends              where each document ends (exclusive): int64
      reading-2               empty: no documents or labels are read otherwise today
      train.ngrams-2          how often its tokens and pairs of them occur (ngrams.py); made when it is first asked for
      runs/                   the folder of each run that was trained on it, a file each: who needs it (`mlm clean`)
    <cache_dir>/.<fingerprint>.work/                   an unfinished one, which the same command goes on with

A process that has built a folder renames it into place, so nobody ever sees half of one.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlm_lightning.batch import Vocab
from mlm_lightning.data.ngrams import VERSION, NGramCounts
from mlm_lightning.data.text.prepare.shards import ENDS_DTYPE, LABEL_DTYPE
from mlm_lightning.files import sync, write_atomically

log = logging.getLogger(__name__)

CHECKED = "reading-2"
"""A file in each cache whose files are read today as they were when it was made."""

RUNS = "runs"
"""The folder of these notes."""

_SHORT, _MANY = 32, 1_000_000  # tokens of a document; documents

_WORK = re.compile(r"\.[0-9a-f]{24}(-2)?\.work")
_STALE_DAYS = 14
"""After so long, the unfinished work of a command that nobody repeated is deleted."""


@dataclass(frozen=True)
class TokenCache:
    """A complete cache folder."""

    folder: Path
    meta: dict[str, Any]
    vocab: Vocab

    @staticmethod
    def open(folder: Path) -> "TokenCache | None":
        """None where it is missing, or damaged."""
        try:
            meta, vocab = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("meta.json", "vocab.json"))
            cache = TokenCache(folder, meta, Vocab.from_json(vocab))
            tokenizer = [folder / "tokenizer" / name for name in ("tokenizer.json", "tokenizer_config.json")]
            whole = all(file.read_bytes().rstrip().endswith(b"}") for file in tokenizer)
            for split, counts in cache.splits.items():
                tokens_file, ends_file = cache.files(split)
                whole &= tokens_file.stat().st_size == counts["tokens"] * cache.dtype.itemsize
                whole &= ends_file.stat().st_size == counts["documents"] * ENDS_DTYPE.itemsize
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cache if whole else None

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.meta["dtype"])

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        return self.meta["splits"]

    def files(self, split: str) -> tuple[Path, Path]:
        """That of the tokens, and that of the documents' ends."""
        return self.folder / f"{split}.tokens", self.folder / f"{split}.ends"

    def labels(self, split: str) -> np.ndarray:
        """The hash of each document's label."""
        return np.fromfile(self.folder / f"{split}.labels", LABEL_DTYPE)

    def short_documents(self) -> Iterator[str]:
        """A warning where chunks have parts of many documents."""
        if "train" in self.splits:
            ends_N = np.fromfile(self.files("train")[1], ENDS_DTYPE, count=_MANY)
            median = np.median(np.diff(ends_N, prepend=0))
            remedy = "data.packing=sentence_pack keeps them apart"
            if self.meta["request"]["txt_documents"] == "line":
                remedy = "data.txt_documents=paragraph, file or auto makes longer ones"
            if median < _SHORT:
                yield f"the median document has {median:.0f} tokens, so that a row has parts of many; {remedy}"

    def ngrams(self) -> NGramCounts:
        """The counts of the tokens for training, made unless they lie there. Those of version 1 are in `train.ngrams`."""
        token_T = np.asarray(np.memmap(self.files("train")[0], self.dtype, "r"))
        return NGramCounts.of_file(self.folder / f"train.ngrams-{VERSION}", token_T, self.vocab)


def mended(folder: Path) -> Path:
    """The cache of what an earlier version read otherwise, and kept in this folder."""
    return folder.with_name(f"{folder.name}-2")


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """The folder to build in, beside `folder`, for one process at a time; what an earlier one did not finish is still in it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    work = folder.parent / f".{folder.name}.work"
    try:
        try:
            lock.acquire(timeout=2)
        except Timeout:
            log.info("another process is preparing the same data; waiting for it (%s)", lock.lock_file)
            lock.acquire()
        for unfinished in _unfinished(folder.parent):
            with suppress(OSError):
                newest = max(path.stat().st_mtime for path in [unfinished, *unfinished.iterdir()])
                if time.time() - newest > _STALE_DAYS * 86_400:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except NotImplementedError:  # a file system without locks: each builds for itself, and the first to rename wins
        work = work.with_suffix(f".{os.uname().nodename}-{os.getpid()}.work")
    try:
        work.mkdir(exist_ok=True)
        yield work
    finally:
        lock.release(force=True)


def publish(work: Path, folder: Path) -> None:
    """Renames a finished folder into place. What lies there already is another process' finished work, or damaged."""
    for path in [*work.rglob("*"), work]:
        sync(path)
    if folder.exists() and TokenCache.open(folder) is None:
        with suppress(OSError):
            (folder / RUNS).rename(work / RUNS)
        shutil.rmtree(folder)
    try:
        work.rename(folder)
    except OSError:
        if TokenCache.open(folder) is None:
            raise
        shutil.rmtree(work)
    sync(folder.parent)


def token_caches(home: Path) -> list[Path]:
    """The caches in a folder, complete or unfinished; nothing else that is there: a foreign config may name any folder."""
    complete = []
    for file in home.glob("*/meta.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads(file.read_bytes())["fingerprint"] == file.parent.name:
                complete.append(file.parent)
    return sorted([*complete, *_unfinished(home)])


def _unfinished(home: Path) -> list[Path]:
    """Unfinished caches, beside the locks of whoever builds them."""
    works = [path for path in home.glob(".*.work") if _WORK.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
    return [path for path in works if path.with_suffix(".lock").is_file()]


def note_run(folder: Path, run: Path) -> None:
    """Notes in a cache that a run is trained on it; one that is read-only goes without."""
    path = os.fsencode(run.absolute())
    with suppress(OSError):
        write_atomically(folder / RUNS / hashlib.sha256(path).hexdigest()[:16], path)


def noted_runs(folder: Path) -> tuple[list[Path], bool]:
    """The runs that were trained on a cache, and whether these are all: a cache of an earlier version knows the later ones."""
    runs = [Path(os.fsdecode(each.read_bytes())) for each in sorted(folder.glob(f"{RUNS}/[0-9a-f]*"))]
    are_all = False
    with suppress(OSError, ValueError):
        are_all = "runs" in json.loads((folder / "meta.json").read_bytes())
    return runs, are_all and len(runs) > 0


def is_being_built(path: Path) -> bool:
    """Whether a process is at work on a cache."""
    from filelock import FileLock, Timeout

    name = path.name.removeprefix(".").partition(".")[0]
    lock_file = path.parent / f".{name}.lock"
    if not lock_file.exists():
        return False
    try:
        with FileLock(lock_file, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True

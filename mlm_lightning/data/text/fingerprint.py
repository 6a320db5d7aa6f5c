"""What the token files depend on, by content where it is at hand: a cache is found again by a digest of all that.

    settings ─► request   files' digests, tokenizer's digest, sizes, seed …  ─►  fingerprint   e3b0c44298fc1c149afbf4c8

How rows are cut from the token files is not among it: another length is free.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlm_lightning.data.text.documents.find import file_errors, format_of
from mlm_lightning.data.text.settings import TextSettings, path_key
from mlm_lightning.data.text.tokenizer.load import TRAIN, tokenizer_files
from mlm_lightning.files import write_atomically

FORMAT = 2
"""Of the cache; a change makes every older cache one that is not found."""

_TRAINERS = {"unigram": "unigram (sentencepiece)"}
"""Algorithms whose trainer has been replaced: tokens of the old one are not those of the new one."""

_LARGE = 64_000_000
_SAME_CLOCK_TICK = 2.0  # seconds: file systems' times are coarse


def request_of(settings: TextSettings) -> dict[str, Any]:
    """All that the token files depend on. A hub dataset or tokenizer is known by its name and revision alone, so that a cached
    one needs no connection; local files by their bytes."""
    trains = settings.tokenizer == TRAIN
    tokenizer = [] if trains else _named_digests(tokenizer_files(settings.tokenizer), settings, "data.tokenizer")
    return {
        "format": FORMAT,
        "documents": _documents(settings),
        **_reading(settings),
        "tokenizer": tokenizer or settings.tokenizer,
        "vocab_size": settings.vocab_size,
        "tokenizer_algorithm": _TRAINERS.get(settings.tokenizer_algorithm, settings.tokenizer_algorithm) if trains else None,
        "sizes": [settings.train_size, settings.val_size, settings.test_size],
        "deduplicate": settings.deduplicate,
        "streaming": settings.streaming,
        "seed": settings.seed,
    }


def fingerprint_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]


def _reading(settings: TextSettings) -> dict[str, Any]:
    """How documents are found in files; what says nothing about these files is left out."""
    is_txt = [format_of(file).startswith(".txt") for files in settings.files().values() for file in files]
    return {
        "text_column": settings.text_column if settings.dataset is not None or not all(is_txt) else None,
        "txt_documents": settings.txt_documents if any(is_txt) else None,
    }


def _documents(settings: TextSettings) -> dict[str, Any]:
    if settings.dataset is None:
        return {
            split: [
                digest + format_of(file)
                for file, digest in zip(files, digests(files, settings.cache_path, f"data.{path_key(split)}"), strict=True)
            ]
            for split, files in settings.files().items()
        }
    folder = Path(settings.dataset).expanduser()
    content: Any = settings.dataset
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        names = [str(file.relative_to(folder)) for file in files]
        content = list(zip(names, digests(files, settings.cache_path, "data.dataset"), strict=True))
    splits = {"val_split": settings.val_split, "test_split": settings.test_split}
    return {"dataset": content, "config": settings.dataset_config, "revision": settings.revision, **splits}


def _named_digests(files: list[Path], settings: TextSettings, key: str) -> list[tuple[str, str]]:
    return [(file.name, digest) for file, digest in zip(files, digests(files, settings.cache_path, key), strict=True)]


def digests(files: Sequence[Path], cache_dir: Path, key: str) -> list[str]:
    """The SHA-256 of each file's bytes. Raises ConfigError for one that cannot be read, named after the config's `key`."""

    def digest(file: Path) -> str:
        with file_errors(file, key):
            return _digest(file, cache_dir)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, files))


def _digest(file: Path, cache_dir: Path) -> str:
    """A large file is read once, and known by its name, size and times from then on, unless it was changed so shortly before
    that another change could show the same times."""
    stat = file.stat()
    name = str(file.resolve())
    known = [name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    note = cache_dir / ".digests" / hashlib.sha256(name.encode()).hexdigest()[:24]
    if stat.st_size >= _LARGE:
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(note.read_text(encoding="utf-8"))
            if noted["file"] == known:
                return noted["sha256"]
    started = time.time()
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if stat.st_size >= _LARGE and started - max(stat.st_mtime, stat.st_ctime) > _SAME_CLOCK_TICK:
        with suppress(OSError):  # a note is a convenience
            write_atomically(note, json.dumps({"file": known, "sha256": digest}).encode())
    return digest

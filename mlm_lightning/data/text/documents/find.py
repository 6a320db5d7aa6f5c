"""Files by their names and their content: which a pattern stands for, in which format, and a digest of each one's bytes."""

import gzip
import hashlib
import io
import json
import logging
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, cast

from mlm_lightning.errors import NO_VALUE, ConfigError, one_line
from mlm_lightning.files import write_atomically
from mlm_lightning.values import expanded

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_ENDINGS = f"{', '.join(FORMATS)} ({', '.join(COMPRESSIONS)} after all but the last)"

log = logging.getLogger(__name__)

_BLANK_LINE = re.compile(rb"\n\s*\n|\r\s*\r")
_MANY_FILES, _LARGE_FILE = 20, 1_000_000

_LARGE = 64_000_000
_SAME_CLOCK_TICK = 2.0  # seconds: file systems' times are coarse


def find_files(patterns: Sequence[str], key: str, says: bool = False) -> list[Path]:
    """The files that paths, folders (searched recursively) and globs stand for, in the order given, each once. Where it `says`
    so, a note counts by kinds what folders and globs have besides.

    Raises ConfigError where a pattern stands for no file, and for a file of unknown format.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        path = expanded(pattern)
        if path.is_dir():
            found = list(_inside(path))
            missing = f"the folder holds no file that ends in {_ENDINGS}"
        elif path.exists():
            found, missing = [path], ""
            if not _is_readable(path):
                raise ConfigError(key, path, "unknown format", f"files must end in {_ENDINGS}")
        else:
            # formats that we do not read are left out, "data/*" is common; so are folders, unless "**" has searched them
            found = sorted(map(Path, glob(str(path), recursive=True)))
            found = [each for each in found if "**" not in pattern or not each.is_dir()]
            missing = "no readable file matches the pattern" if has_magic(str(path)) else "there is no such file or folder"
        readable = list(filter(_is_readable, found))
        if not readable:
            raise ConfigError(key, pattern, missing, "give a file, a folder or a glob such as 'corpus/*.txt'")
        for file in readable:
            files.setdefault(file.resolve(), file)  # one that has several names is still one
        if says and len(readable) < len(found):
            kinds = Counter(map(_kind, set(found).difference(readable)))
            listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
            log.info("left out of %s=%s: %s", key, pattern, listed)
    return list(files.values())


def _inside(folder: Path) -> Iterator[Path]:
    """The files in a folder, sorted, then those in folders that its links lead to, each folder once; none that is hidden."""
    folders, seen = [folder], set[Path]()
    for top in folders:
        if top.resolve() in seen:
            continue
        found: list[Path] = []
        for parent, names, files in os.walk(top):
            here = Path(parent)
            seen.add(here.resolve())
            names[:] = sorted(name for name in names if name[0] != "." and (here / name).resolve() not in seen)
            folders += [here / name for name in names if (here / name).is_symlink()]
            found += [here / name for name in files if name[0] != "."]
        yield from sorted(found)


def _kind(path: Path) -> str:
    """Of what is not read."""
    if not path.exists():
        return "dangling link(s)"
    return "folder(s)" if path.is_dir() else "".join(suffixes(path)) or "without an ending"


def suffixes(file: Path) -> tuple[str, str]:
    """The format and the compression: (".txt", ".gz") for a.txt.gz, (".txt", "") for a.TXT."""
    name = Path(file.name.lower())
    return (Path(name.stem).suffix, name.suffix) if name.suffix in COMPRESSIONS else (name.suffix, "")


def _is_readable(file: Path) -> bool:
    format_, compression = suffixes(file)
    return format_ in FORMATS and not (format_ == ".parquet" and compression) and file.is_file()


def open_file(file: Path) -> BinaryIO:
    """Its bytes, decompressed."""
    _, compression = suffixes(file)
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"), 1 << 20)
    return file.open("rb", buffering=1 << 20)


def choose_txt_documents(files: Sequence[Path]) -> str:
    """What `txt_documents=auto` stands for with the .txt files among these."""
    files = [file for file in files if suffixes(file)[0] == ".txt"]
    num_with_paragraphs = 0
    for file in files:
        with open_file(file) as stream:
            start = stream.read(_LARGE_FILE).strip()
        num_with_paragraphs += _BLANK_LINE.search(start) is not None
    if 2 * num_with_paragraphs >= len(files):
        return "paragraph"
    is_small = all(file.stat().st_size <= _LARGE_FILE for file in files)
    return "file" if len(files) >= _MANY_FILES and is_small else "line"


@contextmanager
def file_errors(file: Path, key: str) -> Iterator[None]:
    """What is wrong with a file becomes a ConfigError, named after the config's `key`."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:  # those of pyarrow are ValueErrors
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(key, NO_VALUE, f"cannot read {file} ({reason})", "repair it or leave it out") from error


def digests(files: Sequence[Path], cache_dir: Path, key: str) -> list[str]:
    """The SHA-256 of each file's bytes. A large file is read once, and known by its name, size and times from then on, unless
    it was changed so shortly before that another change could show the same times."""

    def digest(file: Path) -> str:
        with file_errors(file, key):
            stat, name = file.stat(), str(file.resolve())
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

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest, files))

"""Files by their names and their content: which a pattern stands for, in which format, and a digest of each one's bytes."""

import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path

from mlm_lightning.errors import NO_VALUE, ConfigError, one_line
from mlm_lightning.files import write_atomically
from mlm_lightning.values import expanded

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
_ENDINGS = f"{', '.join(FORMATS)} ({', '.join(COMPRESSIONS)} after all but the last)"

_LARGE = 64_000_000
_SAME_CLOCK_TICK = 2.0  # seconds: file systems' times are coarse


def find_files(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that paths, folders (searched recursively) and globs stand for, in the order given, each once.

    Raises ConfigError where a pattern stands for no file, and for a file of unknown format.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        path = expanded(pattern)
        if path.is_dir():
            visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
            found = sorted(filter(_is_readable, visible))
            missing = f"the folder holds no file that ends in {_ENDINGS}"
        elif path.exists():
            found, missing = [path], ""
        else:
            # a folder that a glob matches is not searched, and neither are formats that we do not read: "data/*" is common
            found = sorted(filter(_is_readable, map(Path, glob(str(path), recursive=True))))
            missing = "no readable file matches the pattern" if has_magic(str(path)) else "there is no such file or folder"
        if not found:
            raise ConfigError(key, pattern, missing, "give a file, a folder or a glob such as 'corpus/*.txt'")
        for file in found:
            files.setdefault(file.resolve(), file)  # one that has several names is still one
    for file in files.values():
        if not _is_readable(file):
            raise ConfigError(key, file, "unknown format", f"files must end in {_ENDINGS}")
    return list(files.values())


def suffixes(file: Path) -> tuple[str, str]:
    """The format and the compression: (".txt", ".gz") for a.txt.gz, (".txt", "") for a.txt."""
    return (Path(file.stem).suffix, file.suffix) if file.suffix in COMPRESSIONS else (file.suffix, "")


def _is_readable(file: Path) -> bool:
    format_, compression = suffixes(file)
    return format_ in FORMATS and not (format_ == ".parquet" and compression) and file.is_file()


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

"""Files by their names: which a pattern stands for, in which format, and how they are opened."""

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, cast

from mlm_lightning.errors import NO_VALUE, ConfigError, one_line

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")


def find_files(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that paths, folders (searched recursively) and globs stand for, in the order given, each once.

    Raises ConfigError where a pattern stands for no file, and for a file of unknown format.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
            found = sorted(filter(_is_readable, visible))
            missing = f"the folder holds no file that ends in {_endings()}"
        elif path.exists():
            found, missing = [path], ""
        else:
            # a folder that a glob matches is not searched, and neither are formats that we do not read: "data/*" is common
            found = sorted(file for file in map(Path, glob(str(path), recursive=True)) if _is_readable(file))
            missing = "no readable file matches the pattern" if has_magic(str(path)) else "there is no such file or folder"
        if not found:
            raise ConfigError(key, pattern, missing, "give a file, a folder or a glob such as 'corpus/*.txt'")
        for file in found:
            files.setdefault(file.resolve(), file)  # one that has several names is still one
    for file in files.values():
        if not _is_readable(file):
            raise ConfigError(key, file, "unknown format", f"files must end in {_endings()}")
    return list(files.values())


def format_of(file: Path) -> str:
    """Its endings: .txt.gz of a.txt.gz."""
    return "".join(suffixes(file))


def suffixes(file: Path) -> tuple[str, str]:
    """The format and the compression: (".txt", ".gz") for a.txt.gz, (".txt", "") for a.txt."""
    if file.suffix in COMPRESSIONS:
        return Path(file.stem).suffix, file.suffix
    return file.suffix, ""


def _is_readable(file: Path) -> bool:
    format_, compression = suffixes(file)
    return format_ in FORMATS and not (format_ == ".parquet" and compression) and file.is_file()


def _endings() -> str:
    return f"{', '.join(FORMATS)} ({', '.join(COMPRESSIONS)} after all but the last)"


def open_file(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"), 1 << 20)
    return file.open("rb", buffering=1 << 20)


@contextmanager
def file_errors(file: Path, key: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:  # those of pyarrow are ValueErrors
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(key, NO_VALUE, f"cannot read {file} ({reason})", "repair it or leave it out") from error

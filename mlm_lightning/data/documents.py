"""Reads documents one after the other, whatever they are stored in, and never holds more than a few of them in memory.

    speeches/*.txt   one document a line, a paragraph or a file ┐
    news.jsonl       {"text": "…"}                              ├─►  "Fellow citizens …", "The full cost …", …
    news.csv         a column                                   │     document 0          document 1
    news.parquet     a column                                   │
    the hub          a column of a dataset's split              ┘

Documents have numbers, 0 … N - 1 in the order of the files, so that a split can be a set of numbers. Bad input is either an
error that names what to do, or a `Problem`: counted, with the file and the line of the first few.
"""

import csv
import gzip
import io
import json
import logging
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

log = logging.getLogger(__name__)

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
TXT_DOCUMENTS = ("line", "file", "paragraph")

_SHOWN = 3  # places named in a warning


class Problems:
    """What was wrong with the input but did not stop the reading: how often, and where first."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def add(self, what: str, where: str) -> None:
        self.counts[what] += 1
        places = self._places.setdefault(what, [])
        if len(places) < _SHOWN:
            places.append(where)

    def messages(self) -> list[str]:
        """One sentence a kind of problem, such as "2 lines that are not JSON were skipped: a.jsonl line 3, b.jsonl line 9"."""
        messages = []
        for what, count in self.counts.items():
            more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
            messages.append(f"{count:,} {what}: {', '.join(self._places[what])}{more}")
        return messages


EMPTY = "empty document(s) skipped"
NOT_UTF8 = "line(s) with bytes that are not UTF-8, each such byte replaced by U+FFFD"
NOT_JSON = "line(s) skipped that are not a JSON object"
NO_COLUMN = "row(s) skipped that lack the column"
NOT_TEXT = "row(s) skipped whose value is not a string"
NOT_CSV = "row(s) skipped that are not valid CSV"


class Documents(Protocol):
    """The documents of one origin."""

    def count(self, problems: Problems) -> int:
        """How many documents there are, N; notes what is wrong with them."""
        ...

    def texts(self, numbers: np.ndarray) -> Iterator[str]:
        """The documents with these numbers. Files are read from front to back, so theirs come in ascending order; a dataset's
        come in the order of `numbers`."""
        ...

    def content(self) -> Any:
        """Identifies the content; JSON."""
        ...


def find_files(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that paths, folders (searched recursively) and globs stand for, in the order given, each once.

    Raises FileNotFoundError where a pattern stands for no file, ValueError for a file of unknown format.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_readable(file) and not _is_hidden(file, path))
            missing = f"the folder holds no file that ends in {_endings()}"
        elif path.exists():
            found, missing = [path], ""
        else:
            # a folder that a glob matches is not searched, and neither are formats that we do not read: "data/*" is common
            found = sorted(file for file in map(Path, glob(str(path), recursive=True)) if _is_readable(file))
            missing = "no readable file matches the pattern" if has_magic(str(path)) else "there is no such file or folder"
        if not found:
            raise FileNotFoundError(f"{key}={pattern}: {missing}; give a file, a folder or a glob such as 'corpus/*.txt'")
        files.update((file, None) for file in found)
    for file in files:
        if not _is_readable(file):
            raise ValueError(f"{key}={file}: unknown format; files must end in {_endings()}")
    return list(files)


def digest_files(files: Sequence[Path], key: str) -> list[str]:
    """The SHA-256 of each file's bytes, with its format."""
    digests = []
    for file in files:
        with _file_errors(file, key), file.open("rb") as stream:
            digests.append(file_digest(stream, "sha256").hexdigest() + "".join(_suffixes(file)))
    return digests


class FileDocuments:
    """The documents of files. `key` is the config key that named them (`data.path`), for messages."""

    def __init__(self, files: Sequence[Path], text_column: str, txt_documents: str, key: str):
        self.files = list(files)
        self.text_column = text_column
        self.txt_documents = txt_documents
        self.key = key

    def content(self) -> list[str]:
        return digest_files(self.files, self.key)

    def count(self, problems: Problems) -> int:
        return sum(1 for _ in self._read(problems))

    def texts(self, numbers: np.ndarray) -> Iterator[str]:
        wanted = iter(np.sort(numbers).tolist())
        next_wanted = next(wanted, None)
        for number, text in enumerate(self._read(Problems())):
            if next_wanted is None:
                return
            if number == next_wanted:
                yield text
                next_wanted = next(wanted, None)
        if next_wanted is not None:
            raise ValueError(f"{self.key}: document {next_wanted} is gone; the files changed while they were read, try again")

    def _read(self, problems: Problems) -> Iterator[str]:
        for file in self.files:
            with _file_errors(file, self.key):
                if _suffixes(file)[0] == ".parquet":
                    yield from self._read_parquet(file, problems)
                else:
                    with _open(file) as stream:
                        yield from self._readers()[_suffixes(file)[0]](stream, file, problems)

    def _readers(self) -> dict[str, Callable[[BinaryIO, Path, Problems], Iterator[str]]]:
        return {".txt": self._read_txt, ".jsonl": self._read_jsonl, ".csv": self._read_csv}

    def _read_txt(self, stream: BinaryIO, file: Path, problems: Problems) -> Iterator[str]:
        lines = _decode(stream, file, problems)
        if self.txt_documents == "line":
            # blank lines separate; they are no documents that could be missed
            yield from (line for line in lines if not _is_blank(line))
        elif self.txt_documents == "paragraph":
            paragraph: list[str] = []
            for line in lines:
                if not _is_blank(line):
                    paragraph.append(line)
                elif paragraph:
                    yield "\n".join(paragraph)
                    paragraph = []
            if paragraph:
                yield "\n".join(paragraph)
        else:
            text = "\n".join(lines)
            if _is_blank(text):
                problems.add(EMPTY, str(file))
            else:
                yield text

    def _read_jsonl(self, stream: BinaryIO, file: Path, problems: Problems) -> Iterator[str]:
        other_columns: list[str] | None = None
        found = False
        for line_number, line in enumerate(_decode(stream, file, problems), start=1):
            if _is_blank(line):
                continue
            where = f"{file} line {line_number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                problems.add(NOT_JSON, where)
            elif self.text_column not in record:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", where)
                other_columns = other_columns or list(record)
            else:
                found = True
                yield from self._value(record[self.text_column], where, problems)
        if other_columns and not found:
            raise self._missing_column(file, other_columns)

    def _read_csv(self, stream: BinaryIO, file: Path, problems: Problems) -> Iterator[str]:
        csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a field, is less than a long document
        rows = csv.reader(line + "\n" for line in _decode(stream, file, problems))
        header = next(rows, None)
        if header is None:
            return
        if self.text_column not in header:
            raise self._missing_column(file, header)
        column = header.index(self.text_column)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                problems.add(NOT_CSV, f"{file} line {rows.line_num}")
                continue
            where = f"{file} line {rows.line_num}"
            if len(row) > column:
                yield from self._value(row[column], where, problems)
            elif row:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", where)

    def _read_parquet(self, file: Path, problems: Problems) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as table:
            if self.text_column not in table.schema_arrow.names:
                raise self._missing_column(file, table.schema_arrow.names)
            type_ = table.schema_arrow.field(self.text_column).type
            value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
            if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or value_type == pa.string_view()):
                raise ValueError(f"data.text_column={self.text_column}: the column of {file} holds {type_}, not strings")
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[self.text_column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield from self._value(value, f"{file} row {row}", problems)

    def _value(self, value: object, where: str, problems: Problems) -> Iterator[str]:
        if isinstance(value, str) and not _is_blank(value):
            # JSON can spell half a surrogate pair ("\ud800"), which is no character and which no tokenizer takes
            yield value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
        else:
            problems.add(EMPTY if value is None or isinstance(value, str) else NOT_TEXT, where)

    def _missing_column(self, file: Path, columns: Iterable[str]) -> ValueError:
        names = ", ".join(map(repr, columns))
        return ValueError(f"data.text_column={self.text_column}: {file} has no such column; it has {names}")


class HubDocuments:
    """The documents of a split of a `datasets.Dataset`. Their numbers are its row numbers, empty rows included, so that a
    choice of rows is the one that `datasets` would make."""

    def __init__(self, dataset: Any, text_column: str, name: str):
        self.dataset = dataset
        self.text_column = text_column
        self.name = name
        if text_column not in dataset.column_names:
            names = ", ".join(map(repr, dataset.column_names))
            raise ValueError(f"data.text_column={text_column}: {name} has no such column; it has {names}")
        dtype = getattr(dataset.features[text_column], "dtype", None)
        if dtype not in ("string", "large_string"):
            raise ValueError(f"data.text_column={text_column}: the column of {name} holds {dtype}, not strings")

    def content(self) -> str:
        return str(self.dataset._fingerprint)

    def count(self, problems: Problems) -> int:
        return len(self.dataset)

    def texts(self, numbers: np.ndarray) -> Iterator[str]:
        column = self.dataset.select_columns([self.text_column])
        for start in range(0, len(numbers), 256):
            for text in column[numbers[start : start + 256]][self.text_column]:
                # an empty row yields "", for the caller to count: it has a number and may be among those asked for
                yield text or ""


def open_hub(name: str, config: str | None, revision: str | None) -> Any:
    """A `datasets.DatasetDict` from the hub or from a local folder; never runs a dataset's own code.

    Raises ValueError where it cannot be had.
    """
    from datasets import load_dataset

    local = Path(name).expanduser().exists()
    try:
        try:
            return load_dataset(str(Path(name).expanduser()) if local else name, config, revision=revision)
        except RuntimeError as error:
            if local or "scripts are no longer supported" not in str(error):
                raise
            log.info("data.dataset=%s is a script; taking the copy that the hub converted to parquet", name)
            return load_dataset(name, config, revision="refs/convert/parquet")
    except Exception as error:  # the hub's errors have no common ancestor
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"data.dataset={name}: cannot be opened ({type(error).__name__}: {reason}); check the name, data.dataset_config, "
            "data.revision and the connection, or give data.path"
        ) from error


def _decode(stream: BinaryIO, file: Path, problems: Problems) -> Iterator[str]:
    """The lines without their ends (\\n or \\r\\n), the byte-order mark removed. Lines end at \\n alone, unlike with
    `str.splitlines`, which would also cut at form feeds and U+2028."""
    for number, line in enumerate(stream, start=1):
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError(f"{file} is UTF-16; convert it to UTF-8, for instance with iconv")
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            problems.add(NOT_UTF8, f"{file} line {number}")
            yield _replace_bad_bytes(line)


def _replace_bad_bytes(line: bytes) -> str:
    # errors="replace" makes one U+FFFD of several bytes of a truncated character; surrogates stand for one byte each
    return re.sub("[\udc80-\udcff]", "\ufffd", line.decode("utf-8", "surrogateescape"))


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _open(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"), 1 << 20)
    return file.open("rb", buffering=1 << 20)


@contextmanager
def _file_errors(file: Path, key: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{key}: cannot read {file} ({reason}); repair it or leave it out") from error
    except ValueError as error:
        # pyarrow's errors are ValueErrors (a .parquet that is none); ours already say what is wrong
        if type(error) is ValueError:
            raise
        raise ValueError(f"{key}: cannot read {file} ({error}); repair it or leave it out") from error


def _suffixes(file: Path) -> tuple[str, str]:
    """The format and the compression: (".txt", ".gz") for a.txt.gz, (".txt", "") for a.txt."""
    if file.suffix in COMPRESSIONS:
        return Path(file.stem).suffix, file.suffix
    return file.suffix, ""


def _is_readable(file: Path) -> bool:
    format_, compression = _suffixes(file)
    return format_ in FORMATS and not (format_ == ".parquet" and compression) and file.is_file()


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _endings() -> str:
    return f"{', '.join(FORMATS)} ({', '.join(COMPRESSIONS)} after all but the last)"

"""Reads documents, whatever they are stored in, a shard at a time, and never holds more than a few of them in memory.

    speeches/*.txt   one document a line, a paragraph or a file ┐
    news.jsonl       {"text": "…"}                              ├─►  "Fellow citizens …", "The full cost …", …
    news.csv         a column                                   │     document 0          document 1
    news.parquet     a column                                   │
    the hub          a column of a dataset's split              ┘

Documents have numbers, 0 … N - 1 in the order of the files, so that a split can be a set of numbers. A shard is a part that any
process can read on its own: some small files, or a piece of a large one. A document belongs to the piece that it starts in:

    bytes      0              8 MB             16 MB
    lines      ────┃──────┃─────┃──┃────────┃────┃──────
    shards     └──── shard 0 ───┘└─── shard 1 ───┘└─ …

Bad input is either an error that names what to do, or a `Problem`: counted, with the file and the line of the first few.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob, has_magic
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.errors import NO_VALUE, ConfigError, one_line

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = (".gz", ".zst")

SHARD_BYTES = 4_000_000
UNUSED = 255
"""In place of the index of a document's split."""

_SHOWN = 3  # places named in a warning


class Place(NamedTuple):
    """Where something is: `number` counts the lines or rows of `file`, from 1; without it, it is the file itself."""

    file: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}" if self.unit else self.file


class Problems:
    """What was wrong with the input but did not stop the reading: how often, and where first. Those of shards that follow one
    another are added up by `extend`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[Place]] = {}
        self.read: Counter[str] = Counter()
        """Lines or rows read so far of each file."""
        self.lacking: dict[str, list[str]] = {}
        """Of the .jsonl files in which an object lacks the column: the keys that it has."""
        self.having: set[str] = set()
        """The .jsonl files in which an object has the column."""

    def add(self, what: str, where: Place) -> None:
        self.counts[what] += 1
        places = self.places.setdefault(what, [])
        if len(places) < _SHOWN:
            places.append(where)

    def extend(self, later: "Problems") -> None:
        for what, places in later.places.items():
            moved = [place._replace(number=place.number + self.read[place.file]) for place in places]
            self.places[what] = [*self.places.get(what, []), *moved][:_SHOWN]
        self.counts += later.counts
        self.read += later.read
        self.lacking = later.lacking | self.lacking
        self.having |= later.having

    def messages(self) -> list[str]:
        """One sentence a kind of problem, such as "2 lines that are not JSON were skipped: a.jsonl line 3, b.jsonl line 9"."""
        messages = []
        for what, count in self.counts.items():
            more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
            messages.append(f"{count:,} {what}: {', '.join(map(str, self.places[what]))}{more}")
        return messages

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "having": sorted(self.having)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Problems":
        problems = cls()
        problems.counts, problems.read = Counter(values["counts"]), Counter(values["read"])
        problems.places = {what: [Place(*place) for place in places] for what, places in values["places"].items()}
        problems.lacking, problems.having = values["lacking"], set(values["having"])
        return problems


EMPTY = "empty document(s) skipped"
NOT_UTF8 = "line(s) with bytes that are not UTF-8, each such byte replaced by U+FFFD"
NOT_JSON = "line(s) skipped that are not a JSON object"
NO_COLUMN = "row(s) skipped that lack the column"
NOT_TEXT = "row(s) skipped whose value is not a string"
NOT_CSV = "row(s) skipped that are not valid CSV"


class Documents(Protocol):
    """The documents of one origin. Travels to worker processes as names of files."""

    def content(self) -> str | None:
        """What tells this content from another that has the same names; None where the cache's fingerprint does."""
        ...

    def shards(self) -> list[Any]:
        """All of it, in order. The same input gives the same shards."""
        ...

    def size(self, shard: Any) -> int:
        """Bytes of input, about."""
        ...

    def read(self, shard: Any, problems: Problems) -> Iterator[str]:
        """The documents of a shard; notes what is wrong with them."""
        ...

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[Any, np.ndarray]]:
        """Shards that hold the documents with these numbers, in the order in which the splits want them, and for each document
        of a shard the index of its split in SPLITS, or UNUSED. `counts` are those of `shards()`."""
        ...

    def check(self, problems: Problems) -> None:
        """Raises ConfigError where `problems`, those of all shards, say that a column is missing."""
        ...


class Segment(NamedTuple):
    """Of a file: the documents that start in its bytes `start … stop - 1`; of a .parquet, those of its row groups."""

    file: Path
    start: int
    stop: int
    size: int
    is_last: bool = True

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.is_last


def find_files(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that paths, folders (searched recursively) and globs stand for, in the order given, each once.

    Raises ConfigError where a pattern stands for no file, and for a file of unknown format.
    """
    files: dict[Path, Path] = {}
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
            raise ConfigError(key, pattern, missing, "give a file, a folder or a glob such as 'corpus/*.txt'")
        for file in found:
            files.setdefault(file.resolve(), file)  # one that has several names is still one
    for file in files.values():
        if not _is_readable(file):
            raise ConfigError(key, file, "unknown format", f"files must end in {_endings()}")
    return list(files.values())


def format_of(file: Path) -> str:
    """Its endings: .txt.gz of a.txt.gz."""
    return "".join(_suffixes(file))


class FileDocuments:
    """The documents of files. `key` is the config key that named them (`data.path`), for messages."""

    def __init__(self, files: Sequence[Path], text_column: str, txt_documents: str, key: str):
        self.files = list(files)
        self.text_column = text_column
        self.txt_documents = txt_documents
        self.key = key

    def content(self) -> None:
        """The bytes of files are part of the fingerprint."""

    def shards(self) -> list[tuple[Segment, ...]]:
        shards: list[list[Segment]] = [[]]
        size = 0
        for segment in self._segments():
            if shards[-1] and size + segment.size > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(segment)
            size += segment.size
        return [tuple(shard) for shard in shards]

    def size(self, shard: tuple[Segment, ...]) -> int:
        return sum(segment.size for segment in shard)

    def read(self, shard: tuple[Segment, ...], problems: Problems) -> Iterator[str]:
        for segment in shard:
            file, found = segment.file, Problems()
            with file_errors(file, self.key):
                if _suffixes(file)[0] == ".parquet":
                    yield from self._read_parquet(segment, found)
                else:
                    with _open(file) as stream:
                        yield from self._readers()[_suffixes(file)[0]](stream, segment, found)
            problems.extend(found)

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[tuple[Segment, ...], np.ndarray]]:
        """In the order of the files: neighbours stay neighbours."""
        split_N = np.full(sum(counts), UNUSED, dtype=np.uint8)
        for split, chosen in numbers.items():
            split_N[chosen] = SPLITS.index(split)
        parts = np.split(split_N, np.cumsum(counts)[:-1])
        return [(shard, part) for shard, part in zip(self.shards(), parts, strict=True) if (part != UNUSED).any()]

    def check(self, problems: Problems) -> None:
        for file, columns in problems.lacking.items():
            if file not in problems.having:
                raise self._missing_column(Path(file), columns)

    def _segments(self) -> Iterator[Segment]:
        for file in self.files:
            with file_errors(file, self.key):
                cuts = self._cuts(file)
            last = len(cuts) - 2
            for number, ((start, _), (stop, size)) in enumerate(pairwise(cuts)):
                yield Segment(file, start, stop, size, is_last=number == last)

    def _cuts(self, file: Path) -> list[tuple[int, int]]:
        """Where a file may be cut, its beginning and its end too, with the size of what lies before each."""
        size = file.stat().st_size
        format_, compression = _suffixes(file)
        if format_ == ".parquet":
            return [(0, 0), *enumerate(_row_group_sizes(file), start=1)]
        by_line = format_ == ".jsonl" or (format_ == ".txt" and self.txt_documents != "file")
        if compression or not by_line:  # the value of a .csv may go on for lines
            return [(0, 0), (size, size)]
        places = [*range(0, size, SHARD_BYTES), size] if size else [0, 0]
        return [(0, 0), *((stop, stop - start) for start, stop in pairwise(places))]

    def _readers(self) -> dict[str, Callable[[BinaryIO, Segment, Problems], Iterator[str]]]:
        return {".txt": self._read_txt, ".jsonl": self._read_jsonl, ".csv": self._read_csv}

    def _read_txt(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        if self.txt_documents == "line":
            # blank lines separate; they are no documents that could be missed
            yield from (line for line in _decode(_lines(stream, segment), segment, problems, self.key) if not is_blank(line))
        elif self.txt_documents == "paragraph":
            paragraph: list[str] = []
            for line in _decode(_paragraph_lines(stream, segment), segment, problems, self.key):
                if not is_blank(line):
                    paragraph.append(line)
                elif paragraph:
                    yield "\n".join(paragraph)
                    paragraph = []
            if paragraph:
                yield "\n".join(paragraph)
        else:
            text = "\n".join(_decode(_lines(stream, segment), segment, problems, self.key))
            if is_blank(text):
                problems.add(EMPTY, Place(str(segment.file)))
            else:
                yield text

    def _read_jsonl(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        file = str(segment.file)
        for number, line in enumerate(_decode(_lines(stream, segment), segment, problems, self.key), start=1):
            if is_blank(line):
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                problems.add(NOT_JSON, Place(file, "line", number))
            elif self.text_column not in record:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", Place(file, "line", number))
                problems.lacking.setdefault(file, list(record))
            else:
                problems.having.add(file)
                yield from self._value(record[self.text_column], Place(file, "line", number), problems)

    def _read_csv(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a field, is less than a long document
        rows = csv.reader(line + "\n" for line in _decode(_lines(stream, segment), segment, problems, self.key))
        header = next(rows, None)
        if header is None:
            return
        if self.text_column not in header:
            raise self._missing_column(segment.file, header)
        column = header.index(self.text_column)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                problems.add(NOT_CSV, Place(str(segment.file), "line", rows.line_num))
                continue
            where = Place(str(segment.file), "line", rows.line_num)
            if len(row) > column:
                yield from self._value(row[column], where, problems)
            elif row:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", where)

    def _read_parquet(self, segment: Segment, problems: Problems) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = segment.file
        with pq.ParquetFile(file) as table:
            if self.text_column not in table.schema_arrow.names:
                raise self._missing_column(file, table.schema_arrow.names)
            type_ = table.schema_arrow.field(self.text_column).type
            value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
            if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or value_type == pa.string_view()):
                raise ConfigError("data.text_column", self.text_column, f"the column of {file} holds {type_}, not strings")
            groups = range(segment.start, segment.stop)
            for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=[self.text_column]):
                for value in batch.column(0).to_pylist():
                    problems.read[str(file)] += 1
                    yield from self._value(value, Place(str(file), "row", problems.read[str(file)]), problems)

    def _value(self, value: object, where: Place, problems: Problems) -> Iterator[str]:
        if isinstance(value, str) and not is_blank(value):
            # JSON can spell half a surrogate pair ("\ud800"), which is no character and which no tokenizer takes
            yield value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
        else:
            problems.add(EMPTY if value is None or isinstance(value, str) else NOT_TEXT, where)

    def _missing_column(self, file: Path, columns: Iterable[str]) -> ConfigError:
        names = ", ".join(map(repr, columns))
        return ConfigError("data.text_column", self.text_column, f"{file} has no such column", f"it has {names}")


def _lines(stream: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """The lines that start in the segment."""
    if segment.is_whole:
        return iter(stream)
    return (line for _, line in takewhile(lambda each: each[0] < segment.stop, _lines_from(stream, segment.start)))


def _paragraph_lines(stream: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """The lines from the first blank one that starts in the segment to the first blank one that starts after it."""
    started = segment.start == 0
    for position, line in _lines_from(stream, segment.start):
        is_blank = not line.strip()
        if is_blank and position >= segment.stop and not segment.is_last:
            return
        started = started or is_blank
        if started:
            yield line


def _lines_from(stream: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """The lines that start at byte `start` or later, each with the byte where it starts."""
    position = start
    if start:
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())  # the end of the line before
    for line in stream:
        yield position, line
        position += len(line)


def _decode(lines: Iterable[bytes], segment: Segment, problems: Problems, key: str) -> Iterator[str]:
    """The lines without their ends (\\n or \\r\\n), the byte-order mark removed. Lines end at \\n alone, unlike with
    `str.splitlines`, which would also cut at form feeds and U+2028."""
    file = str(segment.file)
    for number, line in enumerate(lines, start=1):
        if number == 1 and segment.start == 0:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ConfigError(key, NO_VALUE, f"{file} is UTF-16", "convert it to UTF-8, for instance with iconv")
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        problems.read[file] = number
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            problems.add(NOT_UTF8, Place(file, "line", number))
            yield _replace_bad_bytes(line)


def _replace_bad_bytes(line: bytes) -> str:
    # errors="replace" makes one U+FFFD of several bytes of a truncated character; surrogates stand for one byte each
    return re.sub("[\udc80-\udcff]", "\ufffd", line.decode("utf-8", "surrogateescape"))


def is_blank(text: str) -> bool:
    return not text or text.isspace()


def _row_group_sizes(file: Path) -> list[int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        return [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]


def _open(file: Path) -> BinaryIO:
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

"""Reads documents from files, whatever they are stored in, and never holds more than a few of them in memory.

    speeches/*.txt   one document a line, a paragraph or a file ┐
    news.jsonl       {"text": "…"}                              ├─►  "Fellow citizens …", "The full cost …", …
    news.csv         a column                                   │     document 0          document 1
    news.parquet     a column                                   ┘

Documents are numbered through all files. A shard is some small files, or a segment of a large one; the lines, and the
documents, that start in a segment belong to it.

    bytes      0              4 MB             8 MB
    lines      ────┃──────┃─────┃──┃────────┃────┃──────
    segments   └─── segment 0 ──┘└── segment 1 ──┘└─ …
"""

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.documents.base import EMPTY, Documents, Labelled, Problems, missing_column
from mlm_lightning.data.text.documents.find import file_errors, open_file, suffixes
from mlm_lightning.errors import NO_VALUE, ConfigError

# what may be wrong with a line or row, besides an EMPTY document
NOT_UTF8 = "line(s) with bytes that are not UTF-8, each such byte replaced by U+FFFD"
NOT_JSON = "line(s) skipped that are not a JSON object"
NO_COLUMN = "row(s) skipped that lack the column"
NOT_TEXT = "row(s) skipped whose value is not a string"
NOT_CSV = "row(s) skipped that are not valid CSV"

_FIELDS = re.compile(r'(?:(?:"(?:[^"]|"")*+"|[^",\n][^,\n]*+)?+[,\n])*+')
"""The fields of a .csv that end as they should."""


class Segment(NamedTuple):
    """Of a file: the documents that start in its bytes `start … stop - 1`; of a .parquet, those of its row groups."""

    file: Path
    start: int
    stop: int
    size: int
    is_last: bool = True


@dataclass(eq=False)
class FileDocuments(Documents):
    """The documents of files. `key` is the config key that named them (`data.path`), for messages. With a `label_column` they
    are `Labelled`."""

    files: Sequence[Path]
    text_column: str
    txt_documents: str
    key: str
    label_column: str | None = None

    # -- shards ----------------------------------------------------------------------------------------------------------

    def shards(self) -> list[tuple[Segment, ...]]:
        shards: list[list[Segment]] = [[]]
        size = 0
        for segment in self._segments():
            if shards[-1] and size + segment.size > base.SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(segment)
            size += segment.size
        return list(map(tuple, shards))

    def size(self, shard: tuple[Segment, ...]) -> int:
        return sum(segment.size for segment in shard)

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[tuple[Segment, ...], np.ndarray]]:
        """In the order of the files: neighbours stay neighbours."""
        split_N = np.full(sum(counts), base.UNUSED, dtype=np.uint8)
        for split, chosen in numbers.items():
            split_N[chosen] = SPLITS.index(split)
        parts = np.split(split_N, np.cumsum(counts)[:-1])
        return [(shard, part) for shard, part in zip(self.shards(), parts, strict=True) if (part != base.UNUSED).any()]

    def _segments(self) -> Iterator[Segment]:
        for file in self.files:
            with file_errors(file, self.key):
                cuts = self._cuts(file)
            for number, ((start, _), (stop, size)) in enumerate(pairwise(cuts), start=2):
                yield Segment(file, start, stop, size, is_last=number == len(cuts))

    def _cuts(self, file: Path) -> list[tuple[int, int]]:
        """Where a file may be cut, its beginning and its end too, with the size of what lies before each."""
        size = file.stat().st_size
        format_, compression = suffixes(file)
        if format_ == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as table:
                sizes = [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]
            return [(0, 0), *enumerate(sizes, start=1)]
        by_line = format_ == ".jsonl" or (format_ == ".txt" and self.txt_documents != "file")
        if compression or not by_line:  # the value of a .csv may go on for lines
            return [(0, 0), (size, size)]
        places = [*range(0, size, base.SHARD_BYTES), size] if size else [0, 0]
        return [(0, 0), *((stop, stop - start) for start, stop in pairwise(places))]

    # -- reading ---------------------------------------------------------------------------------------------------------

    def read(self, shard: tuple[Segment, ...], problems: Problems) -> Iterator[str]:
        readers = {".txt": self._read_txt, ".jsonl": self._read_jsonl, ".csv": self._read_csv, ".parquet": self._read_parquet}
        for segment in shard:
            found = Problems()
            with file_errors(segment.file, self.key), open_file(segment.file) as stream:
                yield from readers[suffixes(segment.file)[0]](stream, segment, found)
            problems.extend(found)

    def check(self, problems: Problems) -> None:
        for file, columns in problems.columns.items():
            if columns is not None:
                raise missing_column(self.text_column, file, columns)

    def _read_txt(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        if self.txt_documents == "line":
            # blank lines separate; they are no documents that could be missed
            yield from filter(str.strip, self._decoded(_lines(stream, segment), segment, problems))
        elif self.txt_documents == "paragraph":
            lines = self._decoded(_paragraph_lines(stream, segment), segment, problems)
            yield from (
                "\n".join(paragraph) for is_text, paragraph in groupby(lines, lambda line: bool(line.strip())) if is_text
            )
        elif (text := "\n".join(self._decoded(_lines(stream, segment), segment, problems))).strip():
            yield text
        else:
            problems.add(EMPTY, str(segment.file))

    def _read_jsonl(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        file = str(segment.file)
        for number, line in enumerate(self._decoded(_lines(stream, segment), segment, problems), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                problems.add(NOT_JSON, file, "line", number)
            elif self.text_column not in record:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", file, "line", number)
                problems.columns.setdefault(file, list(record))
            else:
                problems.columns[file] = None
                yield from self._value(record[self.text_column], record.get(self.label_column), problems, file, "line", number)

    def _read_csv(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        file = str(segment.file)
        rows = self._csv_rows(stream, segment, problems)
        header, _ = next(rows, (None, 0))
        if header is None:
            return
        self._check_columns(file, header)
        column, label_column = header.index(self.text_column), header.index(self.label_column) if self.label_column else -1
        for row, number in rows:
            if len(row) > column:
                label = row[label_column] if -1 < label_column < len(row) else None
                yield from self._value(row[column], label, problems, file, "line", number)
            elif row:
                problems.add(f"{NO_COLUMN} {self.text_column!r}", file, "line", number)

    def _csv_rows(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[tuple[list[str], int]]:
        """The rows, each with the number of its last line. Raises ConfigError for a quote that does not close its field."""
        csv.field_size_limit(sys.maxsize)  # the default, 128 KiB a field, is less than a long document
        lines = self._decoded(_lines(stream, segment), segment, problems)
        rows = csv.reader((line + "\n" for line in lines), strict=True)
        while True:
            begin = rows.line_num
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "new-line" not in str(error):
                    raise self._open_quote(segment, begin) from error
                problems.add(NOT_CSV, str(segment.file), "line", rows.line_num)
            else:
                yield row, rows.line_num

    def _open_quote(self, segment: Segment, begin: int) -> ConfigError:
        """Of the row that begins after so many lines: names the line where its field begins."""
        with open_file(segment.file) as stream:
            rest = "\n".join(islice(self._decoded(stream, segment, Problems()), begin, None))
        line = begin + 1 + rest.count("\n") - _FIELDS.sub("", rest, count=1).count("\n")
        problem = (
            f"{segment.file} line {line}: a quote opens a field there, and none closes it before a comma or the line's end"
        )
        return ConfigError(self.key, NO_VALUE, problem, "remove it, or close the field; a quote within one is written twice")

    def _check_columns(self, file: str, names: Sequence[str]) -> None:
        """Raises ConfigError where a column that is asked for is missing, or there twice."""
        for key, column in (("data.text_column", self.text_column), ("task.label_column", self.label_column)):
            if column is not None and column not in names:
                raise missing_column(column, file, names, key)
            if (number := names.count(column)) > 1:
                raise ConfigError(key, column, f"{file} has {number} columns of that name", "rename all but one of them")

    def _read_parquet(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = str(segment.file)
        with pq.ParquetFile(stream) as table:
            self._check_columns(file, table.schema_arrow.names)
            type_ = table.schema_arrow.field(self.text_column).type
            value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
            if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or value_type == pa.string_view()):
                raise ConfigError("data.text_column", self.text_column, f"the column of {file} holds {type_}, not strings")
            groups = range(segment.start, segment.stop)
            columns = [self.text_column] if self.label_column is None else [self.text_column, self.label_column]
            for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=columns):
                values, *labels = (batch.column(name).to_pylist() for name in columns)
                for value, label in zip(values, *(labels or [[None] * len(values)]), strict=True):
                    problems.read[file] += 1
                    yield from self._value(value, label, problems, file, "row", problems.read[file])

    def _value(self, value: object, label: object, problems: Problems, *where: Any) -> Iterator[str]:
        if self.label_column is not None and (problem := base.label_problem(label)):
            problems.add(problem, *where)
        elif isinstance(value, str) and value.strip():
            # JSON can spell half a surrogate pair ("\ud800"), which is no character and which no tokenizer takes
            text = value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
            yield text if self.label_column is None else Labelled.of(text, label)
        else:
            problems.add(EMPTY if value is None or isinstance(value, str) else NOT_TEXT, *where)

    def _decoded(self, lines: Iterable[bytes], segment: Segment, problems: Problems) -> Iterator[str]:
        """The lines without their ends (\\n or \\r\\n), the byte-order mark removed. Lines end at \\n alone (in a file that has
        none, at \\r), unlike with `str.splitlines`, which would also cut at form feeds and U+2028."""
        file = str(segment.file)
        if segment.start == 0:
            lines = iter(lines)
            first = next(lines, b"")
            if first.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ConfigError(self.key, NO_VALUE, f"{file} is UTF-16", "convert it to UTF-8, for instance with iconv")
            parts = _split_at_cr(first.removeprefix(b"\xef\xbb\xbf"))
            if len(parts) > 1:
                problems.add(base.CR_LINES, file)
            lines = chain(parts, lines)
        for number, line in enumerate(lines, start=1):
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            problems.read[file] = number
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                problems.add(NOT_UTF8, file, "line", number)
                # errors="replace" makes one U+FFFD of several bytes of a cut character; surrogates stand for one byte each
                yield re.sub("[\udc80-\udcff]", "\ufffd", line.decode("utf-8", "surrogateescape"))


# -- the lines of a segment ------------------------------------------------------------------------------------------------


def _split_at_cr(first: bytes) -> list[bytes]:
    """The lines that the first one of a file is: where the file has no \\n, \\r ends them."""
    if not first.endswith(b"\n") and b"\r" in first.rstrip(b"\r"):
        return first.split(b"\r")
    return [first] if first else []


def _lines(stream: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """The lines that start in the segment."""
    if segment.start == 0 and segment.is_last:
        return iter(stream)
    return (line for _, line in _lines_from(stream, segment.start, segment.stop))


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


def _lines_from(stream: BinaryIO, start: int, stop: float = math.inf) -> Iterator[tuple[int, bytes]]:
    """The lines that start at byte `start` or later, and before `stop`, each with the byte where it starts."""
    position = start
    if start:
        stream.seek(start - 1)
        position = start - 1 + len(stream.readline())  # the end of the line before
    for line in stream:
        if position >= stop:
            return
        yield position, line
        position += len(line)

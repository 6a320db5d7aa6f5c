"""Reads documents from files, whatever they are stored in, and never holds more than a few of them in memory.

    speeches/*.txt   one document a line, a paragraph or a file ┐
    news.jsonl       {"text": "…"}                              ├─►  "Fellow citizens …", "The full cost …", …
    news.csv         a column                                   │     document 0          document 1
    news.parquet     a column                                   ┘

Documents are numbered through all files. A shard is some small files, or a piece of a large one (segments.py).
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.documents.base import (
    EMPTY,
    NO_COLUMN,
    NOT_CSV,
    NOT_JSON,
    NOT_TEXT,
    UNUSED,
    Place,
    Problems,
    is_blank,
)
from mlm_lightning.data.text.documents.find import file_errors, open_file, suffixes
from mlm_lightning.data.text.documents.segments import Segment, decode, lines_of, paragraph_lines_of
from mlm_lightning.errors import ConfigError


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
            if shards[-1] and size + segment.size > base.SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(segment)
            size += segment.size
        return [tuple(shard) for shard in shards]

    def size(self, shard: tuple[Segment, ...]) -> int:
        return sum(segment.size for segment in shard)

    def read(self, shard: tuple[Segment, ...], problems: Problems) -> Iterator[str]:
        readers = {".txt": self._read_txt, ".jsonl": self._read_jsonl, ".csv": self._read_csv}
        for segment in shard:
            file, found = segment.file, Problems()
            with file_errors(file, self.key):
                if suffixes(file)[0] == ".parquet":
                    yield from self._read_parquet(segment, found)
                else:
                    with open_file(file) as stream:
                        yield from readers[suffixes(file)[0]](stream, segment, found)
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
        format_, compression = suffixes(file)
        if format_ == ".parquet":
            return [(0, 0), *enumerate(_row_group_sizes(file), start=1)]
        by_line = format_ == ".jsonl" or (format_ == ".txt" and self.txt_documents != "file")
        if compression or not by_line:  # the value of a .csv may go on for lines
            return [(0, 0), (size, size)]
        places = [*range(0, size, base.SHARD_BYTES), size] if size else [0, 0]
        return [(0, 0), *((stop, stop - start) for start, stop in pairwise(places))]

    def _read_txt(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        if self.txt_documents == "line":
            # blank lines separate; they are no documents that could be missed
            yield from (line for line in decode(lines_of(stream, segment), segment, problems, self.key) if not is_blank(line))
        elif self.txt_documents == "paragraph":
            paragraph: list[str] = []
            for line in decode(paragraph_lines_of(stream, segment), segment, problems, self.key):
                if not is_blank(line):
                    paragraph.append(line)
                elif paragraph:
                    yield "\n".join(paragraph)
                    paragraph = []
            if paragraph:
                yield "\n".join(paragraph)
        else:
            text = "\n".join(decode(lines_of(stream, segment), segment, problems, self.key))
            if is_blank(text):
                problems.add(EMPTY, Place(str(segment.file)))
            else:
                yield text

    def _read_jsonl(self, stream: BinaryIO, segment: Segment, problems: Problems) -> Iterator[str]:
        file = str(segment.file)
        for number, line in enumerate(decode(lines_of(stream, segment), segment, problems, self.key), start=1):
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
        rows = csv.reader(line + "\n" for line in decode(lines_of(stream, segment), segment, problems, self.key))
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


def _row_group_sizes(file: Path) -> list[int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        return [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]

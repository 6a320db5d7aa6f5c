"""Pieces of files, for any process to read on its own; the lines, and the documents, that start in a piece belong to it.

bytes      0              4 MB             8 MB
lines      ────┃──────┃─────┃──┃────────┃────┃──────
segments   └─── segment 0 ──┘└── segment 1 ──┘└─ …
"""

import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlm_lightning.data.text.documents.base import NOT_UTF8, Place, Problems
from mlm_lightning.errors import NO_VALUE, ConfigError


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


def lines_of(stream: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """The lines that start in the segment."""
    if segment.is_whole:
        return iter(stream)
    return (line for _, line in takewhile(lambda each: each[0] < segment.stop, _lines_from(stream, segment.start)))


def paragraph_lines_of(stream: BinaryIO, segment: Segment) -> Iterator[bytes]:
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


def decode(lines: Iterable[bytes], segment: Segment, problems: Problems, key: str) -> Iterator[str]:
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

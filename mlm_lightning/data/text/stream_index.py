"""Where the blocks of a stream start, kept on disk: runs, ranks and loader workers share it, and a resumed run begins there.

Nothing but time depends on it: where an entry is missing or damaged, the stream is read again from an earlier one.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlm_lightning.files import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offset:
    """Where a token is: after `skip` others of a group of documents, which begins at `state` of the dataset, after so many
    `documents` and `tokens` of the pass."""

    state: dict[str, Any] | None = None
    documents: int = 0
    tokens: int = 0
    skip: int = 0


BEGINNING = Offset()


class Entry(NamedTuple):
    """Of the index: where a block starts, and the digest of its tokens."""

    block: int
    offset: Offset
    digest: str | None


class Index:
    """Where the stream's blocks start: a file for every `every`-th, written by whoever reads that block first."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._writable = True

    def nearest(self, block: int) -> Entry:
        """The last entry at or before a block; the stream's beginning where there is none."""
        numbers = (int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())
        for number in sorted((number for number in numbers if number <= block), reverse=True):
            if entry := self._read(number):
                return entry
        return Entry(0, BEGINNING, None)

    def add(self, entry: Entry) -> None:
        file = self._file(entry.block)
        if entry.block % self.every or not self._writable or file.exists():
            return
        content = json.dumps({"position": asdict(entry.offset), "digest": entry.digest})
        try:
            write_atomically(file, json.dumps({"content": content, "sha256": sha256(content.encode())}).encode())
        except OSError as error:
            self._writable = False
            log.warning("%s: the index of the stream cannot be written (%s); a resumed run will read longer", file, error)

    def remove(self) -> None:
        for file in self.folder.glob("*.json"):
            file.unlink(missing_ok=True)

    def _read(self, block: int) -> Entry | None:
        """None where the entry is damaged, which is then removed."""
        file = self._file(block)
        try:
            stored = json.loads(file.read_bytes())
            if sha256(stored["content"].encode()) != stored["sha256"]:
                raise ValueError("its checksum is another")
            content = json.loads(stored["content"])
            return Entry(block, Offset(**content["position"]), content["digest"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: an entry of the stream's index is damaged (%s); an earlier one is taken", file, error)
            file.unlink(missing_ok=True)
            return None

    def _file(self, block: int) -> Path:
        return self.folder / f"{block}.json"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

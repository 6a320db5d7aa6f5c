"""A stream's documents become tokens, one after the other, also from one pass to the next, and tokens become blocks of rows.

documents   │ d0 d1 d2 │ d3 d4 d5 …       │ … dN │ d3 d4 …   the first are set aside for validation, in each pass
tokens               │ ──────────────────────────────── …    special tokens included
blocks                 │     0     │     1     │     2 …       of S rows of L tokens
index                  ▲           ▲           ▲             where blocks start, kept on disk

Runs, ranks and loader workers share the index, and a resumed run begins there. Nothing but time depends on it: where an entry
is missing or damaged, the stream is read again from an earlier one.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlm_lightning.data.text.documents.hub import StreamedDocuments, StreamError
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.errors import ConfigError
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


class Tokens:
    """The training tokens from an offset on, pass after pass: all but those of the first `held_out` documents. Raises
    StreamError where a pass has less than `at_least`."""

    def __init__(self, documents: StreamedDocuments, encoder: Encoder, held_out: int, at_least: int, start: Offset) -> None:
        self.documents, self.encoder, self.held_out, self.at_least = documents, encoder, held_out, at_least
        self._parts = self._encoded(start)
        self._start, self._part = start, np.empty(0, dtype=np.uint16)
        self._taken = 0

    @property
    def offset(self) -> Offset:
        """That of the next token."""
        return replace(self._start, skip=self._start.skip + self._taken)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens."""
        taken = []
        while count:
            if self._taken == len(self._part):
                self._start, self._part = next(self._parts)
                self._taken = 0
            taken.append(self._part[self._taken : self._taken + count])
            self._taken += len(taken[-1])
            count -= len(taken[-1])
        return np.concatenate(taken)

    def _encoded(self, offset: Offset) -> Iterator[tuple[Offset, np.ndarray]]:
        """All tokens from an offset on in parts, each with the offset of its first."""
        while True:
            for group in self.documents.groups(offset.state):
                count, held_out = 0, max(0, self.held_out - offset.documents)
                filled = filter(str.strip, islice(group.texts, held_out, None))
                for part in self.encoder.encode(filled):
                    yield replace(offset, skip=max(offset.skip, count)), part.tokens[max(0, offset.skip - count) :]
                    count += len(part.tokens)
                offset = Offset(group.after, offset.documents + group.num_documents, offset.tokens + count)
            log.info("data.dataset=%s: %d tokens were a whole pass", self.documents.name, offset.tokens)
            if offset.tokens < self.at_least:
                raise StreamError(self._too_short(offset))
            offset = BEGINNING

    def _too_short(self, end: Offset) -> ConfigError:
        documents = f"data.dataset={self.documents.name} has {end.documents:,} documents in all"
        if end.documents <= self.held_out:
            return ConfigError("data.val_size", self.held_out, f"{documents}, which leaves none for training", "lower it")
        problem = f"{documents}, and those for training have {end.tokens:,} tokens, which is less than one chunk"
        return ConfigError("data.chunk_size", self.at_least, problem, "give more text or a smaller data.chunk_size")


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
        numbers = sorted(int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())
        earlier = (number for number in reversed(numbers) if number <= block)
        return next(filter(None, map(self._read, earlier)), Entry(0, BEGINNING, None))

    def add(self, entry: Entry) -> None:
        file = self.folder / f"{entry.block}.json"
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
        file = self.folder / f"{block}.json"
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


class ChangedError(Exception):
    """A block is not the one that the index tells of."""


class Blocks:
    """Reads one block after the other, from an entry of the index on: `number` is that of the block being read."""

    def __init__(self, tokens: Tokens, index: Index, shape: tuple[int, int], start: Entry) -> None:
        self.number, self._expected = start.block, start.digest
        self._tokens, self._index, self._shape = tokens, index, shape
        self._begin()

    def _begin(self) -> None:
        self._start, self._rows, self._pieces = self._tokens.offset, 0, list[np.ndarray]()

    def fill(self, rows: int) -> None:
        """Reads until `rows` rows of the block are there."""
        if rows > self._rows:
            self._pieces.append(self._tokens.take((rows - self._rows) * self._shape[1]))
            self._rows = rows

    def finish(self) -> np.ndarray:
        """The block, `tokens_SL`; the next one is then begun."""
        self.fill(self._shape[0])
        tokens_SL = np.concatenate(self._pieces).reshape(self._shape)
        digest = sha256(tokens_SL.tobytes())
        if self._expected not in (None, digest):
            raise ChangedError
        self._index.add(Entry(self.number, self._start, digest))
        self.number, self._expected = self.number + 1, None
        self._begin()
        return tokens_SL


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

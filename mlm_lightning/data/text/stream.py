"""Rows of a dataset that is never there as a whole: it is read while training goes on, again and again, in blocks of rows.

    documents   │ d0 d1 d2 │ d3 d4 d5 …       │ … dN │ d3 d4 …   the first are set aside for validation, in each pass
    tokens               │ ──────────────────────────────── …    one after the other, special ones too, pass after pass
    rows                 │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ …      chunk_size tokens each, numbered for ever
    blocks               │     0     │     1     │     2 …       shuffle_buffer rows each: what is in memory, and shuffled
                         ▲           ▲           ▲
                         where each block starts is kept on disk: the index of the stream

Row i is a function of the data alone, whatever was read before it; the order of a block's rows is TrainBatches', a function of
(seed, block). So a run that goes on needs no state of a reader: it opens the index at its block, and reads from there. Where
the data is no longer what the index was made of, the stream is read again from its beginning. Runs, ranks and loader workers
share the index, and nothing but time depends on it: where an entry is missing or damaged, the stream is read again from an
earlier one.

Each rank and each loader worker reads the whole stream and takes its own rows: their number changes no result, but tokenising
is work that each of them does. `data.num_workers=1` takes it out of the way of training; more only repeat it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.text.documents import hub
from mlm_lightning.data.text.documents.hub import StreamedDocuments, StreamError
from mlm_lightning.data.text.rows import FromFiles
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.errors import ConfigError
from mlm_lightning.files import write_atomically

log = logging.getLogger(__name__)

ENTRY_TOKENS = 1 << 20
"""The index has an entry at the first block after every so many tokens, which is about a second of tokenising."""

_FORMAT = 1  # of the index


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
                whole = f"data.dataset={self.documents.name} has {offset.documents:,} documents in all"
                if offset.documents <= self.held_out:
                    problem = f"{whole}, which leaves none for training"
                    raise StreamError(ConfigError("data.val_size", self.held_out, problem, "lower it"))
                problem = f"{whole}, and those for training have {offset.tokens:,} tokens, which is less than one chunk"
                remedy = "give more text or a smaller data.chunk_size"
                raise StreamError(ConfigError("data.chunk_size", self.at_least, problem, remedy))
            offset = BEGINNING


class Entry(NamedTuple):
    """Of the index: where a block starts, and the digest of its tokens."""

    block: int
    offset: Offset
    digest: str | None


@dataclass
class Index:
    """Where the stream's blocks start: a file for every `every`-th, written by whoever reads that block first."""

    folder: Path
    every: int
    _writable: bool = True

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


@dataclass(eq=False)
class StreamRows(FromFiles):
    """The rows of a stream, without an end: rows of a later pass have numbers of their own. `rows[index_B]` gathers a batch as
    int64, quickly where rows are asked for block by block; one block and the part read of the next are in memory.

    The first `held_out` documents of each pass are left out. The index is kept in `folder`, one for what these documents (the
    dataset, its revision and column) and this encoder (the tokenizer) are. Raises StreamError where the stream cannot be read.
    """

    documents: StreamedDocuments
    encoder: Encoder
    chunk_size: int
    shuffle_buffer: int
    held_out: int
    folder: Path

    def __post_init__(self) -> None:
        layout = [_FORMAT, version("datasets"), hub.GROUP, self.chunk_size, self.shuffle_buffer, self.held_out]
        every = -(-ENTRY_TOKENS // (self.chunk_size * self.shuffle_buffer))
        self._index = Index(self.folder / sha256(json.dumps(layout).encode())[:16], every)
        self._forget()

    def _forget(self) -> None:
        """Begins with nothing read. A forked process has to: how far an open file is read would be its parent's as well."""
        self._process, self._next = os.getpid(), 0
        self._tokens: Tokens | None = None
        self._latest: tuple[int, np.ndarray] | None = None

    def __getitem__(self, index_B: Tensor) -> Tensor:
        rows_B = index_B.numpy()
        blocks_B = rows_B // self.shuffle_buffer
        tokens_BL = np.empty((len(rows_B), self.chunk_size), dtype=np.int64)
        for block in np.unique(blocks_B).tolist():
            here_B = blocks_B == block
            tokens_BL[here_B] = self._block(block)[rows_B[here_B] % self.shuffle_buffer]
        return torch.from_numpy(tokens_BL)

    def read_ahead(self, stop: int) -> None:
        """Reads the rows before `stop` as far as they are of the block after the latest: where this is called batch by batch,
        no batch has to wait for a whole block."""
        if self._tokens is not None:
            self._fill(self._tokens, min(stop - self._next * self.shuffle_buffer, self.shuffle_buffer))

    def check(self) -> None:
        """Raises StreamError where the stream cannot be read, or has less than a row; reads no more than that."""
        self._tokens_from(BEGINNING).take(self.chunk_size)

    def _block(self, number: int) -> np.ndarray:
        if self._process != os.getpid():
            from fsspec.asyn import reset_lock

            self._forget()
            reset_lock()  # a forked process has the locks of its parent's threads, but not the threads
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if self._latest is None or self._latest[0] != number:
            self._latest = None
            self._latest = number, self._read(number)
        return self._latest[1]

    def _read(self, number: int) -> np.ndarray:
        tokens = self._reading_before(number)
        try:
            while self._next < number:
                self._finish(tokens)
            return self._finish(tokens)
        except ChangedError:
            log.warning(
                "data.dataset=%s: is not what it was when its index was made (%s); reading it again from the beginning. Pin "
                "data.revision to train on the same data throughout",
                self.documents.name,
                self._index.folder,
            )
            self._index.remove()
            self._tokens = None
            return self._read(number)

    def _reading_before(self, number: int) -> Tokens:
        """The tokens being read, with block `number` still to come, and soon."""
        distance = number - self._next if self._tokens else -1
        if self._tokens is None or not 0 <= distance <= self._index.every:
            entry = self._index.nearest(number)
            if self._tokens is None or distance < 0 or entry.block > self._next:
                self._tokens = self._tokens_from(entry.offset)
                self._begin(self._tokens, entry.block, entry.digest)
            if number - self._next > self._index.every:
                log.warning(
                    "%s has no entry for row %d of the stream: reading again what comes before it, from row %d on",
                    self._index.folder,
                    number * self.shuffle_buffer,
                    self._next * self.shuffle_buffer,
                )
        return self._tokens

    def _tokens_from(self, start: Offset) -> Tokens:
        return Tokens(self.documents, self.encoder, self.held_out, self.chunk_size, start)

    def _begin(self, tokens: Tokens, block: int, expected: str | None = None) -> None:
        """Starts a block, whose digest the index tells, or does not."""
        self._next, self._expected, self._start = block, expected, tokens.offset
        self._rows, self._pieces = 0, list[np.ndarray]()

    def _fill(self, tokens: Tokens, rows: int) -> None:
        """Reads until `rows` rows of the block are there."""
        if rows > self._rows:
            self._pieces.append(tokens.take((rows - self._rows) * self.chunk_size))
            self._rows = rows

    def _finish(self, tokens: Tokens) -> np.ndarray:
        """The block, `tokens_SL`; the next one is then begun."""
        self._fill(tokens, self.shuffle_buffer)
        tokens_SL = np.concatenate(self._pieces).reshape(self.shuffle_buffer, self.chunk_size)
        digest = sha256(tokens_SL.tobytes())
        if self._expected not in (None, digest):
            raise ChangedError
        self._index.add(Entry(self._next, self._start, digest))
        self._begin(tokens, self._next + 1)
        return tokens_SL


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

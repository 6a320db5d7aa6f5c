"""Rows of a dataset that is never there as a whole: it is read while training goes on, again and again, in blocks of rows.

    documents   │ d0 d1 d2 │ d3 d4 d5 …       │ … dN │ d3 d4 …   the first are set aside for validation, in each pass
    tokens               │ ──────────────────────────────── …    one after the other, also from one pass to the next
    rows                 │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ …      chunk_size tokens each, numbered for ever
    blocks               │     0     │     1     │     2 …       shuffle_buffer rows each: what is in memory, and shuffled
                         ▲           ▲           ▲
                         where each block starts is kept on disk: the index of the stream

Row i is a function of the data alone, whatever was read before it; the order of a block's rows is TrainBatches', a function of
(seed, block). So a run that goes on needs no state of a reader: it opens the index at its block, and reads from there. Nothing
but time depends on the index. Runs, ranks and loader workers share it, and where it is missing or damaged, or the data is no
longer what it was made of, the stream is read again from an earlier block, if need be from its beginning.

Each rank and each loader worker reads the whole stream and takes its own rows: their number changes no result, but tokenising
is work that each of them does. `data.num_workers=1` takes it out of the way of training; more only repeat it.
"""

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.documents import Problems
from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.errors import ConfigError, one_line
from mlm_lightning.files import write_atomically

__all__ = ["FirstDocuments", "StreamError", "StreamRows", "StreamedDocuments"]

log = logging.getLogger(__name__)

GROUP = 512
"""Documents that are read, and encoded, together: a reader begins at the first of them."""

WAITS = (1.0, 10.0, 60.0)
"""Seconds before each further attempt to read on; `datasets` itself has tried for minutes before the first."""

ENTRY_TOKENS = 1 << 20
"""The index has an entry at the first block after every so many tokens, which is about a second of tokenising."""

_FORMAT = 1  # of the index
_DOCUMENT_BYTES = 2_000  # about


class StreamError(ValueError):
    """The stream cannot be read, or is too short; its argument is a ConfigError that says which setting is wrong.

    It is none itself because it may be raised in a loader's worker, of whose errors torch keeps the class and the text alone.
    """

    def __str__(self) -> str:
        # that text is the whole traceback, with the message at its end
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


class Encodes(Protocol):
    def encode(self, documents: Iterable[str]) -> Iterator[Any]:
        """All documents' tokens, special ones included, in parts with their `tokens`, an array."""
        ...


class Group(NamedTuple):
    """Consecutive documents, and the state of the dataset after them."""

    num_documents: int
    texts: Iterator[str]
    after: dict[str, Any]


class StreamedDocuments:
    """The documents of a split of a `datasets.IterableDataset` (`load_dataset(…, streaming=True)[split]`): its rows in their
    own order, empty ones included. `name` is what messages call it: `data.dataset=NAME`."""

    def __init__(self, dataset: Any, text_column: str, name: str) -> None:
        self.text_column, self.name = text_column, name
        # tables, since only they are read past `datasets`' own division of its files among loader workers; see `_groups`
        self.dataset = dataset.with_format("arrow")
        if dataset.features is not None:
            self._check_column({column: getattr(kind, "dtype", kind) for column, kind in dataset.features.items()})

    def first(self, count: int | None) -> Iterator[str]:
        """The first `count` documents (null: all), as far as there are so many, "" for an empty one: what is set aside for
        validation where the stream has no split of its own for that."""
        return islice(chain.from_iterable(group.texts for group in self.groups()), count)

    def groups(self, state: dict[str, Any] | None = None) -> Iterator[Group]:
        """The documents of one pass in groups; with the state after one of them, the groups that follow it.

        A connection that breaks is taken up where it was. Raises StreamError where that does not help.
        """
        failures = 0
        while True:
            try:
                for group in self._groups(state):
                    failures, state = 0, group.after
                    yield group
                return
            except StreamError:
                raise
            except Exception as error:  # those of the hub, its file systems and file formats have no common ancestor
                if not _may_pass(error) or failures == len(WAITS):
                    raise self._unreadable(error) from error
                log.warning(
                    "data.dataset=%s: cannot be read on (%s); next attempt in %g s", self.name, _reason(error), WAITS[failures]
                )
                time.sleep(WAITS[failures])
                failures += 1

    def _groups(self, state: dict[str, Any] | None) -> Iterator[Group]:
        dataset = copy.deepcopy(self.dataset)  # it keeps one position, that of its latest iterator
        if state is not None:
            dataset.load_state_dict(state)
        # `iter(dataset)` would skip, in a loader's worker, the files that it takes to be those of other workers
        for table in dataset.iter(GROUP):
            if self.dataset.features is None:
                self._check_column({field.name: str(field.type) for field in table.schema})
            yield Group(len(table), map(_text, table[self.text_column]), dataset.state_dict())

    def _check_column(self, types: dict[str, Any]) -> None:
        if self.text_column not in types:
            names = ", ".join(map(repr, types))
            raise self._wrong_column(f"{self.name} has no such column", f"it has {names}")
        # a column of nothing but nulls has the type "null", and documents that are all empty
        if (found := types[self.text_column]) not in ("string", "large_string", "string_view", "null"):
            raise self._wrong_column(f"the column of {self.name} holds {found}, not strings")

    def _wrong_column(self, problem: str, remedy: str = "") -> StreamError:
        return StreamError(ConfigError("data.text_column", self.text_column, problem, remedy))

    def _unreadable(self, error: Exception) -> StreamError:
        remedy = "check the connection and data.revision. The same command continues"
        return StreamError(ConfigError("data.dataset", self.name, f"cannot be read on ({_reason(error)})", remedy))


class FirstDocuments:
    """The first `count` documents of a stream (null: all of them), as `Documents` of which a token cache is made."""

    def __init__(self, documents: StreamedDocuments, count: int | None) -> None:
        self.documents, self.count = documents, count

    def content(self) -> None:
        """Known by the dataset's name and revision alone."""

    def shards(self) -> list[int | None]:
        """One: a stream is read from its beginning."""
        return [self.count]

    def size(self, shard: int | None) -> int:
        return _DOCUMENT_BYTES * (shard or 1)

    def read(self, shard: int | None, problems: Problems) -> Iterator[str]:
        return self.documents.first(shard)

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[int | None, np.ndarray]]:
        [split] = numbers
        return [(self.count, np.full(counts[0], SPLITS.index(split), dtype=np.uint8))]

    def check(self, problems: Problems) -> None:
        """The column is checked when the stream is opened."""


def _text(value: Any) -> str:
    """Of an Arrow scalar."""
    try:
        return value.as_py() or ""
    except UnicodeDecodeError:  # nobody has checked the bytes so far, and one of them is no reason to end a run
        return value.as_buffer().to_pybytes().decode("utf-8", "replace")


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may succeed: errors of connections and of disks, by their type or the library they come from."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or library in ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "requests")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


@dataclass(frozen=True)
class Position:
    """The place of a token: after `skip` others of a group of documents, which begins at `state` of the dataset, after so many
    `documents` and `tokens` of the pass."""

    state: dict[str, Any] | None = None
    documents: int = 0
    tokens: int = 0
    skip: int = 0


BEGINNING = Position()


class _Tokens:
    """The training tokens from a position on, pass after pass: all but those of the first `held_out` documents. Raises
    StreamError where a pass has less than `at_least`."""

    def __init__(
        self, documents: StreamedDocuments, encoder: Encodes, held_out: int, at_least: int, start: Position = BEGINNING
    ) -> None:
        self.documents, self.encoder, self.held_out, self.at_least = documents, encoder, held_out, at_least
        self._parts = self._encoded(start)
        self._start, self._part = start, np.empty(0, dtype=np.uint16)
        self._taken = 0

    @property
    def position(self) -> Position:
        """That of the next token."""
        return replace(self._start, skip=self._start.skip + self._taken)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens."""
        taken = []
        while count:
            if self._taken == len(self._part):
                self._start, self._part = next(self._parts)
                self._taken = 0
            piece = self._part[self._taken : self._taken + count]
            taken.append(piece)
            self._taken += len(piece)
            count -= len(piece)
        return np.concatenate(taken)

    def _encoded(self, position: Position) -> Iterator[tuple[Position, np.ndarray]]:
        """All tokens from a position on in parts, each with the position of its first."""
        while True:
            for group in self.documents.groups(position.state):
                count, held_out = 0, max(0, self.held_out - position.documents)
                for tokens in self._encode(islice(group.texts, held_out, None)):
                    yield replace(position, skip=max(position.skip, count)), tokens[max(0, position.skip - count) :]
                    count += len(tokens)
                position = Position(group.after, position.documents + group.num_documents, position.tokens + count)
            log.info("data.dataset=%s: %d tokens were a whole pass", self.documents.name, position.tokens)
            if position.tokens < self.at_least:
                raise StreamError(self._too_short(position))
            position = BEGINNING

    def _encode(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        filled = (text for text in texts if text and not text.isspace())
        return (part.tokens for part in self.encoder.encode(filled))

    def _too_short(self, end: Position) -> ConfigError:
        documents = f"data.dataset={self.documents.name} has {end.documents:,} documents in all"
        if end.documents <= self.held_out:
            return ConfigError("data.val_size", self.held_out, f"{documents}, which leaves none for training", "lower it")
        problem = f"{documents}, and those for training have {end.tokens:,} tokens, which is less than one chunk"
        return ConfigError("data.chunk_size", self.at_least, problem, "give more text or a smaller data.chunk_size")


class _Entry(NamedTuple):
    """Of the index: where a block starts, and the digest of its tokens."""

    block: int
    position: Position
    digest: str | None


class _Index:
    """Where the stream's blocks start: a file for every `every`-th, written by whoever reads that block first."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._writable = True

    def nearest(self, block: int) -> _Entry:
        """The last entry at or before a block; the stream's beginning where there is none."""
        numbers = (int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())
        for number in sorted((number for number in numbers if number <= block), reverse=True):
            if entry := self._read(number):
                return entry
        return _Entry(0, BEGINNING, None)

    def add(self, entry: _Entry) -> None:
        file = self._file(entry.block)
        if entry.block % self.every or not self._writable or file.exists():
            return
        content = json.dumps({"position": asdict(entry.position), "digest": entry.digest})
        try:
            write_atomically(file, json.dumps({"content": content, "sha256": _sha256(content.encode())}).encode())
        except OSError as error:
            self._writable = False
            log.warning("%s: the index of the stream cannot be written (%s); a resumed run will read longer", file, error)

    def remove(self) -> None:
        for file in self.folder.glob("*.json"):
            file.unlink(missing_ok=True)

    def _read(self, block: int) -> _Entry | None:
        """None where the entry is damaged, which is then removed."""
        file = self._file(block)
        try:
            stored = json.loads(file.read_bytes())
            if _sha256(stored["content"].encode()) != stored["sha256"]:
                raise ValueError("its checksum is another")
            content = json.loads(stored["content"])
            return _Entry(block, Position(**content["position"]), content["digest"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s: an entry of the stream's index is damaged (%s); an earlier one is taken", file, error)
            file.unlink(missing_ok=True)
            return None

    def _file(self, block: int) -> Path:
        return self.folder / f"{block}.json"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _ChangedError(Exception):
    """A block is not the one that the index tells of."""


class _Blocks:
    """Reads one block after the other, from an entry of the index on: `number` is that of the block being read."""

    def __init__(self, tokens: _Tokens, index: _Index, shape: tuple[int, int], start: _Entry) -> None:
        self.number, self._expected = start.block, start.digest
        self._tokens, self._index, self._shape = tokens, index, shape
        self._begin()

    def _begin(self) -> None:
        self._start, self._rows, self._pieces = self._tokens.position, 0, list[np.ndarray]()

    def fill(self, rows: int) -> None:
        """Reads until `rows` rows of the block are there."""
        if rows > self._rows:
            self._pieces.append(self._tokens.take((rows - self._rows) * self._shape[1]))
            self._rows = rows

    def finish(self) -> np.ndarray:
        """The block, `tokens_SL`; the next one is then begun."""
        self.fill(self._shape[0])
        tokens_SL = np.concatenate(self._pieces).reshape(self._shape)
        digest = _sha256(tokens_SL.tobytes())
        if self._expected not in (None, digest):
            raise _ChangedError
        self._index.add(_Entry(self.number, self._start, digest))
        self.number, self._expected = self.number + 1, None
        self._begin()
        return tokens_SL


class StreamRows:
    """The rows of a stream, without an end: rows of a later pass have numbers of their own. `rows[index_B]` gathers a batch as
    int64, quickly where rows are asked for block by block; one block and the part read of the next are in memory.

    The first `held_out` documents of each pass are left out. The index is kept in `folder`, one for what these documents (the
    dataset, its revision and column) and this encoder (the tokenizer) are. Raises StreamError where the stream cannot be read.
    """

    _blocks: _Blocks | None
    _latest: tuple[int, np.ndarray] | None

    def __init__(
        self,
        documents: StreamedDocuments,
        encoder: Encodes,
        *,
        chunk_size: int,
        shuffle_buffer: int,
        held_out: int,
        folder: Path,
    ) -> None:
        self.documents, self.encoder = documents, encoder
        self.chunk_size, self.shuffle_buffer, self.held_out = chunk_size, shuffle_buffer, held_out
        layout = [_FORMAT, version("datasets"), GROUP, chunk_size, shuffle_buffer, held_out]
        every = -(-ENTRY_TOKENS // (chunk_size * shuffle_buffer))
        self._index = _Index(folder / _sha256(json.dumps(layout).encode())[:16], every)
        self._forget()

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
        if self._blocks is not None:
            rows = stop - self._blocks.number * self.shuffle_buffer
            self._blocks.fill(min(rows, self.shuffle_buffer))

    def check(self) -> None:
        """Raises StreamError where the stream cannot be read, or has less than a row; reads no more than that."""
        self._tokens(BEGINNING).take(self.chunk_size)

    def _block(self, number: int) -> np.ndarray:
        if self._process != os.getpid():
            self._forget()
            _after_fork()
        if self._latest is None or self._latest[0] != number:
            self._latest = None
            self._latest = number, self._read(number)
        return self._latest[1]

    def _read(self, number: int) -> np.ndarray:
        blocks = self._reading_before(number)
        try:
            while blocks.number < number:
                blocks.finish()
            return blocks.finish()
        except _ChangedError:
            log.warning(
                "data.dataset=%s: is not what it was when its index was made (%s); reading it again from the beginning. Pin "
                "data.revision to train on the same data throughout",
                self.documents.name,
                self._index.folder,
            )
            self._index.remove()
            self._blocks = None
            return self._read(number)

    def _reading_before(self, number: int) -> _Blocks:
        """Blocks being read, with `number` still to come, and soon."""
        distance = number - self._blocks.number if self._blocks else -1
        if self._blocks is None or not 0 <= distance <= self._index.every:
            entry = self._index.nearest(number)
            if self._blocks is None or distance < 0 or entry.block > self._blocks.number:
                shape = (self.shuffle_buffer, self.chunk_size)
                self._blocks = _Blocks(self._tokens(entry.position), self._index, shape, entry)
            if number - self._blocks.number > self._index.every:
                log.warning(
                    "%s has no entry for row %d of the stream: reading again what comes before it, from row %d on",
                    self._index.folder,
                    number * self.shuffle_buffer,
                    self._blocks.number * self.shuffle_buffer,
                )
        return self._blocks

    def _tokens(self, start: Position) -> _Tokens:
        return _Tokens(self.documents, self.encoder, self.held_out, self.chunk_size, start)

    def _forget(self) -> None:
        """Begins with nothing read. A forked process has to: how far an open file is read would be its parent's as well."""
        self._process = os.getpid()
        self._blocks = self._latest = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_blocks", "_latest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()


def _after_fork() -> None:
    """A forked process has the locks of its parent's threads, but not the threads."""
    from fsspec.asyn import reset_lock

    reset_lock()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

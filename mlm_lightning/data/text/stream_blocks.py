"""A stream's documents become tokens, one after the other, also from one pass to the next, and tokens become blocks of rows.

documents   │ d0 d1 d2 │ d3 d4 d5 …       │ … dN │ d3 d4 …   the first are set aside for validation, in each pass
tokens               │ ──────────────────────────────── …    special tokens included
blocks                 │     0     │     1     │     2 …       of S rows of L tokens
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from mlm_lightning.data.text.documents.base import is_blank
from mlm_lightning.data.text.documents.streamed import StreamedDocuments, StreamError
from mlm_lightning.data.text.stream_index import BEGINNING, Entry, Index, Offset, sha256
from mlm_lightning.errors import ConfigError

log = logging.getLogger(__name__)


class Encodes(Protocol):
    def encode(self, documents: Iterable[str]) -> Iterator[Any]:
        """All documents' tokens, special ones included, in parts with their `tokens`, an array."""
        ...


class Tokens:
    """The training tokens from a offset on, pass after pass: all but those of the first `held_out` documents. Raises
    StreamError where a pass has less than `at_least`."""

    def __init__(
        self, documents: StreamedDocuments, encoder: Encodes, held_out: int, at_least: int, start: Offset = BEGINNING
    ) -> None:
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
            piece = self._part[self._taken : self._taken + count]
            taken.append(piece)
            self._taken += len(piece)
            count -= len(piece)
        return np.concatenate(taken)

    def _encoded(self, offset: Offset) -> Iterator[tuple[Offset, np.ndarray]]:
        """All tokens from a offset on in parts, each with the offset of its first."""
        while True:
            for group in self.documents.groups(offset.state):
                count, held_out = 0, max(0, self.held_out - offset.documents)
                filled = (text for text in islice(group.texts, held_out, None) if not is_blank(text))
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

"""Rows of a dataset that is never there as a whole: it is read while training goes on, again and again, in blocks of rows.

    documents   │ d0 d1 d2 │ d3 d4 d5 …       │ … dN │ d3 d4 …   the first are set aside for validation, in each pass
    tokens               │ ──────────────────────────────── …    one after the other, also from one pass to the next
    rows                 │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ …      chunk_size tokens each, numbered for ever
    blocks               │     0     │     1     │     2 …       shuffle_buffer rows each: what is in memory, and shuffled
                         ▲           ▲           ▲
                         where each block starts is kept on disk: the index of the stream

Row i is a function of the data alone, whatever was read before it; the order of a block's rows is TrainBatches', a function of
(seed, block). So a run that goes on needs no state of a reader: it opens the index at its block, and reads from there. Where
the data is no longer what the index was made of, the stream is read again from its beginning.

Each rank and each loader worker reads the whole stream and takes its own rows: their number changes no result, but tokenising
is work that each of them does. `data.num_workers=1` takes it out of the way of training; more only repeat it.
"""

import json
import logging
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.data.text.documents import hub
from mlm_lightning.data.text.documents.hub import StreamedDocuments
from mlm_lightning.data.text.stream_blocks import BEGINNING, Blocks, ChangedError, Index, Offset, Tokens, sha256
from mlm_lightning.data.text.tokenizer.encoder import Encoder

log = logging.getLogger(__name__)

ENTRY_TOKENS = 1 << 20
"""The index has an entry at the first block after every so many tokens, which is about a second of tokenising."""

_FORMAT = 1  # of the index


class StreamRows:
    """The rows of a stream, without an end: rows of a later pass have numbers of their own. `rows[index_B]` gathers a batch as
    int64, quickly where rows are asked for block by block; one block and the part read of the next are in memory.

    The first `held_out` documents of each pass are left out. The index is kept in `folder`, one for what these documents (the
    dataset, its revision and column) and this encoder (the tokenizer) are. Raises StreamError where the stream cannot be read.
    """

    _blocks: Blocks | None
    _latest: tuple[int, np.ndarray] | None

    def __init__(
        self,
        documents: StreamedDocuments,
        encoder: Encoder,
        *,
        chunk_size: int,
        shuffle_buffer: int,
        held_out: int,
        folder: Path,
    ) -> None:
        self.documents, self.encoder = documents, encoder
        self.chunk_size, self.shuffle_buffer, self.held_out = chunk_size, shuffle_buffer, held_out
        layout = [_FORMAT, version("datasets"), hub.GROUP, chunk_size, shuffle_buffer, held_out]
        every = -(-ENTRY_TOKENS // (chunk_size * shuffle_buffer))
        self._index = Index(folder / sha256(json.dumps(layout).encode())[:16], every)
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
        self._tokens().take(self.chunk_size)

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
        blocks = self._reading_before(number)
        try:
            while blocks.number < number:
                blocks.finish()
            return blocks.finish()
        except ChangedError:
            log.warning(
                "data.dataset=%s: is not what it was when its index was made (%s); reading it again from the beginning. Pin "
                "data.revision to train on the same data throughout",
                self.documents.name,
                self._index.folder,
            )
            self._index.remove()
            self._blocks = None
            return self._read(number)

    def _reading_before(self, number: int) -> Blocks:
        """Blocks being read, with `number` still to come, and soon."""
        distance = number - self._blocks.number if self._blocks else -1
        if self._blocks is None or not 0 <= distance <= self._index.every:
            entry = self._index.nearest(number)
            if self._blocks is None or distance < 0 or entry.block > self._blocks.number:
                shape = (self.shuffle_buffer, self.chunk_size)
                self._blocks = Blocks(self._tokens(entry.offset), self._index, shape, entry)
            if number - self._blocks.number > self._index.every:
                log.warning(
                    "%s has no entry for row %d of the stream: reading again what comes before it, from row %d on",
                    self._index.folder,
                    number * self.shuffle_buffer,
                    self._blocks.number * self.shuffle_buffer,
                )
        return self._blocks

    def _tokens(self, start: Offset = BEGINNING) -> Tokens:
        return Tokens(self.documents, self.encoder, self.held_out, self.chunk_size, start)

    def _forget(self) -> None:
        """Begins with nothing read. A forked process has to: how far an open file is read would be its parent's as well."""
        self._process = os.getpid()
        self._blocks = self._latest = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_blocks", "_latest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()

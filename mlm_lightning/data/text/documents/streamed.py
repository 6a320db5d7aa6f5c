"""Documents of a dataset that is read while training goes on: in groups, each with the state that a reader goes on from.

documents   │ d0 d1 d2 … d511 │ d512 d513 … d1023 │ d1024 …     a reader begins at the first of a group
                              ▲                   ▲
                              state               state         of the dataset, as `datasets` has it
"""

import copy
import logging
import time
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.base import Problems
from mlm_lightning.errors import ConfigError, one_line

log = logging.getLogger(__name__)

GROUP = 512
"""Documents that are read, and encoded, together."""

WAITS = (1.0, 10.0, 60.0)
"""Seconds before each further attempt to read on; `datasets` itself has tried for minutes before the first."""

_DOCUMENT_BYTES = 2_000  # about


class StreamError(ValueError):
    """The stream cannot be read, or is too short; its argument is a ConfigError that says which setting is wrong.

    It is none itself because it may be raised in a loader's worker, of whose errors torch keeps the class and the text alone.
    """

    def __str__(self) -> str:
        # that text is the whole traceback, with the message at its end
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()


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
                    remedy = "check the connection and data.revision. The same command continues"
                    problem = f"cannot be read on ({_reason(error)})"
                    raise StreamError(ConfigError("data.dataset", self.name, problem, remedy)) from error
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

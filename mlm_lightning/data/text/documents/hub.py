"""Documents of a dataset of the Hugging Face hub, or of a folder that `datasets` opens: whole, or read while training goes on.

A dataset that is streamed is read in groups, each with the state that a reader goes on from:

    documents   │ d0 d1 d2 … d511 │ d512 d513 … d1023 │ d1024 …     a reader begins at the first of a group
                                  ▲                   ▲
                                  state               state         of the dataset, as `datasets` has it
"""

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.documents.base import Documents, Labelled, Problems, label_problem, missing_column
from mlm_lightning.errors import ConfigError, one_line
from mlm_lightning.values import expanded, expanded_name

log = logging.getLogger(__name__)

GROUP = 512
"""Documents of a stream that are read, and encoded, together."""

WAITS = (1.0, 10.0, 60.0)
"""Seconds before each further attempt to read on; `datasets` itself has tried for minutes before the first."""

_DOCUMENT_BYTES = 2_000  # about
_STRINGS = ("string", "large_string")


def open_hub(name: str, config: str | None, revision: str | None, streaming: bool = False) -> Any:
    """A `datasets.DatasetDict` from the hub or from a local folder, an `IterableDatasetDict` where `streaming`; never runs a
    dataset's own code.

    Raises ConfigError where it cannot be opened.
    """
    from datasets import load_dataset

    local = expanded(name).exists()
    try:
        try:
            return load_dataset(expanded_name(name), config, revision=revision, streaming=streaming)
        except RuntimeError as error:
            if local or "scripts are no longer supported" not in str(error):
                raise
            log.info("data.dataset=%s is a script; taking the copy that the hub converted to parquet", name)
            return load_dataset(name, config, revision="refs/convert/parquet", streaming=streaming)
    except Exception as error:  # the hub's errors have no common ancestor
        raise ConfigError(
            "data.dataset",
            name,
            f"cannot be opened ({_reason(error)})",
            f"{'' if local else 'there is no such folder here; '}check the name, data.dataset_config, data.revision and the "
            "connection, or give data.path",
        ) from error


def _column_error(column: str, name: str, types: Mapping[str, Any], allowed: tuple[str, ...]) -> ConfigError | None:
    """What is wrong with the column that should hold the documents of a dataset with columns of these types."""
    if column not in types:
        return missing_column(column, name, types)
    if types[column] not in allowed:
        return ConfigError("data.text_column", column, f"the column of {name} holds {types[column]}, not strings")
    return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


class HubDocuments(Documents):
    """The documents of a split of a `datasets.Dataset`. Their numbers are its row numbers, empty rows included, so that a
    choice of rows is the one that `datasets` would make. A shard is an array of row numbers."""

    def __init__(self, dataset: Any, text_column: str, name: str, label_column: str | None = None):
        types = {column: getattr(kind, "dtype", None) for column, kind in dataset.features.items()}
        if error := _column_error(text_column, name, types, _STRINGS):
            raise error
        if label_column is not None and label_column not in types:
            raise missing_column(label_column, name, types, "task.label_column")
        self.dataset = dataset.select_columns([text_column, *([label_column] if label_column else [])])
        self.text_column, self.label_column, self.name = text_column, label_column, name
        # of labels that are numbers with names
        self._label_name = getattr(dataset.features.get(label_column), "int2str", str)
        self._row_bytes = max(1, self.dataset.data.nbytes // max(1, len(dataset)))
        self._content = str(dataset._fingerprint)

    def content(self) -> str:
        return self._content

    def shards(self) -> list[np.ndarray]:
        return self._shards_of(np.arange(len(self.dataset)))

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Split by split, in the order in which they were chosen: that of `train_test_split`."""
        return [
            (shard, np.full(len(shard), SPLITS.index(split), dtype=np.uint8))
            for split, chosen in numbers.items()
            for shard in self._shards_of(chosen)
        ]

    def _shards_of(self, numbers: np.ndarray) -> list[np.ndarray]:
        rows = max(1, base.SHARD_BYTES // self._row_bytes)
        return [numbers[start : start + rows] for start in range(0, len(numbers), rows)]

    def size(self, shard: np.ndarray) -> int:
        return len(shard) * self._row_bytes

    def read(self, shard: np.ndarray, problems: Problems) -> Iterator[str]:
        for start in range(0, len(shard), 256):
            rows = self.dataset[shard[start : start + 256]]
            if self.label_column is None:
                yield from (text or "" for text in rows[self.text_column])
                continue
            for text, label in zip(rows[self.text_column], rows[self.label_column], strict=True):
                if problem := label_problem(label):
                    problems.add(problem, self.name)
                is_labelled = problem is None and label != -1  # which is for the unlabelled rows of a test
                yield Labelled.of(text or "", self._label_name(label)) if is_labelled else ""


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


class StreamedDocuments(Documents):
    """The documents of a split of a `datasets.IterableDataset` (`load_dataset(…, streaming=True)[split]`): its rows in their
    own order, empty ones included. `name` is what messages call it: `data.dataset=NAME`.

    As `Documents`, of which a token cache is made, they are the first `count` (null: all), a single shard."""

    def __init__(self, dataset: Any, text_column: str, name: str, count: int | None = None) -> None:
        self.text_column, self.name, self.count = text_column, name, count
        # tables, since only they are read past `datasets`' own division of its files among loader workers; see `_groups`
        self.dataset = dataset.with_format("arrow")
        if dataset.features is not None:
            self._check_column({column: getattr(kind, "dtype", kind) for column, kind in dataset.features.items()})

    def shards(self) -> list[int | None]:
        return [self.count]

    def size(self, shard: int | None) -> int:
        return _DOCUMENT_BYTES * (shard or 1)

    def read(self, shard: int | None, problems: Problems) -> Iterator[str]:
        return islice(chain.from_iterable(group.texts for group in self.groups()), shard)

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[int | None, np.ndarray]]:
        [split] = numbers
        return [(self.count, np.full(counts[0], SPLITS.index(split), dtype=np.uint8))]

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
        # a column of nothing but nulls has the type "null", and documents that are all empty
        if error := _column_error(self.text_column, self.name, types, (*_STRINGS, "string_view", "null")):
            raise StreamError(error)


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

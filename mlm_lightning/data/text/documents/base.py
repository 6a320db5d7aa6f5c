"""What documents are for all that use them: numbered texts in shards, and what was wrong with them.

    documents   0 … N - 1 of a split's files or dataset, in their order, so that a choice of them is a set of numbers
    shards      parts that any process can read on its own: some small files, or a piece of a large one

Bad input is either an error that names what to do, or a problem: counted, with the file and the line of the first few.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from mlm_lightning.data.splits import Split
from mlm_lightning.errors import ConfigError

SHARD_BYTES = 4_000_000
UNUSED = 255
"""In place of the index of a document's split."""
EMPTY = "empty document(s) skipped"
NO_LABEL = "row(s) skipped that have no label"
NAN_LABEL = "row(s) skipped whose label is NaN"
NOT_LABEL = "row(s) whose label is a list or a mapping"
CR_LINES = "file(s) without a newline, whose lines end at carriage returns instead"
READ_OTHERWISE = frozenset({NAN_LABEL, NOT_LABEL, CR_LINES})
"""What an earlier version took for something else."""

_NAMED = 3  # places in a warning


class Labelled(str):
    """A document with its label."""

    label: str

    @classmethod
    def of(cls, text: str, label: Any) -> "Labelled":
        document = cls(text)
        document.label = str(label)
        return document


def label_problem(label: object) -> str | None:
    """What is wrong with the label of a row, if anything is."""
    if isinstance(label, list | dict):
        return NOT_LABEL
    if isinstance(label, float) and math.isnan(label):
        return NAN_LABEL
    return NO_LABEL if label in (None, "") else None


class Problems:
    """What was wrong with the input but did not stop the reading: how often, and where first. Those of shards that follow one
    another are added up by `extend`. `Problems(**vars(problems))` is a copy, through JSON as well."""

    def __init__(self, counts: Any = (), places: Any = (), read: Any = (), columns: Any = ()) -> None:
        self.counts: Counter[str] = Counter(counts)
        self.places: dict[str, list[tuple[str, str, int]]] = dict(places)
        """Of each problem the first few: a file, "line" or "row", and its number from 1; ("file", "", 0) for a whole file."""
        self.read: Counter[str] = Counter(read)
        """Lines or rows read so far of each file."""
        self.columns: dict[str, list[str] | None] = dict(columns)
        """Of the .jsonl files: the keys of the first object that lacks the column; None where an object has it."""

    def add(self, what: str, file: str, unit: str = "", number: int = 0) -> None:
        self.counts[what] += 1
        self.places[what] = [*self.places.get(what, []), (file, unit, number)][:_NAMED]

    def extend(self, later: "Problems") -> None:
        for what, places in later.places.items():
            moved = [(file, unit, number + self.read[file]) for file, unit, number in places]
            self.places[what] = [*self.places.get(what, []), *moved][:_NAMED]
        self.counts += later.counts
        self.read += later.read
        having = [file for file, keys in later.columns.items() if keys is None]
        self.columns = {**later.columns, **self.columns, **dict.fromkeys(having)}

    def messages(self) -> list[str]:
        """One sentence a kind of problem, such as "2 lines that are not JSON were skipped: a.jsonl line 3, b.jsonl line 9"."""
        messages = []
        for what, count in self.counts.items():
            places = ", ".join(f"{file} {unit} {number}" if unit else file for file, unit, number in self.places[what])
            more = f" and {count - _NAMED:,} more" if count > _NAMED else ""
            messages.append(f"{count:,} {what}: {places}{more}")
        return messages


def missing_column(column: str, name: str, columns: Iterable[str], key: str = "data.text_column") -> ConfigError:
    """Of the file or dataset `name`, which has other columns."""
    return ConfigError(key, column, f"{name} has no such column", f"it has {', '.join(map(repr, columns))}")


class Documents(ABC):
    """The documents of one origin. Travels to worker processes as names of files."""

    def content(self) -> str | None:
        """What tells this content from another that has the same names; None where the cache's fingerprint does."""
        return None

    @abstractmethod
    def shards(self) -> list[Any]:
        """All of it, in order. The same input gives the same shards."""

    @abstractmethod
    def size(self, shard: Any) -> int:
        """Bytes of input, about."""

    @abstractmethod
    def read(self, shard: Any, problems: Problems) -> Iterator[str]:
        """The documents of a shard, "" for an empty one that has a number; notes what is wrong with them."""

    @abstractmethod
    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[Any, np.ndarray]]:
        """Shards that hold the documents with these numbers, in the order in which the splits want them, and for each document
        of a shard the index of its split in SPLITS, or UNUSED. `counts` are those of `shards()`."""

    def check(self, problems: Problems) -> None:  # noqa: B027  (most have nothing to check then)
        """Raises ConfigError where `problems`, those of all shards, say that a column is missing."""

"""What documents are for all that use them: numbered texts in shards, and what was wrong with them.

    documents   0 … N - 1 of a split's files or dataset, in their order, so that a choice of them is a set of numbers
    shards      parts that any process can read on its own: some small files, or a piece of a large one

Bad input is either an error that names what to do, or a problem: counted, with the file and the line of the first few.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlm_lightning.data.splits import Split

SHARD_BYTES = 4_000_000
UNUSED = 255
"""In place of the index of a document's split."""

# what may be wrong with a document or its line
EMPTY = "empty document(s) skipped"
NOT_UTF8 = "line(s) with bytes that are not UTF-8, each such byte replaced by U+FFFD"
NOT_JSON = "line(s) skipped that are not a JSON object"
NO_COLUMN = "row(s) skipped that lack the column"
NOT_TEXT = "row(s) skipped whose value is not a string"
NOT_CSV = "row(s) skipped that are not valid CSV"

_NAMED = 3  # places in a warning


class Place(NamedTuple):
    """Where something is: `number` counts the lines or rows of `file`, from 1; without it, it is the file itself."""

    file: str
    unit: str = ""
    number: int = 0

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}" if self.unit else self.file


class Problems:
    """What was wrong with the input but did not stop the reading: how often, and where first. Those of shards that follow one
    another are added up by `extend`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[Place]] = {}
        self.read: Counter[str] = Counter()
        """Lines or rows read so far of each file."""
        self.lacking: dict[str, list[str]] = {}
        """Of the .jsonl files in which an object lacks the column: the keys that it has."""
        self.having: set[str] = set()
        """The .jsonl files in which an object has the column."""

    def add(self, what: str, where: Place) -> None:
        self.counts[what] += 1
        places = self.places.setdefault(what, [])
        if len(places) < _NAMED:
            places.append(where)

    def extend(self, later: "Problems") -> None:
        for what, places in later.places.items():
            moved = [place._replace(number=place.number + self.read[place.file]) for place in places]
            self.places[what] = [*self.places.get(what, []), *moved][:_NAMED]
        self.counts += later.counts
        self.read += later.read
        self.lacking = later.lacking | self.lacking
        self.having |= later.having

    def messages(self) -> list[str]:
        """One sentence a kind of problem, such as "2 lines that are not JSON were skipped: a.jsonl line 3, b.jsonl line 9"."""
        messages = []
        for what, count in self.counts.items():
            more = f" and {count - _NAMED:,} more" if count > _NAMED else ""
            messages.append(f"{count:,} {what}: {', '.join(map(str, self.places[what]))}{more}")
        return messages

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "having": sorted(self.having)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Problems":
        problems = cls()
        problems.counts, problems.read = Counter(values["counts"]), Counter(values["read"])
        problems.places = {what: [Place(*place) for place in places] for what, places in values["places"].items()}
        problems.lacking, problems.having = values["lacking"], set(values["having"])
        return problems


class Documents(Protocol):
    """The documents of one origin. Travels to worker processes as names of files."""

    def content(self) -> str | None:
        """What tells this content from another that has the same names; None where the cache's fingerprint does."""
        ...

    def shards(self) -> list[Any]:
        """All of it, in order. The same input gives the same shards."""
        ...

    def size(self, shard: Any) -> int:
        """Bytes of input, about."""
        ...

    def read(self, shard: Any, problems: Problems) -> Iterator[str]:
        """The documents of a shard; notes what is wrong with them."""
        ...

    def chosen(self, numbers: dict[Split, np.ndarray], counts: list[int]) -> list[tuple[Any, np.ndarray]]:
        """Shards that hold the documents with these numbers, in the order in which the splits want them, and for each document
        of a shard the index of its split in SPLITS, or UNUSED. `counts` are those of `shards()`."""
        ...

    def check(self, problems: Problems) -> None:
        """Raises ConfigError where `problems`, those of all shards, say that a column is missing."""
        ...


def is_blank(text: str) -> bool:
    return not text or text.isspace()

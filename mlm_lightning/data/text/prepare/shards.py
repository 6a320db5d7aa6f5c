"""What is done to each shard of documents on its own, in whichever process: counted, and later tokenised; then they are joined.

    shard      "Fellow citizens …"   "The full cost …"   "I am glad …"        documents 17, 18, 19
    count      e3b0 c442 …           98fc 1c14 …         4ca4 9599 …          a 128-bit hash of each
    split      train                 val                 train                chosen once all are counted
    tokenise   train  [CLS] fellow citizens … [SEP] [CLS] i am glad … [SEP]   tokens, and where documents end
               val    [CLS] the full cost … [SEP]
    join       part 0, part 1, part 2 … one after the other, in whichever order they are finished ─► train.tokens train.ends …

Nothing here knows torch, so that a worker starts quickly, and nothing is held but a batch: what is made goes to files.

Shapes: N documents, T tokens, of a shard or of the part of it that is encoded at once.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.base import READ_OTHERWISE, Documents, Labelled, Problems
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.errors import NO_VALUE, ConfigError
from mlm_lightning.files import write_atomically

ENDS_DTYPE = np.dtype("<i8")
"""Of a file of documents' ends."""
LABEL_DTYPE = np.dtype("<u8")
"""Of a file of documents' labels, each a hash of its name."""
MOST_LABELS = 4096
HASH_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])
NO_HASH = b"\0" * HASH_DTYPE.itemsize
"""In place of the hash of an empty document, which equals no other."""

NOTICED = {
    "special": "document(s) spell a special token, such as [MASK], and have that token there",
    "bare": "document(s) have no token but special ones",
    "dropped": "character(s) have no token and are left out: the tokenizer has none for what is unknown",
}
"""What is said of a split's documents, which stay as they are."""

_NOTHING = dict.fromkeys(("documents", "tokens", "unknown", "empty", *NOTICED), 0)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")  # as JSON has them

_COMMIT_BYTES = 64_000_000
"""Of tokens joined between two waits for the disk."""


@dataclass(frozen=True)
class Task:
    """A shard and where what is made of it goes: files whose names begin with `output`. `output`.json comes last, and says that
    the others are complete. `split_N` is the index in SPLITS of each of the shard's documents."""

    origin: Split
    shard: Any
    output: Path
    split_N: np.ndarray | None = None

    @property
    def result_file(self) -> Path:
        return self.output.with_suffix(".json")

    def result(self) -> dict[str, Any] | None:
        """What is known of the finished shard; None if it isn't finished."""
        try:
            return json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


@dataclass
class Work:
    """What all tasks share."""

    documents: dict[Split, Documents]
    encoder: Encoder | None = None
    unk_id: int | None = None
    labelled: bool = False


Function = Callable[[Work, Task], None]


def count(work: Work, task: Task) -> None:
    """Writes the documents' hashes, HASH_DTYPE; the result says how many there are and what is wrong with them."""
    problems, num_documents = Problems(), 0
    with _Output(task) as output:
        hashes = output.open(".hashes")
        for text in work.documents[task.origin].read(task.shard, problems):
            hashes.write(blake2b(text.encode(), digest_size=len(NO_HASH)).digest() if text.strip() else NO_HASH)
            num_documents += 1
        output.finish({"documents": num_documents, "problems": vars(problems)})


def count_characters(work: Work, task: Task) -> None:
    """The result says how often each character stands in the shard's training documents."""
    counts: Counter[int] = Counter()
    with _Output(task) as output:
        for text, split in wanted_documents(work, task):
            if SPLITS[split] == "train":
                characters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
                counts.update(dict(zip(*map(np.ndarray.tolist, np.unique(characters, return_counts=True)), strict=True)))
        output.finish({"characters": {chr(code): number for code, number in sorted(counts.items())}})


def tokenise(work: Work, task: Task) -> None:
    """Writes each split's tokens and the documents' ends, ENDS_DTYPE, counted from the shard's first token of that split."""
    encoder = work.encoder
    assert encoder is not None
    assert task.split_N is not None
    kept: list[int] = []  # the splits of the documents handed to the encoder and not yet seen to end
    labels: list[str] = []  # theirs, where documents are labelled

    def filled() -> Iterator[str]:
        for text, split in wanted_documents(work, task):
            if text.strip():
                kept.append(split)
                parts[split].counts["special"] += encoder.find_special(text) is not None
                parts[split].counts["dropped"] += encoder.num_dropped(text)
                if isinstance(text, Labelled):
                    labels.append(text.label)
                yield text
            else:
                parts[split].counts["empty"] += 1

    with _Output(task) as output:
        parts = {
            int(split): _Part(output, SPLITS[split], work.unk_id, work.labelled, len(encoder.prefix + encoder.suffix))
            for split in np.unique(task.split_N)
            if split < len(SPLITS)
        }
        for tokens, ends in encoder.encode(filled()):
            lengths_N = np.diff(ends, prepend=0, append=len(tokens))  # the last document may go on in the next batch
            split_T = np.repeat(kept[: len(lengths_N)], lengths_N[: len(kept)])
            for split, part in parts.items():
                chosen_N = np.array(kept[: len(ends)]) == split
                part.write(tokens, ends, split_T == split, chosen_N, np.array(labels[: len(ends)], dtype=object))
            del kept[: len(ends)], labels[: len(ends)]
        found = {"splits": {SPLITS[split]: part.counts for split, part in parts.items()}}
        output.finish(found | {"labels": {SPLITS[split]: part.labels for split, part in parts.items()}})


def wanted_documents(work: Work, task: Task) -> Iterator[tuple[str, int]]:
    """The shard's documents that some split wants, each with its split."""
    assert task.split_N is not None
    texts = work.documents[task.origin].read(task.shard, Problems())
    for text, split in zip_longest(texts, task.split_N.tolist()):
        if text is None or split is None:
            raise ConfigError("data.path", NO_VALUE, "the files changed while they were read", "try again")
        if split < len(SPLITS):
            yield text, split


class _Part:
    """The tokens of one split in a shard."""

    def __init__(self, output: "_Output", split: Split, unk_id: int | None, labelled: bool, num_framing: int) -> None:
        self._tokens, self._ends = output.open(f".{split}.tokens"), output.open(f".{split}.ends")
        self._labels = output.open(f".{split}.labels") if labelled else None
        self.labels: Counter[str] = Counter()
        self._unk_id, self._num_framing, self._last_end = unk_id, num_framing, 0
        self.counts = dict(_NOTHING)

    def write(
        self, tokens_T: np.ndarray, ends_N: np.ndarray, chosen_T: np.ndarray, chosen_N: np.ndarray, label_N: np.ndarray
    ) -> None:
        """Of tokens, ends and labels those that are this split's."""
        ends_N = self.counts["tokens"] + np.concatenate([[0], np.cumsum(chosen_T)])[ends_N[chosen_N]]
        tokens_T = tokens_T[chosen_T]
        lengths_N = np.diff(ends_N, prepend=self._last_end)
        has_tokens_N = lengths_N > 0
        self._tokens.write(tokens_T.data)
        self._ends.write(ends_N[has_tokens_N].astype(ENDS_DTYPE).data)
        if self._labels is not None:
            kept_N = label_N[chosen_N][has_tokens_N]
            self._labels.write(np.array(list(map(label_hash, kept_N)), LABEL_DTYPE).data)
            self.labels.update(kept_N)
        self._last_end = int(ends_N[-1]) if len(ends_N) else self._last_end
        self.counts["documents"] += int(has_tokens_N.sum())
        self.counts["empty"] += int((~has_tokens_N).sum())
        self.counts["bare"] += int((has_tokens_N & (lengths_N <= self._num_framing)).sum())
        self.counts["tokens"] += len(tokens_T)
        self.counts["unknown"] += 0 if self._unk_id is None else int(np.count_nonzero(tokens_T == self._unk_id))


def label_hash(label: str) -> int:
    return int.from_bytes(blake2b(label.encode(), digest_size=LABEL_DTYPE.itemsize).digest(), "little")


def label_value(label: str) -> str | Decimal:
    """What makes two labels one class: 0, 0.0 and "0" do. A code such as 007 is no number."""
    return Decimal(label) if _NUMBER.fullmatch(label) else label


def is_mended(problems: Problems, labels: Collection[str]) -> bool:
    """Whether an earlier version made something else of what was read."""
    return len(set(map(label_value, labels))) < len(labels) or not READ_OTHERWISE.isdisjoint(problems.counts)


def was_read_otherwise(origins: Iterable[Documents]) -> bool:
    """The same of documents that are read for it."""
    problems, labels = Problems(), set[str]()
    try:
        for documents in origins:
            for shard in documents.shards():
                labels.update(getattr(document, "label", "") for document in documents.read(shard, problems))
    except ConfigError:
        return True
    return is_mended(problems, labels)


class _Output:
    """A task's files: written under names of this process alone, so that a killed command's last worker and the same command
    again cannot write into one file, and renamed once they are whole."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._files: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_Output":
        self._task.output.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for file in self._files:
            self._temporary(file).unlink(missing_ok=True)

    def open(self, ending: str) -> BinaryIO:
        file = self._task.output.with_name(self._task.output.name + ending)
        stream = self._files[file] = self._stack.enter_context(self._temporary(file).open("wb"))
        return stream

    def finish(self, result: dict[str, Any]) -> None:
        self.open(".json").write(json.dumps(result, ensure_ascii=True).encode())
        for file, stream in self._files.items():  # the .json is the last
            stream.flush()
            os.fsync(stream.fileno())
            self._temporary(file).replace(file)

    def _temporary(self, file: Path) -> Path:
        return file.with_name(f"{file.name}.{os.getpid()}.tmp")


class Joined:
    """The token files that grow part by part, in the order of the tasks. `joined.json` says how many parts, and how much of
    the files, the disk has for sure; what an interrupted command wrote beyond is cut off."""

    def __init__(self, work: Path, tasks: list[Task], dtype: np.dtype, labelled: bool = False) -> None:
        self.tasks, self._note = tasks, work / "tokens" / "joined.json"
        splits = [s for number, s in enumerate(SPLITS) if any(np.any(task.split_N == number) for task in tasks)]
        noted: dict[str, Any] = {"parts": 0, "counts": {split: dict(_NOTHING) for split in splits}, "labels": {}}
        if self._note.exists():
            noted = json.loads(self._note.read_text(encoding="utf-8"))
        self.num_parts: int = noted["parts"]
        self.counts: dict[Split, dict[str, int]] = noted["counts"]
        self.labels: dict[Split, Counter[str]] = {split: Counter(noted["labels"].get(split)) for split in self.counts}
        self._committed, self._uncommitted = self.num_parts, 0
        sizes = {"tokens": (dtype, "tokens"), "ends": (ENDS_DTYPE, "documents")}
        sizes |= {"labels": (LABEL_DTYPE, "documents")} if labelled else {}
        self._files = {(split, ending): work / f"{split}.{ending}" for split in self.counts for ending in sizes}
        for (split, ending), file in self._files.items():
            kind, number = sizes[ending]
            file.touch()
            os.truncate(file, self.counts[split][number] * kind.itemsize)

    def join_finished(self) -> None:
        """Appends the parts that are next."""
        while self.num_parts < len(self.tasks) and (result := self.tasks[self.num_parts].result()) is not None:
            part_name = self.tasks[self.num_parts].output
            for split, counts in result["splits"].items():
                for ending in {"tokens", "labels"} & {ending for _, ending in self._files}:
                    with open(f"{part_name}.{split}.{ending}", "rb") as part, self._files[split, ending].open("ab") as whole:
                        shutil.copyfileobj(part, whole, 1 << 20)
                        self._uncommitted += part.tell()
                self.labels[split].update(result["labels"][split])
                ends = np.fromfile(f"{part_name}.{split}.ends", ENDS_DTYPE) + self.counts[split]["tokens"]
                with self._files[split, "ends"].open("ab") as whole:
                    whole.write(ends.astype(ENDS_DTYPE).data)
                for name, number in counts.items():
                    self.counts[split][name] += number
            self.num_parts += 1
            if self._uncommitted > _COMMIT_BYTES:
                self.commit()

    def commit(self) -> None:
        """Makes sure that the disk has what is joined, then deletes its parts."""
        for whole in self._files.values():
            with whole.open("rb") as file:
                os.fsync(file.fileno())
        note = {"parts": self.num_parts, "counts": self.counts, "labels": self.labels}
        write_atomically(self._note, json.dumps(note).encode())
        for task in self.tasks[self._committed : self.num_parts]:
            for split, ending in self._files:
                Path(f"{task.output}.{split}.{ending}").unlink(missing_ok=True)
            task.result_file.unlink()
        self._committed, self._uncommitted = self.num_parts, 0

"""Builds a token cache from documents of any number, on all cores, in memory that does not grow with them.

    count      every shard: how many documents, a hash of each           ─► number of documents, duplicates
    choose     documents of train, val and test                          ─► a split for every document
    train      the tokenizer, where it is to be trained
    tokenise   every shard: tokens and ends of each split                ─► parts
    join       part 0, part 1, part 2 … one after the other              ─► train.tokens  val.tokens …

Every step leaves what it has done in the work folder, so the same command goes on after a kill, and what it makes is a function
of the input alone: not of the number of workers, of the order in which they end, or of where an earlier command was killed.
"""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mlm_lightning.data import documents as documents_
from mlm_lightning.data import tokenizer as tokenizers_
from mlm_lightning.data.documents import EMPTY, UNUSED, Documents, Problems
from mlm_lightning.data.encoder import Encoder
from mlm_lightning.data.shards import ENDS_DTYPE, HASH_DTYPE, Task, Work, count, count_characters, tokenise
from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.tokenizer import TRAIN
from mlm_lightning.data.tokenizer_training import train_tokenizer
from mlm_lightning.data.workers import Function
from mlm_lightning.errors import ConfigError, as_typed
from mlm_lightning.files import write_atomically
from mlm_lightning.processes import Workers

ProgressCallback = Callable[[str, int, int], None]
"""Called with (step, bytes of input done, bytes in all)."""

DEFAULT_VAL_SHARE = 0.05

_BUCKET = 500_000
"""Hashes that are compared at once, about."""

_COMMIT_BYTES = 64_000_000
"""Of tokens joined between two waits for the disk."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to make. `documents` are those for training, and for validation and test where they have files of their own.
    `origins` are the keys that name them, with their values."""

    documents: dict[Split, Documents]
    origins: dict[Split, tuple[str, Any]]
    train_size: int | float | None
    val_size: int | float | None
    test_size: int | float | None
    seed: int
    deduplicate: bool
    tokenizer: str
    vocab_size: int | None
    tokenizer_algorithm: str


class Preparation:
    """Makes a cache's files in `work`, which may hold what an earlier one did before it was stopped."""

    def __init__(self, recipe: Recipe, work: Path, workers: Workers, report: ProgressCallback) -> None:
        self.recipe, self.work, self.workers, self.report = recipe, work, workers, report
        self.warnings: list[str] = []
        # held out first: of equal documents the first is kept
        self.origins: list[Split] = sorted(recipe.documents, key=("val", "test", "train").index)

    def run(self) -> dict[str, Any]:
        """What meta.json says of the files."""
        self._begin()
        # a name that leads nowhere is better found before hours of reading
        tokenizer = None if self.recipe.tokenizer == TRAIN else tokenizers_.open_tokenizer(self.recipe.tokenizer)
        counts = self._count()
        numbers, copies = self._choose(counts)
        tasks = self._tasks(numbers, counts)
        if tokenizer is None:
            tokenizer = self._trained_tokenizer(tasks)
        _save(tokenizer, self.work / "tokenizer")
        vocab = tokenizers_.read_vocab(tokenizer)
        tokenizers_.save_vocab(vocab, self.work / "vocab.json")
        is_bare = self.recipe.tokenizer != TRAIN and tokenizers_.vocabulary_file(self.recipe.tokenizer) is not None
        if is_bare and (cased := tokenizers_.cased_tokens(vocab)):
            self.warnings.append(
                f"data.tokenizer={self.recipe.tokenizer}: {cased:,} tokens of the vocabulary have capital letters, but a "
                "bare vocab.txt is read as uncased; give the folder of a cased tokenizer instead"
            )
        dtype = np.dtype(np.uint16 if vocab.size <= 1 << 16 else np.uint32)
        encoder = Encoder(tokenizer, dtype)
        splits = self._tokenise(tasks, Work(self.recipe.documents, encoder, tokenizer.unk_token_id), dtype)
        return {
            "dtype": dtype.name,
            "own_tokenizer": is_bare or self.recipe.tokenizer == TRAIN,
            "prefix": encoder.prefix,
            "suffix": encoder.suffix,
            "splits": {s: {**splits[s], "duplicates": copies.get(s, 0)} for s in SPLITS if s in splits},
            "warnings": self.warnings,
        }

    def _begin(self) -> None:
        """Keeps what lies in the work folder if it was made in the same way: the same shards, the same choice of documents."""
        note = self.work / "plan.json"
        packages = {name: version(name) for name in ("mlm-lightning", "numpy", "tokenizers")}
        contents = {origin: documents.content() for origin, documents in self.recipe.documents.items()}
        plan = json.dumps({"packages": packages, "shard_bytes": documents_.SHARD_BYTES, "contents": contents}).encode()
        if not note.exists() or note.read_bytes() != plan:
            for path in self.work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_atomically(note, plan)

    # -- count and choose ------------------------------------------------------------------------------------------------

    def _count(self) -> dict[Split, list[int]]:
        """The number of documents in each shard of each origin."""
        tasks = [
            Task(origin, shard, self.work / "count" / f"{origin}-{number:06}")
            for origin in self.origins
            for number, shard in enumerate(self.recipe.documents[origin].shards())
        ]
        self._run("reading", count, Work(self.recipe.documents), tasks)
        counts: dict[Split, list[int]] = {}
        for origin in self.origins:
            problems, counts[origin] = Problems(), []
            for result in (_result(task) for task in tasks if task.origin == origin):
                counts[origin].append(result["documents"])
                problems.extend(Problems.from_json(result["problems"]))
            self.recipe.documents[origin].check(problems)
            if sum(counts[origin]) == 0:
                found = "; ".join(problems.messages()) or "it is empty"
                remedy = "give text, or, where it is in a column, check data.text_column"
                raise ConfigError(*self.recipe.origins[origin], f"there is no document for {origin} ({found})", remedy)
            self.warnings += problems.messages()
        return counts

    def _choose(self, counts: dict[Split, list[int]]) -> tuple[dict[Split, dict[Split, np.ndarray]], dict[Split, int]]:
        """By origin and split the numbers of the documents, and by origin how many copies were dropped."""
        kept: dict[Split, np.ndarray | None] = dict.fromkeys(self.origins)
        copies: dict[Split, int] = {}
        if self.recipe.deduplicate:
            is_first = self._is_first(counts)
            copies = {origin: int((~is_first[origin]).sum()) for origin in self.origins}
            kept = {origin: np.flatnonzero(is_first[origin]) for origin in self.origins}
        numbers = {origin: self._choose_from(origin, sum(counts[origin]), kept[origin]) for origin in self.origins}
        if sum(map(len, numbers.values())) > 1 and (shared := self._num_shared(counts, numbers)):
            self.warnings.append(
                f"{shared:,} different document(s) of validation or test occur, word for word, among those for training; "
                "data.deduplicate=true drops such copies"
            )
        return numbers, copies

    def _choose_from(self, origin: Split, num_documents: int, kept: np.ndarray | None) -> dict[Split, np.ndarray]:
        """Of the documents of an origin (of those `kept`, if some are copies) which are for what."""
        recipe = self.recipe
        if kept is not None and not len(kept):
            problem = "all of its documents are copies of those of validation or test"
            raise ConfigError(*recipe.origins[origin], problem, "give others, or set data.deduplicate=false")
        number = num_documents if kept is None else len(kept)
        if origin == "train":
            key, value = recipe.origins["train"]
            val_size = DEFAULT_VAL_SHARE if recipe.val_size is None else recipe.val_size
            chosen = choose_documents(
                number,
                train_size=recipe.train_size,
                val_size=None if "val" in self.origins else val_size,
                test_size=None if "test" in self.origins else recipe.test_size,
                seed=recipe.seed,
                origin=f"{key}={as_typed(value)}",
            )
        else:
            chosen = {origin: _choose_own(origin, getattr(recipe, f"{origin}_size"), number, recipe.seed)}
        return {split: numbers if kept is None else kept[numbers] for split, numbers in chosen.items()}

    def _is_first(self, counts: dict[Split, list[int]]) -> dict[Split, np.ndarray]:
        """For each document whether it has no equal before it, those held out coming before those for training."""
        is_first_N = np.ones(sum(map(sum, counts.values())), dtype=bool)
        for number_M, group_M in self._equal(counts):
            is_first_N[number_M[1:][np.diff(group_M) == 0]] = False
        starts = np.cumsum([sum(counts[origin]) for origin in self.origins])[:-1]
        return dict(zip(self.origins, np.split(is_first_N, starts), strict=True))

    def _num_shared(self, counts: dict[Split, list[int]], numbers: dict[Split, dict[Split, np.ndarray]]) -> int:
        """How many different documents are both held out and for training."""
        split_N = np.full(sum(map(sum, counts.values())), UNUSED, dtype=np.uint8)
        start = 0
        for origin in self.origins:
            for split, chosen in numbers[origin].items():
                split_N[start + chosen] = SPLITS.index(split)
            start += sum(counts[origin])
        train, shared = SPLITS.index("train"), 0
        for number_M, group_M in self._equal(counts):
            split_M = split_N[number_M]
            trained, held_out = group_M[split_M == train], group_M[(split_M != train) & (split_M != UNUSED)]
            shared += len(np.intersect1d(trained, held_out))
        return shared

    def _equal(self, counts: dict[Split, list[int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of documents, over all origins, and for each the group of its equals; a bucket of hashes at a time.
        Groups follow one another, and within one the numbers ascend."""
        num_buckets = -(-sum(map(sum, counts.values())) // _BUCKET)
        for bucket in range(num_buckets):
            found, start = [], 0
            for origin in self.origins:
                for shard, num_documents in enumerate(counts[origin]):
                    hash_D = np.fromfile(self.work / "count" / f"{origin}-{shard:06}.hashes", HASH_DTYPE)
                    own_D = np.flatnonzero((hash_D["low"] % num_buckets == bucket) & (hash_D["low"] | hash_D["high"] != 0))
                    found.append((start + own_D, hash_D[own_D]))
                    start += num_documents
            number_M, hash_M = np.concatenate([n for n, _ in found]), np.concatenate([h for _, h in found])
            order_M = np.lexsort((number_M, hash_M["low"], hash_M["high"]))
            yield number_M[order_M], np.cumsum(np.append(True, hash_M[order_M][1:] != hash_M[order_M][:-1])[: len(order_M)])

    def _tasks(self, numbers: dict[Split, dict[Split, np.ndarray]], counts: dict[Split, list[int]]) -> list[Task]:
        """Those that together hold all that is wanted, in the order in which their parts are joined."""
        chosen = [
            (origin, shard, split_D)
            for origin in self.origins
            for shard, split_D in self.recipe.documents[origin].chosen(numbers[origin], counts[origin])
        ]
        return [
            Task(origin, shard, self.work / "tokens" / f"{number:06}", split_D)
            for number, (origin, shard, split_D) in enumerate(chosen)
        ]

    # -- the tokenizer ---------------------------------------------------------------------------------------------------

    def _trained_tokenizer(self, tasks: list[Task]) -> Any:
        trained = self.work / "trained"
        if not trained.exists():
            tokenizer = self._train_tokenizer([task for task in tasks if np.any(task.split_D == SPLITS.index("train"))])
            unfinished = self.work / "training"
            shutil.rmtree(unfinished, ignore_errors=True)
            _save(tokenizer, unfinished)
            unfinished.rename(trained)
        return tokenizers_.load_tokenizer(trained)

    def _train_tokenizer(self, tasks: list[Task]) -> Any:
        alphabet: Counter[str] = Counter()
        if self.recipe.tokenizer_algorithm == "wordpiece":  # the others need none
            counting = [Task(t.origin, t.shard, self.work / "characters" / t.output.name, t.split_D) for t in tasks]
            self._run("counting characters", count_characters, Work(self.recipe.documents), counting)
            for task in counting:
                alphabet.update(_result(task)["characters"])
        assert self.recipe.vocab_size is not None
        return train_tokenizer(self._training_texts(tasks), self.recipe.vocab_size, alphabet, self.recipe.tokenizer_algorithm)

    def _training_texts(self, tasks: list[Task]) -> Iterator[str]:
        done, total = 0, self._size(tasks)
        for task in tasks:
            assert task.split_D is not None
            self.report("training the tokenizer", done, total)
            texts = self.recipe.documents[task.origin].read(task.shard, Problems())
            for text, split in zip(texts, task.split_D.tolist(), strict=True):
                if SPLITS.index("train") == split:
                    yield text
            done += self._size([task])
        self.report("training the tokenizer", total, total)

    # -- tokenise and join -----------------------------------------------------------------------------------------------

    def _tokenise(self, tasks: list[Task], work: Work, dtype: np.dtype) -> dict[Split, dict[str, int]]:
        joined = _Joined(self.work, tasks, dtype)
        done, missing = tasks[: joined.num_parts], tasks[joined.num_parts :]
        for _ in self._running("tokenising", tokenise, work, missing, done_before=self._size(done)):
            joined.join_finished()
        joined.join_finished()
        assert joined.num_parts == len(tasks)
        joined.commit()
        self._check_splits(joined.counts)
        return joined.counts

    def _check_splits(self, counts: dict[Split, dict[str, int]]) -> None:
        for split, own in counts.items():
            origin = self.recipe.origins[split if split in self.recipe.documents else "train"]
            if not own["tokens"]:
                raise ConfigError(*origin, f"all {own['empty']:,} documents of the {split} split are empty", "give text")
            if own["empty"]:
                self.warnings.append(f"{own['empty']:,} {EMPTY} of the {split} split")

    # -- running ---------------------------------------------------------------------------------------------------------

    def _run(self, step: str, function: Function, work: Work, tasks: list[Task]) -> None:
        for _ in self._running(step, function, work, tasks):
            pass

    def _running(self, step: str, function: Function, work: Work, tasks: list[Task], done_before: int = 0) -> Iterator[Task]:
        """Runs those of the tasks that are not done yet, and yields each that ends."""
        missing = [task for task in tasks if task.result() is None]
        done, total = done_before + self._size(tasks) - self._size(missing), done_before + self._size(tasks)
        self.report(step, done, total)
        for task in self.workers.run(function, work, missing):
            done += self._size([task])
            self.report(step, done, total)
            yield task

    def _size(self, tasks: Sequence[Task]) -> int:
        return sum(self.recipe.documents[task.origin].size(task.shard) for task in tasks)


def delete_scratch(work: Path) -> None:
    """What is of no use once the cache is complete."""
    (work / "plan.json").unlink(missing_ok=True)
    for name in ("count", "characters", "tokens", "training", "trained"):
        shutil.rmtree(work / name, ignore_errors=True)


class _Joined:
    """The token files that grow part by part, in the order of the tasks. `joined.json` says how many parts, and how much of
    the files, the disk has for sure; what an interrupted command wrote beyond is cut off."""

    def __init__(self, work: Path, tasks: list[Task], dtype: np.dtype) -> None:
        self.work, self.tasks, self.dtype = work, tasks, dtype
        self._note = work / "tokens" / "joined.json"
        splits = [s for number, s in enumerate(SPLITS) if any(np.any(task.split_D == number) for task in tasks)]
        nothing = {"documents": 0, "tokens": 0, "unknown": 0, "empty": 0}
        self.num_parts, self.counts = 0, {split: dict(nothing) for split in splits}
        if self._note.exists():
            noted = json.loads(self._note.read_text(encoding="utf-8"))
            self.num_parts, self.counts = noted["parts"], noted["counts"]
        self._committed, self._uncommitted = self.num_parts, 0
        for split, counts in self.counts.items():
            for ending, itemsize, number in (("tokens", dtype.itemsize, "tokens"), ("ends", ENDS_DTYPE.itemsize, "documents")):
                file = work / f"{split}.{ending}"
                file.touch()
                os.truncate(file, counts[number] * itemsize)

    def join_finished(self) -> None:
        """Appends the parts that are next."""
        while self.num_parts < len(self.tasks) and (result := self.tasks[self.num_parts].result()) is not None:
            for split, counts in result["splits"].items():
                self._append(self.tasks[self.num_parts], split, counts)
            self.num_parts += 1
            if self._uncommitted > _COMMIT_BYTES:
                self.commit()

    def _append(self, task: Task, split: Split, counts: dict[str, int]) -> None:
        with open(f"{task.output}.{split}.tokens", "rb") as part, (self.work / f"{split}.tokens").open("ab") as whole:
            shutil.copyfileobj(part, whole, 1 << 20)
        ends = np.fromfile(f"{task.output}.{split}.ends", ENDS_DTYPE) + self.counts[split]["tokens"]
        with (self.work / f"{split}.ends").open("ab") as whole:
            whole.write(ends.astype(ENDS_DTYPE).data)
        for name, number in counts.items():
            self.counts[split][name] += number
        self._uncommitted += counts["tokens"] * self.dtype.itemsize

    def commit(self) -> None:
        """Makes sure that the disk has what is joined, then deletes its parts."""
        for split in self.counts:
            for ending in ("tokens", "ends"):
                with (self.work / f"{split}.{ending}").open("rb") as file:
                    os.fsync(file.fileno())
        write_atomically(self._note, json.dumps({"parts": self.num_parts, "counts": self.counts}).encode())
        for task in self.tasks[self._committed : self.num_parts]:
            for split in self.counts:
                for ending in ("tokens", "ends"):
                    Path(f"{task.output}.{split}.{ending}").unlink(missing_ok=True)
            task.result_file.unlink()
        self._committed, self._uncommitted = self.num_parts, 0


def _save(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # what the disk refuses is a bare Exception of `tokenizers`
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def _result(task: Task) -> dict[str, Any]:
    result = task.result()
    assert result is not None, f"{task.result_file} vanished"
    return result


# -- which documents ---------------------------------------------------------------------------------------------------------


def choose_documents(
    num_documents: int,
    *,
    train_size: int | float | None,
    val_size: int | float | None,
    test_size: int | float | None,
    seed: int,
    origin: str = "data.path",
) -> dict[Split, np.ndarray]:
    """Which documents are for training, validation and test, as `datasets`' `train_test_split(train_size, test_size=val_size,
    seed=seed)` chooses them; ours for the test come between the two.

        permutation(seed)   |── val ──|── test ──|── train ──|── unused ──|

    Null: none for val and test, the rest for train; in their own order if that is all of them.
    """
    num_val = _number(val_size, num_documents, math.ceil) or 0
    num_test = _number(test_size, num_documents, math.ceil) or 0
    num_train = _number(train_size, num_documents, math.floor)
    asked = num_val + num_test + max(num_train or 0, 1)
    if asked > num_documents or num_train == 0:
        sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
        given = [(f"data.{name}", size) for name, size in sizes.items() if size is not None]
        others = ", ".join(f"{key}={size}" for key, size in given[1:])
        raise ConfigError(
            *given[0],
            f"together {f'with {others} ' if others else ''}at least {max(asked, 1):,} document(s) with one for training at "
            f"the least, but {origin} has {num_documents:,}",
            "lower the sizes (0 sets none aside, a float is a share) or give more documents",
        )
    if num_train is None:
        num_train = num_documents - num_val - num_test
    if num_train == num_documents:
        return {"train": _all(num_documents)}
    permutation = _permutation(num_documents, seed)
    val, test, train, _ = np.split(permutation, np.cumsum([num_val, num_test, num_train]))
    chosen: dict[Split, np.ndarray] = {"train": train, "val": val, "test": test}
    return {split: numbers for split, numbers in chosen.items() if len(numbers)}


def _choose_own(split: Split, size: int | float | None, num_documents: int, seed: int) -> np.ndarray:
    """Which documents of a split's own files."""
    number = _number(size, num_documents, math.ceil)
    if number is None or number == num_documents:
        return _all(num_documents)
    if number > num_documents:
        problem = f"more than the {num_documents:,} documents that there are"
        raise ConfigError(f"data.{split}_size", size, problem, "lower it (null: all)")
    return _permutation(num_documents, seed)[:number]


def _permutation(num_documents: int, seed: int) -> np.ndarray:
    """`default_rng(seed).permutation(num_documents)`, in half the memory."""
    numbers = _all(num_documents)
    np.random.default_rng(seed).shuffle(numbers)
    return numbers


def _all(num_documents: int) -> np.ndarray:
    return np.arange(num_documents, dtype=np.uint32 if num_documents < 1 << 32 else np.int64)


def _number(size: int | float | None, num_documents: int, rounded: Callable[[float], int]) -> int | None:
    return rounded(size * num_documents) if isinstance(size, float) else size

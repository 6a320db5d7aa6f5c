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
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.documents.base import EMPTY, NAN_LABEL, NO_LABEL, NOT_LABEL, Documents, Problems
from mlm_lightning.data.text.prepare.choice import Hashes, choose_documents, choose_held_out
from mlm_lightning.data.text.prepare.shards import (
    NOTICED,
    Function,
    Joined,
    Task,
    Work,
    count,
    count_characters,
    is_mended,
    tokenise,
    wanted_documents,
)
from mlm_lightning.data.text.settings import TextSettings
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.data.text.tokenizer.load import TRAIN, load_tokenizer, open_tokenizer, read_vocab, vocabulary_file
from mlm_lightning.data.text.tokenizer.training import train_tokenizer, vocab_size_for
from mlm_lightning.errors import ConfigError, as_typed
from mlm_lightning.files import write_atomically
from mlm_lightning.processes import Workers

DEFAULT_VAL_SHARE = 0.05


@dataclass
class Preparation:
    """Makes a cache's files in `work`, which may hold what an earlier one did before it was stopped. `documents` are those for
    training, and for validation and test where they have an origin of their own."""

    settings: TextSettings
    documents: dict[Split, Documents]
    work: Path
    workers: Workers

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self._all_problems = Problems()
        # held out first: of equal documents the first is kept
        self.origins: list[Split] = sorted(self.documents, key=("val", "test", "train").index)

    def run(self) -> dict[str, Any]:
        """What meta.json says of the files."""
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        console, is_shown = Console(stderr=True), sys.stderr.isatty()
        with Progress(*columns, console=console, speed_estimate_period=60, disable=not is_shown) as self._bar:
            self._bars: dict[str, Any] = {}
            return self._make()

    def report(self, step: str, done: int, total: int) -> None:
        """Shows on a terminal how many bytes of its input a step has read."""
        if step not in self._bars:  # what an earlier command did says nothing about the speed
            self._bars[step] = self._bar.add_task(step, total=total, completed=done)
        self._bar.update(self._bars[step], completed=done, total=total)

    def _make(self) -> dict[str, Any]:
        self._begin()
        # a name that leads nowhere is better found before hours of reading
        tokenizer = None if self.settings.tokenizer == TRAIN else open_tokenizer(self.settings.tokenizer)
        counts = self._count()
        numbers, copies = self._choose(counts)
        # together they hold all that is wanted, in the order in which their parts are joined
        tasks: list[Task] = []
        for origin in self.origins:
            for shard, split_N in self.documents[origin].chosen(numbers[origin], counts[origin]):
                tasks.append(Task(origin, shard, self.work / "tokens" / f"{len(tasks):06}", split_N))
        if tokenizer is None:
            tokenizer = self._trained_tokenizer(tasks)
        _save(tokenizer, self.work / "tokenizer")
        vocab = read_vocab(tokenizer)
        (self.work / "vocab.json").write_text(json.dumps(vocab.to_json()), encoding="utf-8")
        is_bare = self.settings.tokenizer != TRAIN and vocabulary_file(self.settings.tokenizer) is not None
        regular = (token for token in vocab.tokens or () if not re.fullmatch(r"\[.*\]|<.*>", token))
        if is_bare and (cased := sum(token != token.lower() for token in regular)):  # never produced by an uncased tokenizer
            self.warnings.append(
                f"data.tokenizer={self.settings.tokenizer}: {cased:,} tokens of the vocabulary have capital letters, but a "
                "bare vocab.txt is read as uncased; give the folder of a cased tokenizer instead"
            )
        dtype = np.dtype(np.uint16 if vocab.size <= 1 << 16 else np.uint32)
        encoder = Encoder(tokenizer, dtype)
        labelled = self.settings.label_column is not None
        joined = self._tokenise(tasks, Work(self.documents, encoder, tokenizer.unk_token_id, labelled), dtype)
        splits = joined.counts
        return {
            "dtype": dtype.name,
            "own_tokenizer": is_bare or self.settings.tokenizer == TRAIN,
            "prefix": encoder.prefix,
            "suffix": encoder.suffix,
            "splits": {s: {**splits[s], "duplicates": copies.get(s, 0)} for s in SPLITS if s in splits},
            "warnings": self.warnings,
            # whether an earlier version made something else of these documents or labels
            "mended": self.settings.dataset is None and is_mended(self._all_problems, set().union(*joined.labels.values())),
            **({"labels": joined.labels} if labelled else {}),
        }

    def _begin(self) -> None:
        """Keeps what lies in the work folder if it was made in the same way: the same shards, the same choice of documents."""
        note = self.work / "plan.json"
        packages = {name: version(name) for name in ("mlm-lightning", "numpy", "tokenizers")}
        contents = {origin: documents.content() for origin, documents in self.documents.items()}
        plan = json.dumps({"packages": packages, "format": 3, "shard_bytes": base.SHARD_BYTES, "contents": contents}).encode()
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
            for number, shard in enumerate(self.documents[origin].shards())
        ]
        self._run("reading", count, Work(self.documents), tasks)
        counts: dict[Split, list[int]] = {}
        for origin in self.origins:
            problems, counts[origin] = Problems(), []
            for result in (_result(task) for task in tasks if task.origin == origin):
                counts[origin].append(result["documents"])
                problems.extend(Problems(**result["problems"]))
            self.documents[origin].check(problems)
            self._all_problems.extend(problems)
            if NOT_LABEL in problems.counts:
                found = "; ".join(problems.messages())
                raise ConfigError("task.label_column", self.settings.label_column, found, "give words or numbers as labels")
            if sum(counts[origin]) == 0:
                found = "; ".join(problems.messages()) or "it is empty"
                if {NO_LABEL, NAN_LABEL} & problems.counts.keys():
                    where = "task.label_column", self.settings.label_column
                    raise ConfigError(*where, f"no document for {origin} has a label there ({found})", "name another column")
                remedy = "give text, or, where it is in a column, check data.text_column"
                raise ConfigError(*self.settings.origin(origin), f"there is no document for {origin} ({found})", remedy)
            self.warnings += problems.messages()
        return counts

    def _choose(self, counts: dict[Split, list[int]]) -> tuple[dict[Split, dict[Split, np.ndarray]], dict[Split, int]]:
        """By origin and split the numbers of the documents, and by origin how many copies were dropped."""
        hashes = Hashes(self.work / "count", self.origins, counts)
        kept: dict[Split, np.ndarray | None] = dict.fromkeys(self.origins)
        copies: dict[Split, int] = {}
        if self.settings.deduplicate:
            is_first = hashes.is_first()
            copies = {origin: int((~is_first[origin]).sum()) for origin in self.origins}
            kept = {origin: np.flatnonzero(is_first[origin]) for origin in self.origins}
        numbers = {origin: self._choose_from(origin, sum(counts[origin]), kept[origin]) for origin in self.origins}
        if sum(map(len, numbers.values())) > 1 and (shared := hashes.num_shared(numbers)):
            self.warnings.append(
                f"{shared:,} different document(s) of validation or test occur, word for word, among those for training; "
                "data.deduplicate=true drops such copies"
            )
        return numbers, copies

    def _choose_from(self, origin: Split, num_documents: int, kept: np.ndarray | None) -> dict[Split, np.ndarray]:
        """Of the documents of an origin (of those `kept`, if some are copies) which are for what."""
        settings = self.settings
        if kept is not None and not len(kept):
            problem = "all of its documents are copies of those of validation or test"
            raise ConfigError(*settings.origin(origin), problem, "give others, or set data.deduplicate=false")
        number = num_documents if kept is None else len(kept)
        if origin == "train":
            key, value = settings.origin("train")
            val_size = DEFAULT_VAL_SHARE if settings.val_size is None else settings.val_size
            chosen = choose_documents(
                number,
                train_size=settings.train_size,
                val_size=None if "val" in self.origins else val_size,
                test_size=None if "test" in self.origins else settings.test_size,
                seed=settings.seed,
                origin=f"{key}={as_typed(value)}",
            )
        else:
            # a stream's documents are as many as were asked for
            size = None if settings.streaming else getattr(settings, f"{origin}_size")
            chosen = {origin: choose_held_out(origin, size, number, settings.seed)}
        return {split: numbers if kept is None else kept[numbers] for split, numbers in chosen.items()}

    # -- the tokenizer ---------------------------------------------------------------------------------------------------

    def _trained_tokenizer(self, tasks: list[Task]) -> Any:
        trained, unfinished = self.work / "trained", self.work / "training"
        if not trained.exists():
            tasks = [task for task in tasks if np.any(task.split_N == SPLITS.index("train"))]
            vocab_size, algorithm = self.settings.num_trained_tokens, self.settings.tokenizer_algorithm
            assert vocab_size is not None
            alphabet: Counter[str] = Counter()
            if algorithm == "wordpiece" or vocab_size == "auto":  # else none is needed
                counting = [replace(task, output=self.work / "characters" / task.output.name) for task in tasks]
                self._run("counting characters", count_characters, Work(self.documents), counting)
                for task in counting:
                    alphabet.update(_result(task)["characters"])
            if vocab_size == "auto":
                vocab_size = vocab_size_for(alphabet)
            shutil.rmtree(unfinished, ignore_errors=True)
            _save(train_tokenizer(self._training_texts(tasks), vocab_size, alphabet, algorithm), unfinished)
            unfinished.rename(trained)
        return load_tokenizer(trained)

    def _training_texts(self, tasks: list[Task]) -> Iterator[str]:
        done, total = 0, self._size(tasks)
        for task in tasks:
            self.report("training the tokenizer", done, total)
            wanted = wanted_documents(Work(self.documents), task)
            yield from (text for text, split in wanted if SPLITS[split] == "train")
            done += self._size([task])
        self.report("training the tokenizer", total, total)

    # -- tokenise and join -----------------------------------------------------------------------------------------------

    def _tokenise(self, tasks: list[Task], work: Work, dtype: np.dtype) -> Joined:
        joined = Joined(self.work, tasks, dtype, work.labelled)
        self._run("tokenising", tokenise, work, tasks, joined.num_parts, joined.join_finished)
        joined.join_finished()
        assert joined.num_parts == len(tasks)
        joined.commit()
        for split, found in joined.counts.items():
            origin = self.settings.origin(split if split in self.documents else "train")
            if not found["tokens"]:
                raise ConfigError(*origin, f"all {found['empty']:,} documents of the {split} split are empty", "give text")
            if found["empty"]:
                self.warnings.append(f"{found['empty']:,} {EMPTY} of the {split} split")
            for name, what in NOTICED.items():
                if number := found.pop(name):  # said, and no part of what a hub's documents are known by
                    self.warnings.append(f"in the {split} split {number:,} {what}")
        return joined

    def _run(
        self,
        step: str,
        function: Function,
        work: Work,
        tasks: list[Task],
        num_joined: int = 0,
        after_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs those of the tasks that are neither done nor joined."""
        missing = [task for task in tasks[num_joined:] if task.result() is None]
        done, total = self._size(tasks) - self._size(missing), self._size(tasks)
        self.report(step, done, total)
        for task in self.workers.run(function, work, missing):
            done += self._size([task])
            self.report(step, done, total)
            after_each()

    def _size(self, tasks: Sequence[Task]) -> int:
        return sum(self.documents[task.origin].size(task.shard) for task in tasks)


def delete_scratch(work: Path) -> None:
    """What is of no use once the cache is complete."""
    (work / "plan.json").unlink(missing_ok=True)
    for name in ("count", "characters", "tokens", "training", "trained"):
        shutil.rmtree(work / name, ignore_errors=True)


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

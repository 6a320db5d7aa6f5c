"""The settings of a text source: what they mean, which go together, and what of them the tokens depend on.

They are checked at once; nothing is read. A cache of tokens is found again by a digest of all that its tokens depend on:

    settings ─► request   files' digests, tokenizer's digest, sizes, seed …  ─►  fingerprint   e3b0c44298fc1c149afbf4c8

How rows are cut from the tokens is not among it: another length is free.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.find import choose_txt_documents, digests, find_files, suffixes
from mlm_lightning.data.text.tokenizer.encoder import was_misread
from mlm_lightning.data.text.tokenizer.load import SPECIAL_TOKENS, TRAIN, check_tokenizer, is_path, tokenizer_files
from mlm_lightning.errors import NO_VALUE, ConfigError, as_typed, refuse
from mlm_lightning.packages import missing, need
from mlm_lightning.values import Located, check_fields, expanded

FORMAT = 2
"""Of the cache; a change makes every older cache one that is not found."""

_TRAINERS = {"unigram": "unigram (sentencepiece)"}
"""Algorithms whose trainer has been replaced: tokens of the old one are not those of the new one."""

_STREAM_VAL_SIZE = 1_000
_VOCAB_SIZE = 8_192
_Paths = Annotated[str | Sequence[str], Located()]
_SIZES = "give a number of documents, a share between 0 and 1, or null"


@dataclass(kw_only=True, eq=False)
class TextSettings:
    """Rows of `chunk_size` tokens from documents of files (`path`) or of a `datasets` dataset (`dataset`); one of the two.

    - `path`, `val_path`, `test_path`: files, folders, globs, or a list of them. `dataset`: a hub name or a folder, with
      `dataset_config`, `revision`, and the names of its splits for validation and test, `val_split` and `test_split`.
    - Where nothing is given for validation, `val_size` documents (null: 5 %) are set aside from the training documents, and
      `test_size` documents if that is given: exactly the rows that `datasets`' `train_test_split(seed=seed)` chooses. A
      dataset's documents then come in its shuffled order, too; those of files stay in the order of the files, so that
      neighbours stay neighbours where a document is a line.
    - `txt_documents`: what a document is in a .txt; `auto` is `paragraph` where at least half of the files for training have a
      blank line between text (in their first megabyte), else `file` where there are 20 files or more and none is above 1 MB,
      else `line`.
    - Sizes count documents: null all, a float between 0 and 1 a share, an int a number.
    - `tokenizer`: a hub name, a folder, a bare vocab.txt (uncased WordPiece) or `train`: one of `vocab_size` tokens is trained
      on the training documents (null: 8192; fewer where they have no more to offer), as `tokenizer_algorithm` says: `wordpiece`
      (BERT's), `bpe` (RoBERTa's) or `unigram` (XLM-R's), each with the special tokens of those models.
    - `packing`: `chunk` concatenates documents and cuts, each row `stride` tokens after the one before (null: `chunk_size`);
      `document` has one a row, padded or truncated, or with a `stride` as many windows as hold all of it; `sentence_pack` puts
      whole documents into a row that do not attend to each other. A `stride` is for training: rows of validation and test do
      not overlap.
    - `streaming` reads a dataset while training goes on, again and again, and never has all of it: rows are shuffled in blocks
      of `shuffle_buffer`. The first `val_size` documents (null: 1,000) are set aside, unless there is a `val_split`.
    - `deduplicate` keeps the first of equal documents, those held out coming first.
    - `label_column` has the labels of documents, a document a row, and `class_names` are its values in their order (null: those
      of the documents for training, sorted): `task=classify` gives both.
    """

    tokenizer: Annotated[str, Located(or_name=True, word=TRAIN)] = ""
    path: _Paths | None = None
    val_path: _Paths | None = None
    test_path: _Paths | None = None
    dataset: Annotated[str, Located(or_name=True)] | None = None
    dataset_config: str | None = None
    revision: str | None = None
    streaming: bool = False
    shuffle_buffer: Annotated[int, Ge(1), "it is a number of rows"] = 10_000
    val_split: str | None = None
    test_split: str | None = None
    text_column: str = "text"
    txt_documents: Literal["line", "paragraph", "file", "auto"] = "line"
    vocab_size: Annotated[int, Ge(len(SPECIAL_TOKENS) + 1), "the special tokens are among them"] | Literal["auto"] | None = None
    tokenizer_algorithm: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    chunk_size: Annotated[int, Ge(2), "it is the number of tokens of a row"] = 128
    packing: Literal["chunk", "document", "sentence_pack"] = "chunk"
    stride: Annotated[int, Ge(1), "null is chunk_size"] | None = None
    train_size: Annotated[int, Ge(1), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    val_size: Annotated[int, Ge(0), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    test_size: Annotated[int, Ge(0), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    deduplicate: bool = False
    seed: Annotated[int, Ge(0), "it chooses the documents of each split"] = 0
    cache_dir: Annotated[str, Located(or_name=True)] | None = None
    label_column: str | None = None
    class_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self.tokenizer = os.fspath(self.tokenizer) if isinstance(self.tokenizer, os.PathLike) else self.tokenizer
        check_fields(self, "data")
        broken = [
            ConfigError(f"data.{key}", getattr(self, key, NO_VALUE), problem, remedy)
            for is_broken, key, problem, remedy in self._rules()
            if is_broken
        ]
        refuse([*missing("data=text", *self._packages()), *broken])
        check_tokenizer(self.tokenizer)
        self._check_documents()

    # -- what they say ---------------------------------------------------------------------------------------------------

    @property
    def num_trained_tokens(self) -> int | Literal["auto"] | None:
        """How many tokens a tokenizer that is trained has at most; auto: the documents decide; None where none is trained."""
        return None if self.tokenizer != TRAIN else _VOCAB_SIZE if self.vocab_size is None else self.vocab_size

    @property
    def cache_path(self) -> Path:
        """The folder of all token caches."""
        return shared_cache() if self.cache_dir is None else expanded(self.cache_dir)

    @property
    def num_held_out(self) -> int:
        """Of a stream without a split for validation: the documents that are set aside."""
        return 0 if self.val_split is not None else _STREAM_VAL_SIZE if self.val_size is None else int(self.val_size)

    @cached_property
    def chosen_txt_documents(self) -> str:
        """What a document is in a .txt; where that is `auto`, the files for training decide."""
        return self.txt_documents if self.txt_documents != "auto" else choose_txt_documents(self.files().get("train", []))

    def paths(self, split: Split) -> list[str] | None:
        paths = getattr(self, path_key(split))
        if paths is None:
            return None
        return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]

    def files(self, says: bool = False) -> dict[Split, list[Path]]:
        paths = {split: self.paths(split) for split in SPLITS}
        return {split: find_files(path, f"data.{path_key(split)}", says) for split, path in paths.items() if path is not None}

    def origin(self, split: Split) -> tuple[str, Any]:
        """Where a split's documents come from: the key, and its value."""
        if self.dataset is not None:
            return "data.dataset", self.dataset
        paths = self.paths(split)
        return f"data.{path_key(split)}", paths[0] if paths and len(paths) == 1 else paths

    # -- which go together -----------------------------------------------------------------------------------------------

    def _rules(self) -> Iterator[tuple[bool, str, str, str]]:
        """Of each rule: whether it is broken, the key, what the problem is, and the remedy."""
        what = "a hub name, a folder, a vocab.txt, or train: data.tokenizer=train"
        yield self.tokenizer == "", "tokenizer", "none is given", f"give {what}"
        for key in ("text_column", "dataset", "dataset_config", "revision", "val_split", "test_split"):
            yield getattr(self, key) == "", key, "must not be empty", ""
        for split in SPLITS:
            paths = self.paths(split)
            is_empty = paths is not None and not (paths and all(paths))
            yield is_empty, path_key(split), "must be a file, a folder, a glob, or a list of them", ""
        what = "neither is given" if self.path is None else "both are given"
        remedy = "give one: data.path=FILES or data.dataset=HUB_NAME"
        yield (self.path is None) == (self.dataset is None), "path and data.dataset", what, remedy
        yield from self._only_with("path", self.path is not None, "val_path", "test_path")
        yield from self._only_with("dataset", self.dataset is not None, "dataset_config", "revision", "val_split", "test_split")
        stride, trains = self.stride or 0, self.tokenizer == TRAIN
        yield (
            self.packing == "document" and stride > self.chunk_size,
            "stride",
            "longer than a row would leave gaps in documents",
            f"set it to at most data.chunk_size={self.chunk_size}, or to null, which truncates long documents",
        )
        remedy = "set data.stride=null, or data.packing=chunk"
        yield self.packing == "sentence_pack" and stride > 0, "stride", "packed documents are whole", remedy
        if self.streaming:
            yield from self._rules_of_a_stream()
        if self.label_column is not None:
            remedy = "set data.packing=document, data.stride=null and data.streaming=false"
            is_broken = self.packing != "document" or self.stride is not None or self.streaming
            yield is_broken, "packing", "a label belongs to a document, so that each must be a row", remedy
        size_says_something = self.vocab_size != _VOCAB_SIZE  # an experiment's may be the default
        yield from self._only_with("tokenizer=train", trains, "tokenizer_algorithm", *["vocab_size"] * size_says_something)

    def _packages(self) -> Iterator[str]:
        """The optional packages that these settings need."""
        yield from ("transformers", "tokenizers")
        if self.dataset is not None:
            yield "datasets"
        if self.tokenizer == TRAIN and self.tokenizer_algorithm == "unigram":
            yield "sentencepiece"

    def _only_with(self, other: str, is_set: bool, *keys: str) -> Iterator[tuple[bool, str, str, str]]:
        defaults = {field.name: field.default for field in fields(self)}
        for key in keys:
            is_broken = not is_set and getattr(self, key) != defaults[key]
            yield is_broken, key, f"goes with data.{other} only", f"set data.{key}={as_typed(defaults[key])}"

    def _rules_of_a_stream(self) -> Iterator[tuple[bool, str, str, str]]:
        whole = "a stream is never there as a whole"
        remedy = "set data.streaming=false: files are read in parts"
        yield self.dataset is None, "streaming", "goes with data.dataset only", remedy
        yield (
            self.tokenizer == TRAIN,
            "tokenizer",
            whole,
            "train one on a part first (mlm prepare with data.streaming=false and data.train_size), then set "
            "data.tokenizer to its folder",
        )
        for key, wanted in {"packing": "chunk", "stride": None, "train_size": None, "deduplicate": False}.items():
            problem = f"{whole}, so data.streaming=true goes with data.{key}={as_typed(wanted)} alone"
            yield getattr(self, key) != wanted, key, problem, ""
        for key in ("val_size", "test_size"):
            is_share = isinstance(getattr(self, key), float)
            yield is_share, key, f"{whole}, and has no shares", "give a number of documents"
        is_broken = self.test_size is not None and self.test_split is None
        yield is_broken, "test_size", "a stream needs a data.test_split for that", "set data.test_size=null"

    def _check_documents(self) -> None:
        """That there are some, and no two splits share any."""
        if self.dataset is None:
            files = {split: {file.resolve() for file in found} for split, found in self.files().items()}
            for first, second in combinations(files, 2):
                if shared := files[first] & files[second]:
                    problem = f"{min(shared)} is in data.{path_key(first)} as well"
                    remedy = f"{first} and {second} may not share documents"
                    raise ConfigError(*self.origin(second), problem, remedy)
            for file in set().union(*files.values()):
                if self.label_column is not None and ".txt" in suffixes(file):
                    remedy = "give .jsonl, .csv or .parquet files"
                    raise ConfigError("task.label_column", self.label_column, f"{file} has no columns", remedy)
                if ".parquet" in (ending := suffixes(file)) or ".zst" in ending:
                    need(f"data.path with {''.join(ending)} files", "pyarrow")
            return
        names = ["train", *filter(None, (self.val_split, self.test_split))]
        if len(set(names)) < len(names):
            raise ConfigError(
                "data.val_split",
                self.val_split,
                f"with data.test_split={as_typed(self.test_split)}: train, validation and test may not share documents",
                "name other splits, or set data.val_split=null to set documents aside from train",
            )
        if is_path(self.dataset) and not expanded(self.dataset).exists():
            raise ConfigError("data.dataset", self.dataset, "there is no such folder", "give a folder or a hub name")

    # -- what the tokens depend on ---------------------------------------------------------------------------------------

    def request(self) -> dict[str, Any]:
        """All that the token files depend on. A hub dataset or tokenizer is known by its name and revision alone, so that a
        cached one needs no connection; local files by their bytes."""
        trains = self.tokenizer == TRAIN
        files = [] if trains else tokenizer_files(self.tokenizer)
        tokenizer = list(zip([file.name for file in files], digests(files, self.cache_path, "data.tokenizer"), strict=True))
        is_txt = [suffixes(file)[0] == ".txt" for files in self.files().values() for file in files]
        return {
            "format": FORMAT,
            "documents": self._documents_request(),
            # what says nothing about these files is left out
            "text_column": self.text_column if self.dataset is not None or not all(is_txt) else None,
            "txt_documents": self.chosen_txt_documents if any(is_txt) else None,
            "tokenizer": tokenizer or self.tokenizer,
            "vocab_size": self.num_trained_tokens,
            "tokenizer_algorithm": _TRAINERS.get(self.tokenizer_algorithm, self.tokenizer_algorithm) if trains else None,
            "sizes": [self.train_size, self.val_size, self.test_size],
            "deduplicate": self.deduplicate,
            "streaming": self.streaming,
            "seed": self.seed,
            **({} if self.label_column is None else {"label_column": self.label_column}),
            # what an earlier version would read otherwise: it left that out
            **({"template": "the tokenizer's own"} if not trains and was_misread(self.tokenizer) else {}),
        }

    def _documents_request(self) -> dict[str, Any]:
        if self.dataset is None:
            return {
                split: [
                    digest + "".join(suffixes(file))
                    for file, digest in zip(files, digests(files, self.cache_path, f"data.{path_key(split)}"), strict=True)
                ]
                for split, files in self.files().items()
            }
        folder = expanded(self.dataset)
        content: Any = self.dataset
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
            names = [str(file.relative_to(folder)) for file in files]
            content = list(zip(names, digests(files, self.cache_path, "data.dataset"), strict=True))
        splits = {"val_split": self.val_split, "test_split": self.test_split}
        return {"dataset": content, "config": self.dataset_config, "revision": self.revision, **splits}


def fingerprint_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]


def path_key(split: str) -> str:
    return "path" if split == "train" else f"{split}_path"


def shared_cache() -> Path:
    """Where token caches are unless a config says otherwise."""
    home = os.environ.get("MLM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "mlm_lightning")
    return expanded(home)

"""The settings of a text source: what they mean, which go together, and what the token files depend on.

settings ─► checked at once, nothing is read        data.stride=0: must be an integer of at least 1
         ─► request()   all that decides the token files, by content where it is at hand    ─►  the cache's fingerprint
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from mlm_lightning.data import tokenizer as tokenizers_
from mlm_lightning.data.documents import TXT_DOCUMENTS, find_files, format_of
from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.token_cache import digests
from mlm_lightning.data.tokenizer import TRAIN
from mlm_lightning.data.tokenizer_training import ALGORITHMS

PACKINGS = ("chunk", "document", "sentence_pack")

FORMAT = 2
"""Of the cache; a change makes every older cache one that is not found."""


@dataclass(kw_only=True, eq=False)
class TextSettings:
    """Rows of `chunk_size` tokens from documents of files (`path`) or of a `datasets` dataset (`dataset`); one of the two.

    - `path`, `val_path`, `test_path`: files, folders, globs, or a list of them. `dataset`: a hub name or a folder, with
      `dataset_config`, `revision`, and the names of its splits for validation and test, `val_split` and `test_split`.
    - Where nothing is given for validation, `val_size` documents (null: 5 %) are set aside from the training documents, and
      `test_size` documents if that is given: exactly the rows that `datasets`' `train_test_split(seed=seed)` chooses. A
      dataset's documents then come in its shuffled order, too; those of files stay in the order of the files, so that
      neighbours stay neighbours where a document is a line.
    - Sizes count documents: null all, a float between 0 and 1 a share, an int a number.
    - `tokenizer`: a hub name, a folder, a bare vocab.txt (uncased WordPiece) or `train`: one of `vocab_size` tokens is trained
      on the training documents, as `tokenizer_algorithm` says: `wordpiece` (BERT's), `bpe` (RoBERTa's) or `unigram`
      (XLM-R's), each with the special tokens of those models.
    - `packing`: `chunk` concatenates documents and cuts, each row `stride` tokens after the one before (null: `chunk_size`);
      `document` has one a row, padded or truncated, or with a `stride` as many windows as hold all of it; `sentence_pack` puts
      whole documents into a row that do not attend to each other. A `stride` is for training: rows of validation and test do
      not overlap.
    - `streaming` reads a dataset while training goes on, again and again, and never has all of it: rows are shuffled in blocks
      of `shuffle_buffer`. The first `val_size` documents (null: 1,000) are set aside, unless there is a `val_split`.
    - `deduplicate` keeps the first of equal documents, those held out coming first.
    """

    tokenizer: str
    path: str | Sequence[str] | None = None
    val_path: str | Sequence[str] | None = None
    test_path: str | Sequence[str] | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    val_split: str | None = None
    test_split: str | None = None
    text_column: str = "text"
    txt_documents: str = "line"
    vocab_size: int | None = None
    tokenizer_algorithm: str = "wordpiece"
    chunk_size: int = 128
    packing: str = "chunk"
    stride: int | None = None
    train_size: int | float | None = None
    val_size: int | float | None = None
    test_size: int | float | None = None
    deduplicate: bool = False
    seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            _check_paths(path_key(split), getattr(self, path_key(split)))
        self.tokenizer = os.fspath(self.tokenizer) if isinstance(self.tokenizer, os.PathLike) else self.tokenizer
        self._check()

    # -- what they say ---------------------------------------------------------------------------------------------------

    @property
    def cache_path(self) -> Path:
        """The folder of all token caches."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        if folder := os.environ.get("MLM_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlm_lightning"

    def paths(self, split: Split) -> list[str] | None:
        paths = getattr(self, path_key(split))
        return (
            None
            if paths is None
            else [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        )

    def origin(self, split: Split) -> str:
        """Where a split's documents come from, as the user said it."""
        if self.dataset is not None:
            return f"data.dataset={self.dataset}"
        return f"data.{path_key(split)}={shown(self.paths(split))}"

    # -- which go together -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if (self.path is None) == (self.dataset is None):
            what = "neither is given" if self.path is None else "both are given"
            raise ValueError(f"data.path and data.dataset: {what}; give one: data.path=FILES or data.dataset=HUB_NAME")
        for key in ("dataset", "dataset_config", "revision", "val_split", "test_split"):
            _check_string(key, getattr(self, key), optional=True)
        for key in ("tokenizer", "text_column"):
            _check_string(key, getattr(self, key))
        self._refuse(("val_path", "test_path"), unless="path")
        self._refuse(("dataset_config", "revision", "val_split", "test_split"), unless="dataset")
        if self.txt_documents not in TXT_DOCUMENTS:
            raise ValueError(f"data.txt_documents={self.txt_documents}: must be one of {', '.join(TXT_DOCUMENTS)}")
        _check_int("chunk_size", self.chunk_size, at_least=2)
        self._check_packing()
        self._check_streaming()
        _check_int("seed", self.seed, at_least=0)
        _check_size("train_size", self.train_size, at_least=1)
        _check_size("val_size", self.val_size, at_least=0)
        _check_size("test_size", self.test_size, at_least=0)
        self._check_tokenizer()
        self._check_splits()

    def _refuse(self, keys: Sequence[str], unless: str) -> None:
        for key in keys:
            if getattr(self, key) is not None and getattr(self, unless) is None:
                raise ValueError(f"data.{key}={shown(getattr(self, key))}: goes with data.{unless} only; set data.{key}=null")

    def _check_packing(self) -> None:
        if self.packing not in PACKINGS:
            raise ValueError(f"data.packing={self.packing}: must be one of {', '.join(PACKINGS)}")
        if self.stride is None:
            return
        _check_int("stride", self.stride, at_least=1)
        if self.packing == "document" and self.stride > self.chunk_size:
            raise ValueError(
                f"data.stride={self.stride}: longer than a row would leave gaps in documents; set it to at most "
                f"data.chunk_size={self.chunk_size}, or to null, which truncates long documents"
            )
        if self.packing == "sentence_pack":
            raise ValueError(
                f"data.stride={self.stride}: packed documents are whole; set data.stride=null, or data.packing=chunk"
            )

    def _check_streaming(self) -> None:
        _check_int("shuffle_buffer", self.shuffle_buffer, at_least=1)
        if not self.streaming:
            return
        whole = "a stream is never there as a whole"
        if self.dataset is None:
            raise ValueError(
                "data.streaming=true: goes with data.dataset only; set data.streaming=false: files are read in parts"
            )
        if self.tokenizer == TRAIN:
            raise ValueError(
                f"data.tokenizer=train: {whole}; train one on a part first (mlm prepare with data.streaming=false and "
                "data.train_size), then set data.tokenizer to its folder"
            )
        for key, wanted in {"packing": "chunk", "stride": None, "train_size": None, "deduplicate": False}.items():
            if (value := getattr(self, key)) != wanted:
                raise ValueError(
                    f"data.{key}={shown(value)}: {whole}, so data.streaming=true goes with data.{key}={shown(wanted)} alone"
                )
        for key in ("val_size", "test_size"):
            if isinstance(value := getattr(self, key), float):
                raise ValueError(f"data.{key}={value}: {whole}, and has no shares; give a number of documents")
        if self.test_size is not None and self.test_split is None:
            raise ValueError(
                f"data.test_size={self.test_size}: a stream needs a data.test_split for that; set data.test_size=null"
            )

    def _check_tokenizer(self) -> None:
        tokenizers_.check_tokenizer(self.tokenizer)
        if self.tokenizer == TRAIN and self.vocab_size is None:
            raise ValueError(
                "data.vocab_size=null: data.tokenizer=train needs the number of tokens, such as data.vocab_size=8192"
            )
        if self.tokenizer != TRAIN and self.vocab_size is not None:
            raise ValueError(
                f"data.vocab_size={self.vocab_size}: goes with data.tokenizer=train only; set data.vocab_size=null"
            )
        if self.tokenizer_algorithm not in ALGORITHMS:
            raise ValueError(f"data.tokenizer_algorithm={self.tokenizer_algorithm}: must be one of {', '.join(ALGORITHMS)}")
        if self.tokenizer != TRAIN and self.tokenizer_algorithm != "wordpiece":
            raise ValueError(
                f"data.tokenizer_algorithm={self.tokenizer_algorithm}: goes with data.tokenizer=train only; leave it out"
            )
        if self.vocab_size is not None:
            _check_int("vocab_size", self.vocab_size, at_least=len(tokenizers_.SPECIAL_TOKENS) + 1)

    def _check_splits(self) -> None:
        if self.dataset is not None:
            names = ["train", *filter(None, (self.val_split, self.test_split))]
            if len(set(names)) < len(names):
                raise ValueError(
                    f"data.val_split={self.val_split}, data.test_split={self.test_split}: train, validation and test may not "
                    "share documents; name other splits, or set data.val_split=null to set documents aside from train"
                )
            if tokenizers_.is_path(self.dataset) and not Path(self.dataset).expanduser().exists():
                raise FileNotFoundError(f"data.dataset={self.dataset}: there is no such folder; give a folder or a hub name")
            return
        files = {split: {file.resolve() for file in found} for split, found in self.files().items()}
        for first, second in combinations(SPLITS, 2):
            if shared := files.get(first, set()) & files.get(second, set()):
                key = path_key(second)
                raise ValueError(
                    f"data.{key}={shown(getattr(self, key))}: {min(shared)} is in data.{path_key(first)} as well; "
                    f"{first} and {second} may not share documents"
                )

    def files(self) -> dict[Split, list[Path]]:
        paths = {split: self.paths(split) for split in SPLITS}
        return {split: find_files(path, f"data.{path_key(split)}") for split, path in paths.items() if path is not None}

    # -- what the token files depend on ----------------------------------------------------------------------------------

    def request(self) -> dict[str, Any]:
        """All that the token files depend on. A hub dataset or tokenizer is known by its name and revision alone, so that a
        cached one needs no connection; local files by their bytes."""
        tokenizer_files = tokenizers_.tokenizer_files(self.tokenizer) if self.tokenizer != TRAIN else []
        return {
            "format": FORMAT,
            "documents": self._documents_request(),
            **self._reading_request(),
            "tokenizer": self._named_digests(tokenizer_files, "data.tokenizer") or self.tokenizer,
            "vocab_size": self.vocab_size,
            "tokenizer_algorithm": self.tokenizer_algorithm if self.tokenizer == TRAIN else None,
            "sizes": [self.train_size, self.val_size, self.test_size],
            "deduplicate": self.deduplicate,
            "streaming": self.streaming,
            "seed": self.seed,
        }

    def _reading_request(self) -> dict[str, Any]:
        """How documents are found in files; what says nothing about these files is left out."""
        formats = {format_of(file) for files in self.files().values() for file in files}
        has_txt = any(format_.startswith(".txt") for format_ in formats)
        has_columns = self.dataset is not None or not all(format_.startswith(".txt") for format_ in formats)
        return {
            "text_column": self.text_column if has_columns else None,
            "txt_documents": self.txt_documents if has_txt else None,
        }

    def _documents_request(self) -> dict[str, Any]:
        if self.dataset is None:
            return {
                split: [
                    digest + format_of(file)
                    for file, (_, digest) in zip(files, self._named_digests(files, f"data.{path_key(split)}"), strict=True)
                ]
                for split, files in self.files().items()
            }
        folder = Path(self.dataset).expanduser()
        content: Any = self.dataset
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
            names = [str(file.relative_to(folder)) for file in files]
            content = [
                (name, digest) for name, (_, digest) in zip(names, self._named_digests(files, "data.dataset"), strict=True)
            ]
        splits = {"val_split": self.val_split, "test_split": self.test_split}
        return {"dataset": content, "config": self.dataset_config, "revision": self.revision, **splits}

    def _named_digests(self, files: list[Path], key: str) -> list[tuple[str, str]]:
        """The name and the SHA-256 of each file."""
        return [(file.name, digest) for file, digest in zip(files, digests(files, self.cache_path, key), strict=True)]


def _check_paths(key: str, value: object) -> None:
    paths = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if value is not None and not (paths and all(isinstance(path, str | os.PathLike) and os.fspath(path) for path in paths)):
        raise ValueError(f"data.{key}={value}: must be a file, a folder, a glob, or a list of them")


def path_key(split: str) -> str:
    return "path" if split == "train" else f"{split}_path"


def shown(value: object) -> str:
    """As a config writes it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)


def _check_string(key: str, value: object, optional: bool = False) -> None:
    if not (optional and value is None) and not (isinstance(value, str) and value):
        raise ValueError(f"data.{key}={shown(value)}: must be a non-empty string{' or null' if optional else ''}")


def _check_int(key: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"data.{key}={shown(value)}: must be an integer of at least {at_least}")


def _check_size(key: str, value: object, at_least: int) -> None:
    is_share = isinstance(value, float) and 0 < value < 1
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    if value is not None and not is_share and not is_count:
        raise ValueError(
            f"data.{key}={shown(value)}: must be null (all), a number of documents from {at_least}, or a share between 0 and 1"
        )

"""The settings of a text source: what they mean, and which go together. They are checked at once; nothing is read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from mlm_lightning.data.splits import SPLITS, Split
from mlm_lightning.data.text.documents.find import find_files
from mlm_lightning.data.text.tokenizer.load import SPECIAL_TOKENS, TRAIN, check_tokenizer, is_path
from mlm_lightning.errors import NO_VALUE, ConfigError, as_typed, refuse
from mlm_lightning.values import check_fields

_STREAM_VAL_SIZE = 1_000
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
    shuffle_buffer: Annotated[int, Ge(1), "it is a number of rows"] = 10_000
    val_split: str | None = None
    test_split: str | None = None
    text_column: str = "text"
    txt_documents: Literal["line", "paragraph", "file"] = "line"
    vocab_size: Annotated[int, Ge(len(SPECIAL_TOKENS) + 1), "the special tokens are among them"] | None = None
    tokenizer_algorithm: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    chunk_size: Annotated[int, Ge(2), "it is the number of tokens of a row"] = 128
    packing: Literal["chunk", "document", "sentence_pack"] = "chunk"
    stride: Annotated[int, Ge(1), "null is chunk_size"] | None = None
    train_size: Annotated[int, Ge(1), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    val_size: Annotated[int, Ge(0), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    test_size: Annotated[int, Ge(0), _SIZES] | Annotated[float, Gt(0), Lt(1), _SIZES] | None = None
    deduplicate: bool = False
    seed: Annotated[int, Ge(0), "it chooses the documents of each split"] = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        self.tokenizer = os.fspath(self.tokenizer) if isinstance(self.tokenizer, os.PathLike) else self.tokenizer
        check_fields(self, "data")
        refuse([*self._empty(), *self._impossible_together()])
        check_tokenizer(self.tokenizer)
        self._check_splits()

    # -- what they say ---------------------------------------------------------------------------------------------------

    @property
    def cache_path(self) -> Path:
        """The folder of all token caches."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        if folder := os.environ.get("MLM_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlm_lightning"

    @property
    def num_held_out(self) -> int:
        """Of a stream without a split for validation: the documents that are set aside."""
        return 0 if self.val_split is not None else _STREAM_VAL_SIZE if self.val_size is None else int(self.val_size)

    def paths(self, split: Split) -> list[str] | None:
        paths = getattr(self, path_key(split))
        return (
            None
            if paths is None
            else [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        )

    def origin(self, split: Split) -> tuple[str, Any]:
        """Where a split's documents come from: the key, and its value."""
        if self.dataset is not None:
            return "data.dataset", self.dataset
        paths = self.paths(split)
        return f"data.{path_key(split)}", paths[0] if paths and len(paths) == 1 else paths

    # -- which go together -----------------------------------------------------------------------------------------------

    def _empty(self) -> Iterator[ConfigError]:
        for key in ("tokenizer", "text_column", "dataset", "dataset_config", "revision", "val_split", "test_split"):
            if getattr(self, key) == "":
                yield ConfigError(f"data.{key}", "", "must not be empty")
        for split in SPLITS:
            if (paths := self.paths(split)) is not None and not (paths and all(paths)):
                key = path_key(split)
                yield ConfigError(f"data.{key}", getattr(self, key), "must be a file, a folder, a glob, or a list of them")

    def _impossible_together(self) -> Iterator[ConfigError]:
        if (self.path is None) == (self.dataset is None):
            what = "neither is given" if self.path is None else "both are given"
            yield ConfigError(
                "data.path and data.dataset", NO_VALUE, what, "give one: data.path=FILES or data.dataset=HUB_NAME"
            )
        yield from self._only_with("path", self.path is not None, ("val_path", "test_path"))
        yield from self._only_with(
            "dataset", self.dataset is not None, ("dataset_config", "revision", "val_split", "test_split")
        )
        if self.stride is not None and self.packing == "document" and self.stride > self.chunk_size:
            yield ConfigError(
                "data.stride",
                self.stride,
                "longer than a row would leave gaps in documents",
                f"set it to at most data.chunk_size={self.chunk_size}, or to null, which truncates long documents",
            )
        if self.stride is not None and self.packing == "sentence_pack":
            remedy = "set data.stride=null, or data.packing=chunk"
            yield ConfigError("data.stride", self.stride, "packed documents are whole", remedy)
        if self.streaming:
            yield from self._impossible_for_a_stream()
        yield from self._only_with("tokenizer=train", self.tokenizer == TRAIN, ("vocab_size", "tokenizer_algorithm"))
        if self.tokenizer == TRAIN and self.vocab_size is None:
            problem = "data.tokenizer=train needs the number of tokens"
            yield ConfigError("data.vocab_size", None, problem, "give it, such as data.vocab_size=8192")

    def _only_with(self, other: str, is_set: bool, keys: Sequence[str]) -> Iterator[ConfigError]:
        defaults = {field.name: field.default for field in fields(self)}
        for key in keys:
            if not is_set and (value := getattr(self, key)) != (default := defaults[key]):
                yield ConfigError(f"data.{key}", value, f"goes with data.{other} only", f"set data.{key}={as_typed(default)}")

    def _impossible_for_a_stream(self) -> Iterator[ConfigError]:
        whole = "a stream is never there as a whole"
        if self.dataset is None:
            remedy = "set data.streaming=false: files are read in parts"
            yield ConfigError("data.streaming", True, "goes with data.dataset only", remedy)
        if self.tokenizer == TRAIN:
            yield ConfigError(
                "data.tokenizer",
                TRAIN,
                whole,
                "train one on a part first (mlm prepare with data.streaming=false and data.train_size), then set "
                "data.tokenizer to its folder",
            )
        for key, wanted in {"packing": "chunk", "stride": None, "train_size": None, "deduplicate": False}.items():
            if (value := getattr(self, key)) != wanted:
                problem = f"{whole}, so data.streaming=true goes with data.{key}={as_typed(wanted)} alone"
                yield ConfigError(f"data.{key}", value, problem)
        for key in ("val_size", "test_size"):
            if isinstance(value := getattr(self, key), float):
                yield ConfigError(f"data.{key}", value, f"{whole}, and has no shares", "give a number of documents")
        if self.test_size is not None and self.test_split is None:
            problem = "a stream needs a data.test_split for that"
            yield ConfigError("data.test_size", self.test_size, problem, "set data.test_size=null")

    def _check_splits(self) -> None:
        """That no two splits share documents, and that there are files."""
        if self.dataset is not None:
            names = ["train", *filter(None, (self.val_split, self.test_split))]
            if len(set(names)) < len(names):
                raise ConfigError(
                    "data.val_split",
                    self.val_split,
                    f"with data.test_split={as_typed(self.test_split)}: train, validation and test may not share documents",
                    "name other splits, or set data.val_split=null to set documents aside from train",
                )
            if is_path(self.dataset) and not Path(self.dataset).expanduser().exists():
                raise ConfigError("data.dataset", self.dataset, "there is no such folder", "give a folder or a hub name")
            return
        files = {split: {file.resolve() for file in found} for split, found in self.files().items()}
        for first, second in combinations(SPLITS, 2):
            if shared := files.get(first, set()) & files.get(second, set()):
                problem = f"{min(shared)} is in data.{path_key(first)} as well"
                remedy = f"{first} and {second} may not share documents"
                raise ConfigError(*self.origin(second), problem, remedy)

    def files(self) -> dict[Split, list[Path]]:
        paths = {split: self.paths(split) for split in SPLITS}
        return {split: find_files(path, f"data.{path_key(split)}") for split, path in paths.items() if path is not None}


def path_key(split: str) -> str:
    return "path" if split == "train" else f"{split}_path"

"""Text: documents are tokenised into one long file of tokens, and rows are cut from it.

    documents   "Fellow citizens …"                  "The full cost …"                each has a number; a split is some of them
    tokens      [CLS] fellow citizens … [SEP]        [CLS] the full cost … [SEP]
    one file    [CLS] fellow citizens … [SEP] [CLS] the full cost … [SEP] [CLS] …     memory-mapped, uint16 or uint32
    rows        |─── row 0 ───|─── row 1 ───|─── row 2 ───|── … ──|─ dropped ─|       packing=chunk: chunk_size tokens each

The token file lies in a cache folder (`token_cache`) named after a fingerprint of everything that it depends on: the bytes of
the files, the tokenizer, the choice of documents. How rows are cut from it (`rows`) is not among it: another length is free.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlm_lightning.batch import Vocab
from mlm_lightning.data import token_cache
from mlm_lightning.data import tokenizer as tokenizers_
from mlm_lightning.data.documents import TXT_DOCUMENTS, Documents, FileDocuments, find_files, format_of
from mlm_lightning.data.encoder import Encoder
from mlm_lightning.data.hub import HubDocuments, open_hub
from mlm_lightning.data.preparation import Preparation, Progress, Recipe, choose_documents, delete_scratch
from mlm_lightning.data.rows import ChunkRows, DocumentRows, PackedRows
from mlm_lightning.data.source import SPLITS, Source, Split
from mlm_lightning.data.stream import FirstDocuments, StreamedDocuments, StreamRows
from mlm_lightning.data.token_cache import TokenCache
from mlm_lightning.data.tokenizer import TRAIN, load_tokenizer
from mlm_lightning.data.tokenizer_training import ALGORITHMS
from mlm_lightning.data.workers import Local, Workers
from mlm_lightning.files import UNWRITABLE, write_atomically

__all__ = ["TextSource", "choose_documents", "load_tokenizer"]

log = logging.getLogger(__name__)

CachedRows = ChunkRows | DocumentRows | PackedRows
STREAM_VAL_SIZE = 1_000
PACKINGS = ("chunk", "document", "sentence_pack")

FORMAT = 2
"""Of the cache; a change makes every older cache one that is not found."""


class TextSource(Source):
    """Rows of `chunk_size` tokens from documents of files (`path`) or of a `datasets` dataset (`dataset`); one of the two.

    - `packing`: `chunk` concatenates documents and cuts, each row `stride` tokens after the one before (null: `chunk_size`);
      `document` has one a row, padded or truncated, or with a `stride` as many windows as hold all of it; `sentence_pack` puts
      whole documents into a row that do not attend to each other. A `stride` is for training: rows of validation and test do
      not overlap.
    - `streaming` reads a dataset while training goes on, again and again, and never has all of it: rows are shuffled in blocks
      of `shuffle_buffer`. The first `val_size` documents (null: 1,000) are set aside, unless there is a `val_split`.
    - Equal documents: `deduplicate` keeps the first, those held out coming first.

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
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        path: str | Sequence[str] | None = None,
        val_path: str | Sequence[str] | None = None,
        test_path: str | Sequence[str] | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        revision: str | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        val_split: str | None = None,
        test_split: str | None = None,
        text_column: str = "text",
        txt_documents: str = "line",
        vocab_size: int | None = None,
        tokenizer_algorithm: str = "wordpiece",
        chunk_size: int = 128,
        packing: str = "chunk",
        stride: int | None = None,
        train_size: int | float | None = None,
        val_size: int | float | None = None,
        test_size: int | float | None = None,
        deduplicate: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
    ):
        self.path, self.val_path, self.test_path = (
            _paths("path", path),
            _paths("val_path", val_path),
            _paths("test_path", test_path),
        )
        self.dataset, self.dataset_config, self.revision = dataset, dataset_config, revision
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.val_split, self.test_split = val_split, test_split
        self.text_column = text_column
        self.txt_documents = txt_documents
        self.tokenizer = os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer
        self.vocab_size, self.tokenizer_algorithm = vocab_size, tokenizer_algorithm
        self.chunk_size, self.packing, self.stride = chunk_size, packing, stride
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.deduplicate = deduplicate
        self.seed = seed
        self.cache_dir = _default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._check()
        self._cache: TokenCache | None = None
        self._rows: dict[Split, CachedRows | StreamRows] = {}

    # -- what a source offers --------------------------------------------------------------------------------------------

    @property
    def vocab(self) -> Vocab:
        return self._opened().vocab

    @property
    def seq_len(self) -> int:
        return self.chunk_size

    @property
    def packs_documents(self) -> bool:
        return self.packing == "sentence_pack"

    @property
    def endless(self) -> bool:
        return self.streaming

    def rows(self, split: Split) -> CachedRows | StreamRows:
        cache = self._opened()
        if split not in self._rows:
            if self.streaming and split == "train":
                self._rows[split] = self._stream(cache.folder, cache.dtype)
            elif split in cache.splits:
                self._rows[split] = self._open_rows(cache, split)
            else:
                raise ValueError(self._no_split(split))
        return self._rows[split]

    def _stream(self, folder: Path, dtype: np.dtype) -> StreamRows:
        """The rows for training, with the tokenizer and the index of a cache folder."""
        return StreamRows(
            self._streamed("train"),
            Encoder.from_backend((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"), dtype),
            chunk_size=self.chunk_size,
            shuffle_buffer=self.shuffle_buffer,
            held_out=self._num_held_out if self.val_split is None else 0,
            folder=folder / "stream",
        )

    @property
    def _num_held_out(self) -> int:
        return STREAM_VAL_SIZE if self.val_size is None else int(self.val_size)

    def _open_rows(self, cache: TokenCache, split: Split) -> CachedRows:
        tokens_file, ends_file, pad_id = cache.tokens_file(split), cache.ends_file(split), cache.vocab.pad_id
        stride = self.chunk_size if self.stride is not None and split != "train" else self.stride
        if self.packing == "chunk":
            num_tokens = cache.splits[split]["tokens"]
            if num_tokens < self.chunk_size:
                raise ValueError(self._too_small(split, num_tokens))
            return ChunkRows(tokens_file, cache.dtype, self.chunk_size, stride or self.chunk_size, num_tokens)
        suffix = cache.meta["suffix"]
        if len(suffix) >= self.chunk_size:
            raise ValueError(
                f"data.chunk_size={self.chunk_size}: too few for the {len(suffix)} closing special tokens of a document and "
                "one of its own; raise it"
            )
        if pad_id is None:
            raise ValueError(
                f"data.packing={self.packing}: rows are padded, and the tokenizer has no padding token; set "
                "data.packing=chunk, or choose another tokenizer"
            )
        if self.packing == "document":
            return DocumentRows(tokens_file, ends_file, cache.dtype, self.chunk_size, pad_id, suffix, stride)
        return PackedRows(tokens_file, ends_file, cache.dtype, self.chunk_size, pad_id, suffix)

    def prepare(self, progress: Progress | None = None, workers: Workers | None = None) -> None:
        """Builds the token cache unless it is there, by `workers` (null: one process a core). Shows a progress bar on a
        terminal, or calls `progress`.

        Raises ValueError for documents, sizes or a tokenizer that will not do, with nothing left behind. What was done before
        the disk was full, or a signal came, is kept: another call goes on with it.
        """
        request = self._request()
        folder = self._folder(request)
        try:
            if TokenCache.open(folder) is None:
                with token_cache.building(folder) as work:
                    if TokenCache.open(folder) is None:
                        self._build(request, work, folder, progress, workers or Local())
                    else:  # by the process that this one has waited for
                        work.rmdir()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise ValueError(
                f"data.cache_dir={self.cache_dir}: the token cache cannot be written there ({error.strerror}); make room or "
                "choose another folder"
            ) from error
        cache = self._cache = TokenCache.open(folder)
        assert cache is not None, f"the cache {folder} vanished"
        for split in cache.splits:
            self.rows(cast(Split, split))  # raises where there are too few tokens for one
        if cache.meta["warnings"]:
            log.warning("The text was prepared, but:\n%s", "\n".join(f"  - {warning}" for warning in cache.meta["warnings"]))

    def fingerprint(self) -> str:
        return self._opened().folder.name

    # -- what `mlm prepare` and a run need besides -----------------------------------------------------------------------

    @property
    def warnings(self) -> list[str]:
        """What was wrong with the input but did not stop the preparation, a sentence each."""
        return list(self._opened().meta["warnings"])

    @property
    def cache_folder(self) -> Path:
        return self._opened().folder

    def summary(self) -> list[dict[str, Any]]:
        """A dict a split: split, documents, duplicates (dropped), tokens, tokens_per_document, unknown_share, rows, truncated
        (documents), dropped_tokens (in no row), bytes."""
        cache = self._opened()
        return [
            {
                "split": split,
                "documents": counts["documents"],
                "duplicates": counts["duplicates"],
                "tokens": counts["tokens"],
                "tokens_per_document": counts["tokens"] / counts["documents"],
                "unknown_share": counts["unknown"] / counts["tokens"],
                "rows": len(rows := cast(CachedRows, self.rows(cast(Split, split)))),
                "truncated": getattr(rows, "num_truncated", 0),
                "dropped_tokens": rows.num_cut_tokens,
                "bytes": counts["tokens"] * cache.dtype.itemsize,
            }
            for split, counts in cache.splits.items()
        ]

    def tokenizer_keys(self) -> dict[str, Any]:
        """The keys that give another source the tokens of this one."""
        return {"tokenizer": str(self.cache_folder / "tokenizer"), "vocab_size": None, "tokenizer_algorithm": "wordpiece"}

    def save_tokenizer(self, folder: str | Path) -> None:
        """Writes a folder that `load_tokenizer` and `AutoTokenizer.from_pretrained` open; imports neither's library."""
        cache = self._opened()
        shutil.copytree(cache.folder / "tokenizer", folder, dirs_exist_ok=True)
        if cache.meta["own_tokenizer"]:
            config_file = Path(folder) / "tokenizer_config.json"
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config["model_max_length"] = max(self.chunk_size, tokenizers_.DEFAULT_MAX_LENGTH)
            config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    # -- the config ------------------------------------------------------------------------------------------------------

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
                raise ValueError(f"data.{key}={_shown(getattr(self, key))}: goes with data.{unless} only; set data.{key}=null")

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
                shown = "null" if wanted is None else str(wanted).lower()
                raise ValueError(f"data.{key}={value}: {whole}, so data.streaming=true goes with data.{key}={shown} alone")
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
        files = {split: {file.resolve() for file in found} for split, found in self._files().items()}
        for first, second in combinations(SPLITS, 2):
            if shared := files.get(first, set()) & files.get(second, set()):
                key = _path_key(second)
                raise ValueError(
                    f"data.{key}={_shown(getattr(self, key))}: {min(shared)} is in data.{_path_key(first)} as well; "
                    f"{first} and {second} may not share documents"
                )

    def _files(self) -> dict[Split, list[Path]]:
        paths = {split: getattr(self, _path_key(split)) for split in SPLITS}
        return {split: find_files(path, f"data.{_path_key(split)}") for split, path in paths.items() if path is not None}

    # -- the cache -------------------------------------------------------------------------------------------------------

    def _opened(self) -> TokenCache:
        if self._cache is None:
            self._cache = TokenCache.open(self._folder(self._request()))
        if self._cache is None:
            raise RuntimeError(f"no token cache for this data in {self.cache_dir}: call prepare() first")
        return self._cache

    def _folder(self, request: dict) -> Path:
        return self.cache_dir / hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:24]

    def _request(self) -> dict[str, Any]:
        """All that the token files depend on. A hub dataset or tokenizer is known by its name and revision alone, so that a
        cached one needs no connection; local files by their bytes."""
        tokenizer_files = tokenizers_.tokenizer_files(self.tokenizer) if self.tokenizer != TRAIN else []
        return {
            "format": FORMAT,
            "documents": self._documents_request(),
            "text_column": self.text_column,
            "txt_documents": self.txt_documents,
            "tokenizer": self._named_digests(tokenizer_files, "data.tokenizer") or self.tokenizer,
            "vocab_size": self.vocab_size,
            "tokenizer_algorithm": self.tokenizer_algorithm if self.tokenizer == TRAIN else None,
            "sizes": [self.train_size, self.val_size, self.test_size],
            "deduplicate": self.deduplicate,
            "streaming": self.streaming,
            "seed": self.seed,
        }

    def _documents_request(self) -> dict[str, Any]:
        if self.dataset is None:
            return {
                split: [
                    digest + format_of(file)
                    for file, (_, digest) in zip(files, self._named_digests(files, f"data.{_path_key(split)}"), strict=True)
                ]
                for split, files in self._files().items()
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
        return [
            (file.name, digest) for file, digest in zip(files, token_cache.digests(files, self.cache_dir, key), strict=True)
        ]

    def _file_documents(self) -> dict[Split, Documents]:
        return {
            split: FileDocuments(files, self.text_column, self.txt_documents, f"data.{_path_key(split)}")
            for split, files in self._files().items()
        }

    def _hub_splits(self) -> dict[Split, Any]:
        """What `datasets` has of each split that is named."""
        assert self.dataset is not None
        opened = open_hub(self.dataset, self.dataset_config, self.revision, self.streaming)
        wanted: dict[Split, str | None] = {"train": "train", "val": self.val_split, "test": self.test_split}
        for split, name in wanted.items():
            if name is not None and name not in opened:
                key = f"data.{split}_split={name}" if split != "train" else f"data.dataset={self.dataset}"
                raise ValueError(f"{key}: there is no split {name!r}; the dataset has {', '.join(opened)}")
        return {split: opened[name] for split, name in wanted.items() if name is not None}

    def _hub_documents(self) -> dict[Split, Documents]:
        names = {"train": "train", "val": self.val_split, "test": self.test_split}
        return {
            split: HubDocuments(rows, self.text_column, f"{self.dataset} ({names[split]})")
            for split, rows in self._hub_splits().items()
        }

    def _streamed(self, split: Split) -> StreamedDocuments:
        assert self.dataset is not None
        return StreamedDocuments(self._hub_splits()[split], self.text_column, self.dataset)

    def _first_documents(self) -> dict[Split, Documents]:
        """Of a stream: those that are set aside."""
        documents: dict[Split, Documents] = {}
        if self.val_split is not None:
            documents["val"] = FirstDocuments(self._streamed("val"), self.val_size)  # type: ignore[arg-type]
        elif self._num_held_out:
            documents["val"] = FirstDocuments(self._streamed("train"), self._num_held_out)
        if self.test_split is not None:
            documents["test"] = FirstDocuments(self._streamed("test"), self.test_size)  # type: ignore[arg-type]
        return documents

    def _build(self, request: dict, work: Path, folder: Path, progress: Progress | None, workers: Workers) -> None:
        meta_file = work / "meta.json"
        try:
            if not meta_file.exists():
                with _progress_bar(progress) as report:
                    made = Preparation(self._recipe(), work, workers, report).run()
                if self.streaming:
                    self._stream(work, np.dtype(made["dtype"])).check()
                meta = {"format": FORMAT, "fingerprint": folder.name, "request": request, **made}
                write_atomically(meta_file, json.dumps(meta, indent=1, ensure_ascii=False).encode())
        except (ValueError, FileNotFoundError):  # the same again would fail again
            shutil.rmtree(work)
            raise
        delete_scratch(work)
        token_cache.publish(work, folder)

    def _recipe(self) -> Recipe:
        if self.streaming:
            documents = self._first_documents()
        else:
            documents = self._file_documents() if self.dataset is None else self._hub_documents()
        own = {split: f"data.{_path_key(split)}={_shown(getattr(self, _path_key(split)))}" for split in SPLITS}
        return Recipe(
            documents=documents,
            origins=own if self.dataset is None else dict.fromkeys(SPLITS, self._origin),
            train_size=self.train_size,
            # a stream's documents are those asked for
            val_size=None if self.streaming else self.val_size,
            test_size=None if self.streaming else self.test_size,
            seed=self.seed,
            deduplicate=self.deduplicate,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            tokenizer_algorithm=self.tokenizer_algorithm,
        )

    # -- messages --------------------------------------------------------------------------------------------------------

    @property
    def _origin(self) -> str:
        return f"data.path={_shown(self.path)}" if self.path is not None else f"data.dataset={self.dataset}"

    def _no_split(self, split: Split) -> str:
        given = f"data.{split}_path" if self.dataset is None else f"data.{split}_split"
        size = f"data.{split}_size"
        return f"{given}=null, {size}={getattr(self, f'{split}_size')}: there is no {split} split; give {given} or {size}"

    def _too_small(self, split: Split, num_tokens: int) -> str:
        return (
            f"data.chunk_size={self.chunk_size}: the {split} split has {num_tokens:,} tokens in all, which is less than one "
            f"chunk; give more text, a larger data.{split}_size or a smaller data.chunk_size"
        )


def _default_cache_dir() -> Path:
    if folder := os.environ.get("MLM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlm_lightning"


@contextmanager
def _progress_bar(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda step, done, total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), speed_estimate_period=60) as bar:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:  # what an earlier command did says nothing about the speed
                tasks[step] = bar.add_task(step, total=total, completed=done)
            bar.update(tasks[step], completed=done, total=total)

        yield report


# -- values of the config ----------------------------------------------------------------------------------------------------


def _paths(key: str, value: str | Sequence[str] | None) -> list[str] | None:
    if value is None:
        return None
    paths = [value] if isinstance(value, str | os.PathLike) else list(value)
    if not paths or not all(isinstance(path, str | os.PathLike) and os.fspath(path) for path in paths):
        raise ValueError(f"data.{key}={value}: must be a file, a folder, a glob, or a list of them")
    return [os.fspath(path) for path in paths]


def _path_key(split: str) -> str:
    return "path" if split == "train" else f"{split}_path"


def _shown(value: object) -> str:
    return str(value[0]) if isinstance(value, list) and len(value) == 1 else str(value)


def _check_string(key: str, value: object, optional: bool = False) -> None:
    if not (optional and value is None) and not (isinstance(value, str) and value):
        raise ValueError(f"data.{key}={value}: must be a non-empty string{' or null' if optional else ''}")


def _check_int(key: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"data.{key}={value}: must be an integer of at least {at_least}")


def _check_size(key: str, value: object, at_least: int) -> None:
    is_share = isinstance(value, float) and 0 < value < 1
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    if value is not None and not is_share and not is_count:
        raise ValueError(
            f"data.{key}={value}: must be null (all), a number of documents from {at_least}, or a share between 0 and 1"
        )

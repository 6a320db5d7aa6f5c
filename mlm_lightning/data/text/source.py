"""Text: documents are tokenised into one long file of tokens, and rows are cut from it.

    documents   "Fellow citizens …"                  "The full cost …"                each has a number; a split is some of them
    tokens      [CLS] fellow citizens … [SEP]        [CLS] the full cost … [SEP]
    one file    [CLS] fellow citizens … [SEP] [CLS] the full cost … [SEP] [CLS] …     memory-mapped, uint16 or uint32
    rows        |─── row 0 ───|─── row 1 ───|─── row 2 ───|── … ──|─ dropped ─|       packing=chunk: chunk_size tokens each

The token file lies in a cache folder (prepare/cache.py) named after a fingerprint of everything that it depends on. How rows
are cut from it (rows.py) is not among that: another length is free. From a file to a row:

    documents/files.py ─► tokenizer/encoder.py ─► prepare/shards.py, a part for each shard, then joined ─► rows.py
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data.ngrams import NGramCounts
from mlm_lightning.data.source import Source, Split
from mlm_lightning.data.text.documents.base import Documents
from mlm_lightning.data.text.documents.files import FileDocuments
from mlm_lightning.data.text.documents.hub import HubDocuments, StreamedDocuments, open_hub
from mlm_lightning.data.text.labels import label_names, row_labels
from mlm_lightning.data.text.prepare.cache import CHECKED, TokenCache, building, mended, note_run, publish
from mlm_lightning.data.text.prepare.preparation import Preparation, delete_scratch
from mlm_lightning.data.text.prepare.shards import was_read_otherwise
from mlm_lightning.data.text.prepare.workers import Local
from mlm_lightning.data.text.rows import ChunkRows, DocumentRows, PackedRows
from mlm_lightning.data.text.settings import FORMAT, TextSettings, fingerprint_of, path_key
from mlm_lightning.data.text.stream import StreamRows
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.data.text.tokenizer.load import DEFAULT_MAX_LENGTH, TRAIN, keys_of, open_tokenizer
from mlm_lightning.errors import ConfigError
from mlm_lightning.files import UNWRITABLE, write_atomically
from mlm_lightning.processes import Workers
from mlm_lightning.values import expanded

log = logging.getLogger(__name__)

CachedRows = ChunkRows | DocumentRows | PackedRows


class TextSource(TextSettings, Source):
    """Rows of a text, tokenised into a cache; its settings are those of `TextSettings`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._cache: TokenCache | None = None
        self._rows: dict[Split, CachedRows | StreamRows] = {}
        self._ngrams: dict[Path, NGramCounts] = {}

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
                self._rows[split] = self._stream_rows(cache.folder, cache.dtype)
            elif split in cache.splits:
                self._rows[split] = self._open_rows(cache, split)
            else:
                given = f"data.{split}_path" if self.dataset is None else f"data.{split}_split"
                key, value = f"data.{split}_size", getattr(self, f"{split}_size")
                raise ConfigError(key, value, f"there is no {split} split", f"give {given} or {key}")
        return self._rows[split]

    def _stream_rows(self, folder: Path, dtype: np.dtype) -> StreamRows:
        """The rows for training, with the tokenizer and the index of a cache folder."""
        encoder = Encoder((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"), dtype)
        documents, index = self._streamed("train"), folder / "stream"
        return StreamRows(documents, encoder, self.chunk_size, self.shuffle_buffer, self.num_held_out, index)

    def _open_rows(self, cache: TokenCache, split: Split) -> CachedRows:
        (tokens_file, ends_file), pad_id = cache.files(split), cache.vocab.pad_id
        stride = self.chunk_size if self.stride is not None and split != "train" else self.stride
        if self.packing == "chunk":
            num_tokens = cache.splits[split]["tokens"]
            if num_tokens < self.chunk_size:
                problem = f"the {split} split has {num_tokens:,} tokens in all, which is less than one chunk"
                larger = "" if getattr(self, f"{split}_size") is None else f", a larger data.{split}_size"
                remedy = f"give more text{larger} or a smaller data.chunk_size"
                raise ConfigError("data.chunk_size", self.chunk_size, problem, remedy)
            return ChunkRows(tokens_file, cache.dtype, self.chunk_size, stride or self.chunk_size, num_tokens)
        suffix = cache.meta["suffix"]
        if self.chunk_size <= (special := len(cache.meta["prefix"]) + len(suffix)):
            problem = f"a document begins and ends with special tokens, {special} in all, which leave no room for others"
            raise ConfigError("data.chunk_size", self.chunk_size, problem, f"set data.chunk_size to {special + 1} or more")
        if pad_id is None:
            problem = "rows are padded, and the tokenizer has no padding token"
            raise ConfigError("data.packing", self.packing, problem, "set data.packing=chunk, or choose another tokenizer")
        if self.packing == "document":
            return DocumentRows(tokens_file, ends_file, cache.dtype, self.chunk_size, pad_id, suffix, stride)
        return PackedRows(tokens_file, ends_file, cache.dtype, self.chunk_size, pad_id, suffix)

    def prepare(self, workers: Workers | None = None) -> None:
        """Builds the token cache unless it is there, by `workers` (null: one process a core), with a bar on a terminal.

        Raises ConfigError for documents, sizes or a tokenizer that cannot be used, with nothing left behind. What was done
        before the disk was full, or a signal came, is kept: another call goes on with it.
        """
        if self.tokenizer != TRAIN and TokenCache.open(self.cache_path / self.expected_fingerprint()) is None:
            open_tokenizer(self.tokenizer)  # the request depends on it, perhaps a hub's that is not here yet
        request = self.request()
        folder = self.cache_path / fingerprint_of(request)
        try:
            try:
                self.cache_path.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # where nobody may make one, such as /proc
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
            if self._found(folder) is None:
                with building(folder) as work:
                    if self._found(folder) is None:
                        self._build(request, work, folder, workers or Local())
                    else:  # by the process that this one has waited for
                        work.rmdir()
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            problem = f"the token cache cannot be written there ({error.strerror})"
            raise ConfigError("data.cache_dir", self.cache_path, problem, "make room or choose another folder") from error
        cache = self._cache = self._found(folder)
        assert cache is not None, f"the cache {folder} vanished"
        for split in cache.splits:
            self.rows(cast(Split, split))  # raises where there are too few tokens for one
        if request["txt_documents"]:
            log.info("documents: %ss (data.txt_documents=%s)", request["txt_documents"], self.txt_documents)
        self.files(says=True)
        if warnings := [*cache.meta["warnings"], *(cache.short_documents() if self.packing == "chunk" else ())]:
            log.warning("The text was prepared, but:\n%s", "\n".join(f"  - {warning}" for warning in warnings))

    def fingerprint(self) -> str:
        """The name of its cache folder. A name on the hub, without a revision, may stand for other documents tomorrow: then
        their numbers belong to it."""
        cache = self._opened()
        if self.dataset is None or self.revision is not None or expanded(self.dataset).is_dir():
            return cache.folder.name
        return f"{cache.folder.name}:{fingerprint_of(cache.splits)[:8]}"

    def expected_fingerprint(self) -> str:
        folder = self.cache_path / fingerprint_of(self.request())
        cache = self._found(folder)
        if cache is not None:
            return cache.folder.name
        return (mended(folder) if self._is_mended else folder).name

    def mended_since(self, fingerprints: Collection[str]) -> bool:
        request = self.request()
        request.pop("template", None)
        before = fingerprint_of(request)
        return before in fingerprints and before != self.expected_fingerprint()

    def ngrams(self, fingerprint: str | None = None) -> NGramCounts | None:
        """Of the tokens for training in this source's cache, or in that of another fingerprint; counted once, and kept there.
        None where the cache is gone, and of a stream, which is never there as a whole."""
        own = self.expected_fingerprint() if self._cache is None else self._cache.folder.name
        name, _, content = (own if fingerprint is None else fingerprint.partition("+")[0]).partition(":")
        folder = self.cache_path / name
        if folder not in self._ngrams:
            cache = TokenCache.open(folder)
            if cache is None or "train" not in cache.splits or (content and fingerprint_of(cache.splits)[:8] != content):
                return None
            self._ngrams[folder] = cache.ngrams()
        return self._ngrams[folder]

    def classes(self, label: str, node: int) -> tuple[str, ...]:
        if label != self.label_column:
            problem = "text has no latent variables"
            raise ConfigError("task.label", label, problem, "give the column of its labels: task.label_column=COLUMN")
        return label_names(self._opened(), self.class_names)

    def labels(self, split: Split, label: str, node: int) -> Callable[[Tensor], Tensor]:
        cache = self._opened()
        return row_labels(cache.labels(split), cache.meta["labels"][split], self.classes(label, node)).__getitem__

    # -- what `mlm prepare` and a run need besides -----------------------------------------------------------------------

    @property
    def warnings(self) -> list[str]:
        """What was wrong with the input but did not stop the preparation, a sentence each."""
        return list(self._opened().meta["warnings"])

    @property
    def cache_folder(self) -> Path:
        return self._opened().folder

    def note_run(self, folder: Path) -> None:
        note_run(self.cache_folder, folder)

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
                "truncated": rows.num_truncated,
                "dropped_tokens": rows.num_cut_tokens,
                "bytes": counts["tokens"] * cache.dtype.itemsize,
            }
            for split, counts in cache.splits.items()
        ]

    def chosen(self) -> dict[str, Any]:
        return {"data.vocab_size": self.vocab.size} if self.num_trained_tokens == "auto" else {}

    def tokenizer_keys(self) -> dict[str, Any]:
        return keys_of(self.cache_folder / "tokenizer")

    def save_tokenizer(self, folder: str | Path) -> None:
        """Writes a folder that `load_tokenizer` and `AutoTokenizer.from_pretrained` open; imports neither's library."""
        cache = self._opened()
        shutil.copytree(cache.folder / "tokenizer", folder, dirs_exist_ok=True)
        if cache.meta["own_tokenizer"]:
            config_file = Path(folder) / "tokenizer_config.json"
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config["model_max_length"] = max(self.chunk_size, DEFAULT_MAX_LENGTH)
            config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    # -- its documents and its cache -------------------------------------------------------------------------------------

    def _documents(self) -> dict[Split, Documents]:
        """Those for training, and for validation and test where they have files or splits of their own; of a stream those that
        are set aside."""
        if self.dataset is None:
            column, txt, label = self.text_column, self.chosen_txt_documents, self.label_column
            return {
                split: FileDocuments(files, column, txt, f"data.{path_key(split)}", label)
                for split, files in self.files().items()
            }
        if not self.streaming:
            return {
                split: HubDocuments(rows, self.text_column, f"{self.dataset} ({name})", self.label_column)
                for split, (name, rows) in self._hub_splits.items()
            }
        documents: dict[Split, Documents] = {}
        if self.num_held_out:
            documents["val"] = self._streamed("train", self.num_held_out)
        for split in self._hub_splits:
            if split != "train":
                documents[split] = self._streamed(split, getattr(self, f"{split}_size"))
        return documents

    def _streamed(self, split: Split, count: Any = None) -> StreamedDocuments:
        assert self.dataset is not None
        return StreamedDocuments(self._hub_splits[split][1], self.text_column, self.dataset, count)

    @cached_property
    def _hub_splits(self) -> dict[Split, tuple[str, Any]]:
        """The name of each split that is wanted of a dataset, and what `datasets` has of it. It is opened once."""
        assert self.dataset is not None
        opened = open_hub(self.dataset, self.dataset_config, self.revision, self.streaming)
        names: dict[Split, str | None] = {"train": "train", "val": self.val_split, "test": self.test_split}
        for split, name in names.items():
            if name is not None and name not in opened:
                setting = ("data.dataset", self.dataset) if split == "train" else (f"data.{split}_split", name)
                raise ConfigError(*setting, f"there is no split {name!r}", f"the dataset has {', '.join(opened)}")
        return {split: (name, opened[name]) for split, name in names.items() if name is not None}

    def _opened(self) -> TokenCache:
        if self._cache is None:
            self._cache = self._found(self.cache_path / fingerprint_of(self.request()))
        if self._cache is None:
            raise RuntimeError(f"no token cache for this data in {self.cache_path}: call prepare() first")
        return self._cache

    def _found(self, folder: Path) -> TokenCache | None:
        """The cache of this text, unless an earlier version made it of what it read otherwise."""
        cache = TokenCache.open(mended(folder)) or TokenCache.open(folder)
        if cache is not None and not (cache.folder / CHECKED).exists():
            if self._is_mended:
                return None
            with suppress(OSError):
                (cache.folder / CHECKED).touch()
        return cache

    @cached_property
    def _is_mended(self) -> bool:
        """Whether an earlier version read documents or labels otherwise. Files are read for that, a hub's dataset is not."""
        return self.dataset is None and was_read_otherwise(self._documents().values())

    def _build(self, request: dict, work: Path, folder: Path, workers: Workers) -> None:
        meta_file = work / "meta.json"
        try:
            meta = json.loads(meta_file.read_text(encoding="utf-8")) if meta_file.exists() else {}
            if "mended" not in meta:  # it is not made yet, or an earlier version made it
                made = Preparation(self, self._documents(), work, workers).run()
                if self.streaming:
                    self._stream_rows(work, np.dtype(made["dtype"])).check()
                name = (mended(folder) if made["mended"] else folder).name
                meta = {"format": FORMAT, "fingerprint": name, "request": request, "runs": "noted", **made}
                write_atomically(meta_file, json.dumps(meta, indent=1, ensure_ascii=False).encode())
        except ValueError:  # the same again would fail again
            shutil.rmtree(work)
            raise
        (work / CHECKED).touch()
        delete_scratch(work)
        publish(work, folder.with_name(meta["fingerprint"]))

"""Text: documents are tokenised, concatenated and cut into chunks of equal length; a chunk is a row.

    documents   "Fellow citizens …"                  "The full cost …"                each has a number; a split is some of them
    tokens      [CLS] fellow citizens … [SEP]        [CLS] the full cost … [SEP]
    one file    [CLS] fellow citizens … [SEP] [CLS] the full cost … [SEP] [CLS] …     memory-mapped, uint16 or uint32
    chunks      |─── row 0 ───|─── row 1 ───|─── row 2 ───|── … ──|─ dropped ─|       chunk_size tokens each

Only the one remainder at the very end of a split is dropped. The token files lie in a cache folder named after a fingerprint of
everything that they depend on: the bytes of the files, the tokenizer, the choice of documents. `chunk_size` is not among it, so
another length is free.

    <cache_dir>/<fingerprint>/
      meta.json               counts, warnings, where it came from
      vocab.json  tokenizer/  all that a run needs of the tokenizer; `tokenizer/` opens with AutoTokenizer
      train.tokens  val.tokens  test.tokens            the tokens, nothing else
      train.ends.npy …        where each document ends (exclusive)
"""

import hashlib
import json
import logging
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mlm_lightning.batch import Vocab
from mlm_lightning.data import tokenizer as tokenizers_
from mlm_lightning.data.documents import (
    EMPTY,
    TXT_DOCUMENTS,
    Documents,
    FileDocuments,
    HubDocuments,
    Problems,
    find_files,
    open_hub,
)
from mlm_lightning.data.encoder import Encoder
from mlm_lightning.data.source import SPLITS, Source, Split
from mlm_lightning.data.tokenizer import TRAIN, load_tokenizer
from mlm_lightning.data.tokenizer_training import train_tokenizer
from mlm_lightning.files import UNWRITABLE

__all__ = ["TextSource", "TokenRows", "choose_documents", "load_tokenizer"]

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the cache; a change makes every older cache one that is not found."""

DEFAULT_VAL_SHARE = 0.05


Progress = Callable[[str, int, int], None]
"""Called with (step, documents done, documents in all)."""


class TextSource(Source):
    """Rows of `chunk_size` tokens from documents of files (`path`) or of a `datasets` dataset (`dataset`); one of the two.

    - `path`, `val_path`, `test_path`: files, folders, globs, or a list of them. `dataset`: a hub name or a folder, with
      `dataset_config`, `revision`, and the names of its splits for validation and test, `val_split` and `test_split`.
    - Where nothing is given for validation, `val_size` documents (null: 5 %) are set aside from the training documents, and
      `test_size` documents if that is given: exactly the rows that `datasets`' `train_test_split(seed=seed)` chooses. A
      dataset's documents then come in its shuffled order, too; those of files stay in the order of the files, so that
      neighbours stay neighbours where a document is a line.
    - Sizes count documents: null all, a float between 0 and 1 a share, an int a number.
    - `tokenizer`: a hub name, a folder, a bare vocab.txt (uncased WordPiece) or `train`: one of `vocab_size` tokens is trained
      on the training documents.
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
        val_split: str | None = None,
        test_split: str | None = None,
        text_column: str = "text",
        txt_documents: str = "line",
        vocab_size: int | None = None,
        chunk_size: int = 128,
        train_size: int | float | None = None,
        val_size: int | float | None = None,
        test_size: int | float | None = None,
        seed: int = 0,
        cache_dir: str | None = None,
    ):
        self.path, self.val_path, self.test_path = (
            _paths("path", path),
            _paths("val_path", val_path),
            _paths("test_path", test_path),
        )
        self.dataset, self.dataset_config, self.revision = dataset, dataset_config, revision
        self.val_split, self.test_split = val_split, test_split
        self.text_column = text_column
        self.txt_documents = txt_documents
        self.tokenizer = os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer
        self.vocab_size = vocab_size
        self.chunk_size = chunk_size
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.seed = seed
        self.cache_dir = _default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._check()
        self._cache: _Cache | None = None

    # -- what a source offers --------------------------------------------------------------------------------------------

    @property
    def vocab(self) -> Vocab:
        return self._opened().vocab

    @property
    def seq_len(self) -> int:
        return self.chunk_size

    def rows(self, split: Split) -> "TokenRows":
        cache = self._opened()
        if split not in cache.splits:
            raise ValueError(self._no_split(split))
        num_chunks = cache.splits[split]["tokens"] // self.chunk_size
        if num_chunks == 0:
            raise ValueError(self._too_small(split, cache))
        return TokenRows(cache.folder / f"{split}.tokens", cache.dtype, self.chunk_size, num_chunks)

    def prepare(self, progress: Progress | None = None) -> None:
        """Builds the token cache unless it is there. Shows a progress bar on a terminal, or calls `progress`.

        Raises ValueError for documents, sizes or a tokenizer that will not do, with nothing left behind.
        """
        request = self._request()
        folder = self._folder(request)
        try:
            if _Cache.open(folder) is None:
                with _lock(folder):
                    if _Cache.open(folder) is None:
                        self._build(request, folder, progress)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise ValueError(
                f"data.cache_dir={self.cache_dir}: the token cache cannot be written there ({error.strerror}); make room or "
                "choose another folder"
            ) from error
        cache = self._cache = _Cache.open(folder)
        assert cache is not None, f"the cache {folder} vanished"
        for split in cache.splits:
            if cache.splits[split]["tokens"] < self.chunk_size:
                raise ValueError(self._too_small(cast(Split, split), cache))
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
        """A dict a split: split, documents, tokens, tokens_per_document, unknown_share, chunks, dropped_tokens, bytes."""
        cache = self._opened()
        return [
            {
                "split": split,
                "documents": counts["documents"],
                "tokens": counts["tokens"],
                "tokens_per_document": counts["tokens"] / counts["documents"],
                "unknown_share": counts["unknown"] / counts["tokens"],
                "chunks": counts["tokens"] // self.chunk_size,
                "dropped_tokens": counts["tokens"] % self.chunk_size,
                "bytes": counts["tokens"] * cache.dtype.itemsize,
            }
            for split, counts in cache.splits.items()
        ]

    def tokenizer_keys(self) -> dict[str, Any]:
        """The keys that give another source the tokens of this one."""
        return {"tokenizer": str(self.cache_folder / "tokenizer"), "vocab_size": None}

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
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := files.get(first, set()) & files.get(second, set()):
                key = _path_key(second)
                raise ValueError(
                    f"data.{key}={_shown(getattr(self, key))}: {min(shared)} is in data.{_path_key(first)} as well; "
                    f"{first} and {second} may not share documents"
                )

    def _files(self) -> dict[str, list[Path]]:
        paths = {split: getattr(self, _path_key(split)) for split in SPLITS}
        return {split: find_files(path, f"data.{_path_key(split)}") for split, path in paths.items() if path is not None}

    # -- the cache -------------------------------------------------------------------------------------------------------

    def _opened(self) -> "_Cache":
        if self._cache is None:
            self._cache = _Cache.open(self._folder(self._request()))
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
            "tokenizer": [(file.name, _digest(file)) for file in tokenizer_files] or self.tokenizer,
            "vocab_size": self.vocab_size,
            "sizes": [self.train_size, self.val_size, self.test_size],
            "seed": self.seed,
        }

    def _documents_request(self) -> dict[str, Any]:
        if self.dataset is None:
            return {split: documents.content() for split, documents in self._file_documents().items()}
        folder = Path(self.dataset).expanduser()
        if folder.is_dir():
            files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
            content: Any = [(str(file.relative_to(folder)), _digest(file)) for file in files]
        else:
            content = self.dataset
        splits = {"val_split": self.val_split, "test_split": self.test_split}
        return {"dataset": content, "config": self.dataset_config, "revision": self.revision, **splits}

    def _file_documents(self) -> dict[str, Documents]:
        return {
            split: FileDocuments(files, self.text_column, self.txt_documents, f"data.{_path_key(split)}")
            for split, files in self._files().items()
        }

    def _hub_documents(self) -> dict[str, Documents]:
        assert self.dataset is not None
        opened = open_hub(self.dataset, self.dataset_config, self.revision)
        wanted = {"train": "train", "val": self.val_split, "test": self.test_split}
        for split, name in wanted.items():
            if name is not None and name not in opened:
                key = f"data.{split}_split={name}" if split != "train" else f"data.dataset={self.dataset}"
                raise ValueError(f"{key}: there is no split {name!r}; the dataset has {', '.join(opened)}")
        return {
            split: HubDocuments(opened[name], self.text_column, f"{self.dataset} ({name})")
            for split, name in wanted.items()
            if name
        }

    def _build(self, request: dict, folder: Path, progress: Progress | None) -> None:
        with _temporary_sibling(folder) as temporary, _progress_bar(progress) as report:
            builder = _Builder(self, temporary, report)
            meta = {"format": FORMAT, "fingerprint": folder.name, "request": request, **builder.build()}
            # meta.json comes last: a folder without it is no cache
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
            _publish(temporary, folder)

    # -- messages --------------------------------------------------------------------------------------------------------

    @property
    def _origin(self) -> str:
        return f"data.path={_shown(self.path)}" if self.path is not None else f"data.dataset={self.dataset}"

    def _no_split(self, split: Split) -> str:
        given = f"data.{split}_path" if self.dataset is None else f"data.{split}_split"
        size = f"data.{split}_size"
        return f"{given}=null, {size}={getattr(self, f'{split}_size')}: there is no {split} split; give {given} or {size}"

    def _too_small(self, split: Split, cache: "_Cache") -> str:
        return (
            f"data.chunk_size={self.chunk_size}: the {split} split has {cache.splits[split]['tokens']} tokens in all, which is "
            f"less than one chunk; give more text, a larger data.{split}_size or a smaller data.chunk_size"
        )


class TokenRows:
    """The chunks of a token file. `rows[index_B]` gathers a whole batch, as int64. Opened again where it is unpickled: a
    loader's worker gets the file's name, not its content."""

    def __init__(self, file: Path, dtype: np.dtype, chunk_size: int, num_chunks: int):
        self._arguments = (file, dtype, chunk_size, num_chunks)
        mapped = np.memmap(file, dtype=dtype, mode="r", shape=(num_chunks, chunk_size))
        self._chunks_NL = np.asarray(mapped)  # a plain view: np.memmap's own indexing is slow

    def __len__(self) -> int:
        return len(self._chunks_NL)

    def __getitem__(self, index_B: Tensor) -> Tensor:
        return torch.from_numpy(self._chunks_NL[index_B.numpy()].astype(np.int64))

    def __reduce__(self) -> tuple:
        return TokenRows, self._arguments


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
    num_val = _count(val_size, num_documents, math.ceil) or 0
    num_test = _count(test_size, num_documents, math.ceil) or 0
    num_train = _count(train_size, num_documents, math.floor)
    asked = num_val + num_test + max(num_train or 0, 1)
    if asked > num_documents or num_train == 0:
        sizes = f"data.train_size={train_size}, data.val_size={val_size}, data.test_size={test_size}"
        raise ValueError(
            f"{sizes}: together at least {max(asked, 1):,} document(s) with one for training at the least, but {origin} has "
            f"{num_documents:,}; lower the sizes (0 sets none aside, a float is a share) or give more documents"
        )
    if num_train is None:
        num_train = num_documents - num_val - num_test
    if num_train == num_documents:
        return {"train": np.arange(num_documents)}
    permutation = np.random.default_rng(seed).permutation(num_documents)
    val, test, train, _ = np.split(permutation, np.cumsum([num_val, num_test, num_train]))
    chosen: dict[Split, np.ndarray] = {"train": train, "val": val, "test": test}
    return {split: numbers for split, numbers in chosen.items() if len(numbers)}


class _Builder:
    """Writes a cache's files into a folder."""

    def __init__(self, source: TextSource, folder: Path, report: Progress):
        self.source = source
        self.folder = folder
        self.report = report
        self.warnings: list[str] = []
        self.documents = source._file_documents() if source.dataset is None else source._hub_documents()

    def build(self) -> dict[str, Any]:
        """Writes the files; what meta.json says of them."""
        source = self.source
        numbers = self._choose()
        tokenizer = (
            self._train_tokenizer(numbers["train"])
            if source.tokenizer == TRAIN
            else tokenizers_.open_tokenizer(source.tokenizer)
        )
        own = source.tokenizer == TRAIN or tokenizers_.vocabulary_file(source.tokenizer) is not None
        tokenizer.save_pretrained(self.folder / "tokenizer")
        vocab = tokenizers_.read_vocab(tokenizer)
        tokenizers_.save_vocab(vocab, self.folder / "vocab.json")
        if own and (cased := tokenizers_.cased_tokens(vocab)):
            self.warnings.append(
                f"data.tokenizer={source.tokenizer}: {cased:,} tokens of the vocabulary have capital letters, but a "
                "bare vocab.txt is read as uncased; give the folder of a cased tokenizer instead"
            )
        dtype = np.dtype(np.uint16 if vocab.size <= 1 << 16 else np.uint32)
        splits = self._write_splits(numbers, Encoder(tokenizer, dtype), tokenizer.unk_token_id)
        return {
            "content": {split: documents.content() for split, documents in self.documents.items()},
            "dtype": dtype.name,
            "own_tokenizer": own,
            "splits": splits,
            "warnings": self.warnings,
        }

    def _choose(self) -> dict[Split, np.ndarray]:
        """The numbers of each split's documents in its origin: a path or a hub split of its own, else those of train."""
        source, counts = self.source, self._count()
        sizes = {"val_size": source.val_size, "test_size": source.test_size}
        if source.val_size is None:
            sizes["val_size"] = DEFAULT_VAL_SHARE
        aside = {key: None if key.removesuffix("_size") in counts else size for key, size in sizes.items()}
        chosen = choose_documents(
            counts["train"], train_size=source.train_size, seed=source.seed, origin=source._origin, **aside
        )
        for split in ("val", "test"):
            if split in counts:
                chosen[split] = self._choose_own(split, counts[split])
        return {split: chosen[split] for split in SPLITS if split in chosen and len(chosen[split])}

    def _choose_own(self, split: Split, num_documents: int) -> np.ndarray:
        size = getattr(self.source, f"{split}_size")
        num = _count(size, num_documents, math.ceil)
        if num is None or num == num_documents:
            return np.arange(num_documents)
        if num > num_documents:
            raise ValueError(
                f"data.{split}_size={size}: more than the {num_documents:,} documents that there are; lower it (null: all)"
            )
        return np.random.default_rng(self.source.seed).permutation(num_documents)[:num]

    def _count(self) -> dict[str, int]:
        counts = {}
        for split, documents in self.documents.items():
            problems = Problems()
            self.report(f"reading {split}", 0, 0)
            counts[split] = documents.count(problems)
            messages = problems.messages()
            if counts[split] == 0:
                found = "; ".join(messages) or "it is empty"
                key = self.source._origin if split == "train" or self.source.dataset else f"data.{_path_key(split)}"
                raise ValueError(f"{key}: there is no document for {split} ({found}); give text, or check data.text_column")
            self.warnings += messages
        return counts

    def _train_tokenizer(self, numbers: np.ndarray) -> Any:
        documents, source = self.documents["train"], self.source
        alphabet: Counter[str] = Counter()
        for text in self._reported("counting characters", documents.texts(numbers), len(numbers)):
            alphabet.update(text)
        texts = self._reported("training the tokenizer", documents.texts(numbers), len(numbers))
        assert source.vocab_size is not None
        return train_tokenizer(texts, source.vocab_size, alphabet)

    def _write_splits(
        self, numbers: dict[Split, np.ndarray], encoder: Encoder, unk_id: int | None
    ) -> dict[str, dict[str, int]]:
        """The token files and the splits' counts. Training comes last, to be compared with what was held out from it."""
        held_out: set[int] = set()
        shared: set[int] = set()
        splits: dict[str, dict[str, int]] = {}
        for split in sorted(numbers, key=("val", "test", "train").index):
            # a dataset's numbers are those of its split's own rows, where it has one
            documents = self.documents.get(split, self.documents["train"])
            texts = self._reported(f"tokenising {split}", documents.texts(numbers[split]), len(numbers[split]))
            watched = _watch(texts, held_out, shared, is_train=split == "train")
            splits[split] = self._write_split(split, watched, encoder, unk_id)
        if shared:
            self.warnings.append(
                f"{len(shared):,} different document(s) of validation or test occur, word for word, among those for training"
            )
        return {split: splits[split] for split in SPLITS if split in splits}

    def _write_split(self, split: Split, texts: Iterable[str], encoder: Encoder, unk_id: int | None) -> dict[str, int]:
        num_empty = 0

        def filled() -> Iterator[str]:
            nonlocal num_empty
            for text in texts:
                if text and not text.isspace():
                    yield text
                else:
                    num_empty += 1

        num_tokens = num_unknown = 0
        ends: list[np.ndarray] = []
        with (self.folder / f"{split}.tokens").open("wb") as file:
            for encoded in encoder.encode(filled()):
                file.write(encoded.tokens.data)
                ends.append(encoded.ends + num_tokens)
                num_tokens += len(encoded.tokens)
                num_unknown += int(np.count_nonzero(encoded.tokens == unk_id)) if unk_id is not None else 0
        if not num_tokens:
            raise ValueError(f"{self.source._origin}: all {num_empty:,} documents of the {split} split are empty; give text")
        if num_empty:
            self.warnings.append(f"{num_empty:,} {EMPTY} of the {split} split")
        ends_N = np.concatenate(ends)
        np.save(self.folder / f"{split}.ends.npy", ends_N)
        return {"documents": len(ends_N), "tokens": num_tokens, "unknown": num_unknown, "empty": num_empty}

    def _reported(self, step: str, texts: Iterable[str], total: int) -> Iterator[str]:
        for done, text in enumerate(texts):
            if done % 256 == 0:
                self.report(step, done, total)
            yield text
        self.report(step, total, total)


def _watch(texts: Iterable[str], held_out: set[int], shared: set[int], is_train: bool) -> Iterator[str]:
    """Passes documents on and notes which of those held out occur in training, by a 64-bit hash."""
    for text in texts:
        if not is_train:
            held_out.add(hash(text))
        elif hash(text) in held_out and text:
            shared.add(hash(text))
        yield text


@dataclass(frozen=True)
class _Cache:
    """A complete cache folder."""

    folder: Path
    meta: dict[str, Any]
    vocab: Vocab

    @staticmethod
    def open(folder: Path) -> "_Cache | None":
        """None where it is missing, or damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            cache = _Cache(folder, meta, tokenizers_.load_vocab(folder / "vocab.json"))
            sizes = {split: (folder / f"{split}.tokens").stat().st_size // cache.dtype.itemsize for split in cache.splits}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cache if sizes == {split: counts["tokens"] for split, counts in cache.splits.items()} else None

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.meta["dtype"])

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        return self.meta["splits"]


# -- files that are never half there -----------------------------------------------------------------------------------------


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time builds a cache; on a file system without locks several may, and the first to rename wins."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        try:
            lock.acquire(timeout=2)
        except Timeout:
            log.info("Another process is preparing the same data; waiting for it (%s)", lock.lock_file)
            lock.acquire()
        for left_behind in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release(force=True)


@contextmanager
def _temporary_sibling(folder: Path) -> Iterator[Path]:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Renames a finished folder into place. What lies there already is another process' finished work, or damaged."""
    temporary.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone; a cache may be shared
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    if folder.exists() and _Cache.open(folder) is None:
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if _Cache.open(folder) is None:
            raise
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total or None)
            bar.update(tasks[step], completed=done, total=total or None)

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


def _count(size: int | float | None, num_documents: int, rounded: Callable[[float], int]) -> int | None:
    return rounded(size * num_documents) if isinstance(size, float) else size

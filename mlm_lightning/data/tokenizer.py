"""Tokenizers: where they come from, what they say about their tokens, and how they encode quickly.

    hub name, folder ┐
    vocab.txt        ├─►  a tokenizer folder  ─►  Encoder:  documents ─► ids        [CLS] fellow citizens [SEP] [CLS] …
    train            ┘                        ─►  Vocab:    special ids, "##" …

A WordPiece tokenizer of BERT's kind treats every word on its own, so words are encoded once and looked up from then on: several
times the speed of encoding the text, with the same ids. All others encode the text itself, long documents in pieces.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlm_lightning.batch import Vocab

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEFAULT_MAX_LENGTH = 512
TRAIN = "train"

_ALPHABET_SIZE = 1000  # of a trained tokenizer; as in tokenizers' BertWordPieceTokenizer
_BATCH_CHARS = 1_000_000
_PIECE_CHARS = 50_000
_CACHED_CHARS = 4_000_000
_RUN_CHARS = 10_000  # far beyond the 100 from which on BERT's WordPiece calls a word [UNK]
_SIGNS = ",.;/+、。，"  # always tokens of their own for BERT


# -- where a tokenizer comes from ------------------------------------------------------------------------------------------


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub name has one slash at most (`owner/name`), not at the start."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def check_tokenizer(tokenizer: str) -> None:
    """Raises where the value of `data.tokenizer` cannot be a hub name, is a path and leads nowhere; reads nothing."""
    path = Path(tokenizer).expanduser()
    if tokenizer == TRAIN or path.exists():
        return
    if is_path(tokenizer) or path.suffix in (".txt", ".json"):
        raise FileNotFoundError(
            f"data.tokenizer={tokenizer}: there is no such file or folder; give a hub name, a tokenizer's folder, a vocab.txt, "
            "or 'train' with data.vocab_size"
        )


def vocabulary_file(tokenizer: str) -> Path | None:
    """The bare vocab.txt that the value of `data.tokenizer` names, itself or as the only thing in a folder; else None."""
    path = Path(tokenizer).expanduser()
    if path.is_file():
        return path
    alone = path.is_dir() and not any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    return path / "vocab.txt" if alone and (path / "vocab.txt").is_file() else None


def tokenizer_files(tokenizer: str) -> list[Path]:
    """The local files that decide what the tokenizer does; none for a hub name."""
    file, folder = vocabulary_file(tokenizer), Path(tokenizer).expanduser()
    if file is not None:
        return [file]
    return sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt", ".model")) if folder.is_dir() else []


def open_tokenizer(tokenizer: str) -> Any:
    """The `transformers` tokenizer of a hub name, a folder or a vocab.txt; ValueError where there is none that will do."""
    file = vocabulary_file(tokenizer)
    opened = _open_vocabulary(file) if file is not None else load_tokenizer(tokenizer)
    if getattr(opened, "backend_tokenizer", None) is None:
        raise ValueError(f"data.tokenizer={tokenizer}: it has no fast implementation (`tokenizers`), which is needed here")
    if opened.mask_token_id is None:
        raise ValueError(
            f"data.tokenizer={tokenizer}: it has no mask token; choose the tokenizer of a masked language model (such as "
            "distilbert/distilbert-base-uncased), or data.tokenizer=train with data.vocab_size"
        )
    return opened


def load_tokenizer(folder: str | Path) -> Any:
    """Opens a tokenizer's folder (as `TextSource.save_tokenizer` writes it) or hub name; never runs code from it."""
    from transformers import AutoTokenizer

    path = Path(folder).expanduser()
    try:
        return AutoTokenizer.from_pretrained(str(path) if path.exists() else str(folder), trust_remote_code=False)
    except Exception as error:  # the hub's errors and those of broken files have no common ancestor
        raise ValueError(
            f"data.tokenizer={folder}: cannot be opened ({type(error).__name__}: {_first_line(error)}); give a hub "
            "name, a tokenizer's folder, a vocab.txt, or 'train' with data.vocab_size"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _open_vocabulary(file: Path) -> Any:
    try:
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.tokenizer={file}: is not UTF-8 text; a vocab.txt has one token a line") from error
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            f"data.tokenizer={file}: the vocabulary lacks {', '.join(missing)}; a vocab.txt has one token a line, among them "
            f"{' '.join(SPECIAL_TOKENS)}"
        )
    return _bert_tokenizer(vocabulary)


def _bert_tokenizer(vocabulary: dict[str, int]) -> Any:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    # `vocab_file=` would be ignored without a word
    return BertTokenizerFast(vocab=vocabulary, model_max_length=DEFAULT_MAX_LENGTH)


def cased_tokens(vocab: Vocab) -> int:
    """How many regular tokens have capital letters, which an uncased tokenizer can never produce."""
    bracketed = re.compile(r"\[.*\]|<.*>")
    return sum(token != token.lower() and not bracketed.fullmatch(token) for token in vocab.tokens or ())


# -- training one ----------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int, alphabet: Counter[str]) -> Any:
    """A WordPiece tokenizer (uncased, as BERT's) of at most `vocab_size` tokens; `alphabet` counts the texts' characters.

    The same texts give the same tokenizer. The library alone would number the characters ("##a") in the order of a hash table
    that differs from process to process, and break ties by that number; handing them over as given tokens settles it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, continuing = _normalized_alphabet(alphabet, wordpiece)
    given = [*SPECIAL_TOKENS, *first, *("##" + character for character in continuing)]
    if len(given) > vocab_size:
        raise ValueError(
            f"data.vocab_size={vocab_size}: too small; the special tokens and the characters of the training documents alone "
            f"are {len(given)}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=given,
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    wordpiece.train_from_iterator(chain.from_iterable(map(_cut_for_wordpiece, texts)), trainer)
    vocabulary = sorted(wordpiece.get_vocab().items(), key=lambda item: item[1])
    return _bert_tokenizer(dict(vocabulary))


def _normalized_alphabet(alphabet: Counter[str], tokenizer: Any) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, and those of them that can stand inside a word; sorted."""
    counts: Counter[str] = Counter()
    continuing: set[str] = set()
    for character, count in alphabet.items():
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + character)):
            counts.update(dict.fromkeys(piece, count))
            continuing.update(piece[1:])
    kept = sorted(counts, key=lambda character: (-counts[character], character))[:_ALPHABET_SIZE]
    return sorted(kept), sorted(continuing.intersection(kept))


# -- what a tokenizer says about its tokens ---------------------------------------------------------------------------------


def read_vocab(tokenizer: Any) -> Vocab:
    """The vocabulary of a `transformers` tokenizer."""
    ids = tokenizer.get_vocab()
    size = max(ids.values()) + 1
    tokens = [f"<unnamed {number}>" for number in range(size)]
    for token, number in ids.items():
        tokens[number] = token
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special_ids = added.union(tokenizer.all_special_ids)
    return Vocab(
        size=size,
        mask_id=tokenizer.mask_token_id,
        special_ids=tuple(special_ids),
        pad_id=tokenizer.pad_token_id,
        tokens=tuple(tokens),
        continues_word=_continues_word(tokens, special_ids, json.loads(tokenizer.backend_tokenizer.to_str())),
    )


def save_vocab(vocab: Vocab, file: Path) -> None:
    file.write_text(json.dumps({field.name: getattr(vocab, field.name) for field in fields(vocab)}), encoding="utf-8")


def load_vocab(file: Path) -> Vocab:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    values.update({name: tuple(value) for name, value in values.items() if isinstance(value, list)})
    return Vocab(**values)


def _continues_word(tokens: Sequence[str], special_ids: set[int], backend: dict) -> tuple[bool, ...] | None:
    """None where a token does not tell: word-level models, and those that mark a word's end instead of its start."""
    if prefix := backend["model"].get("continuing_subword_prefix"):
        continues = [token.startswith(prefix) for token in tokens]
    elif start := _word_start(backend):
        continues = [not token.startswith(start) for token in tokens]
    else:
        return None
    return tuple(continued and number not in special_ids for number, continued in enumerate(continues))


def _word_start(backend: dict) -> str | None:
    """The character that a tokenizer writes before a word: Ġ for byte-level BPE, ▁ for sentencepiece."""
    if backend["model"].get("end_of_word_suffix"):
        return None
    for part in ("pre_tokenizer", "decoder"):
        text = json.dumps(backend[part])
        if '"ByteLevel"' in text:
            return "Ġ"
        if '"Metaspace"' in text:
            return "▁"
    return None


# -- encoding --------------------------------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """The tokens of some documents, one after the other, and where in them a document ends (a long one may still go on)."""

    tokens: np.ndarray
    ends: np.ndarray


class Encoder:
    """Encodes documents, each with its special tokens, of any length, in bounded memory."""

    def __init__(self, tokenizer: Any, dtype: np.dtype):
        from tokenizers import Tokenizer

        # said aloud, it spares every later fork (a loader's workers) a warning; no child of ours tokenizes
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._dtype = dtype
        self.prefix, self.suffix = self._special_tokens()
        self._words: dict[str, Sequence[int]] | None = {} if _is_word_by_word(self._backend) else None
        self._cached_chars = 0
        added = "".join(token.content for token in self._backend.get_added_tokens_decoder().values())
        self._signs = "".join(sign for sign in _SIGNS if sign not in added)

    def encode(self, documents: Iterable[str]) -> Iterator[Encoded]:
        """All documents' tokens, in batches of bounded size."""
        batch: list[tuple[str, bool, bool]] = []
        chars = 0
        for document in documents:
            for piece in self._pieces(document):
                batch.append(piece)
                chars += len(piece[0]) + 100  # many short documents are a large batch too
                if chars >= _BATCH_CHARS:
                    yield self._encode_batch(batch)
                    batch, chars = [], 0
        if batch:
            yield self._encode_batch(batch)

    def _encode_batch(self, batch: list[tuple[str, bool, bool]]) -> Encoded:
        tokens: list[int] = []
        ends: list[int] = []
        texts = [text for text, _, _ in batch]
        encoded = self._encode_texts(texts) if self._words is None else self._encode_words(texts, self._words)
        for (_, is_first, is_last), ids in zip(batch, encoded, strict=True):
            if is_first:
                tokens += self.prefix
            tokens += ids
            if is_last:
                tokens += self.suffix
                ends.append(len(tokens))
        return Encoded(np.array(tokens, dtype=self._dtype), np.array(ends, dtype=np.int64))

    def _encode_texts(self, texts: list[str]) -> Iterator[list[int]]:
        return (encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False))

    def _encode_words(self, texts: list[str], cache: dict[str, Sequence[int]]) -> Iterator[Iterable[int]]:
        """Looks words up. A word is what stands between spaces, newlines and tabs, which the tokenizer takes for spaces; other
        white space stays within a "word", for the tokenizer to decide."""
        if self._cached_chars > _CACHED_CHARS:
            cache.clear()
            self._cached_chars = 0
        words_of = [text.replace("\n", " ").replace("\t", " ").split(" ") for text in texts]
        new = sorted(set(chain.from_iterable(words_of)).difference(cache))
        cache.update(zip(new, map(tuple, self._encode_texts(new)), strict=True))
        self._cached_chars += sum(map(len, new)) + 10 * len(new)
        return (chain.from_iterable(map(cache.__getitem__, words)) for words in words_of)

    def _pieces(self, document: str) -> Iterator[tuple[str, bool, bool]]:
        """(text, is the document's first, is its last)."""
        if len(document) <= _PIECE_CHARS:
            yield document, True, True
            return
        cut = _cut_for_wordpiece(document, self._signs) if self._words is not None else self._cut_safely(document)
        piece, is_first = next(cut), True
        for following in cut:
            yield piece, is_first, False
            piece, is_first = following, False
        yield piece, is_first, True

    def _cut_safely(self, document: str) -> Iterator[str]:
        """Cuts before white space (else before a sign that is no letter) where a trial shows that the tokens around the cut
        are the same with it as without; where there is no such place a piece grows until there is one."""
        start = 0
        while len(document) - start > _PIECE_CHARS:
            place = self._safe_place(document, start + _PIECE_CHARS)
            if place is None:
                break
            yield document[start:place]
            start = place
        yield document[start:]

    def _safe_place(self, document: str, start: int) -> int | None:
        for pattern in (r"(?<=\S)\s(?=\S)", r"(?<=\w)[^\w\s](?=\w)"):
            # a document without a safe place is rare; looking for it in all of it would cost a trial a candidate
            for tried, match in enumerate(re.compile(pattern).finditer(document, start)):
                if self._is_safe(document, match.start()):
                    return match.start()
                if tried == 100:
                    break
        return None

    def _is_safe(self, document: str, place: int) -> bool:
        left, right = document[max(place - 100, 0) : place], document[place : place + 100]
        whole, *halves = self._encode_texts([left + right, left, right])
        return whole == halves[0] + halves[1]

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text: [CLS] and [SEP]."""
        bare, framed = (self._backend.encode("a", add_special_tokens=special).ids for special in (False, True))
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        raise AssertionError("the tokenizer changes a text's tokens when it adds special ones")


def _is_word_by_word(backend: Any) -> bool:
    """Whether the ids of a text are those of its words, one after the other: BERT's WordPiece."""
    parts = json.loads(backend.to_str())
    return (
        parts["model"]["type"] == "WordPiece"
        and (parts["normalizer"] or {"type": "BertNormalizer"})["type"] == "BertNormalizer"
        and (parts["pre_tokenizer"] or {"type": None})["type"] == "BertPreTokenizer"
        and parts["model"]["max_input_chars_per_word"] < _RUN_CHARS
        and not any(re.search(r"\s", token["content"]) for token in parts["added_tokens"])
    )


def _cut_for_wordpiece(text: str, signs: str = _SIGNS) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters whose tokens are those of the text: they end before a space, newline or tab.

    Where there is none for long (base64, Chinese), they end before a sign that is always a token of its own; and a run of
    thousands of letters, which is [UNK], stays [UNK] when its end is left out.
    """
    for piece in _cut_before(r"[ \n\t]", text):
        if len(piece) <= 2 * _PIECE_CHARS:
            yield piece
        else:
            shorter = re.sub(f"([A-Za-z0-9]{{{_RUN_CHARS}}})[A-Za-z0-9]+", r"\1", piece)
            yield from _cut_before(f"[{re.escape(signs)}]", shorter) if signs else (shorter,)


def _cut_before(pattern: str, text: str) -> Iterator[str]:
    compiled = re.compile(pattern)
    start = 0
    while len(text) - start > _PIECE_CHARS:
        match = compiled.search(text, start + _PIECE_CHARS)
        if match is None:
            break
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]

"""Documents become ids: in batches of bounded size, long documents in pieces that are cut where that changes no token.

    documents   "Fellow citizens"   "The full cost …"
    tokens      [CLS] fellow citizens [SEP] [CLS] the full cost … [SEP]        one array, and where in it documents end

Texts are encoded word by word where that is exact (words.py), else by the tokenizer as they are. Needs `tokenizers` and numpy
alone, so that a worker process starts at once.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlm_lightning.data.text.tokenizer.words import RUN_CHARS, Words, kind_of
from mlm_lightning.values import expanded

_BATCH_CHARS = 1_000_000
_PIECE_CHARS = 50_000
_UNKNOWN = "\U0010ffff"
_SIGNS = ",.;/+、。，"  # always tokens of their own for BERT


class Encoded(NamedTuple):
    """The tokens of some documents, one after the other, and where in them a document ends (a long one may still go on)."""

    tokens: np.ndarray
    ends: np.ndarray


class Encoder:
    """Encodes documents, each with its special tokens, of any length, in bounded memory.

    `tokenizer` is one of `transformers` (fast), or the text of a `tokenizer.json`. `prefix` and `suffix` are the ids that it
    puts before and after a text, such as [CLS] and [SEP].
    """

    def __init__(self, tokenizer: Any, dtype: np.dtype):
        from tokenizers import Tokenizer

        # where it is set, later forks (a loader's workers) print no warning; no child of ours tokenizes
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._backend = Tokenizer.from_str(tokenizer if isinstance(tokenizer, str) else tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._dtype = np.dtype(dtype)
        self.prefix, self.suffix = template_of(self._backend)
        kind = kind_of(self._backend)
        self._words = None if kind is None else Words(kind, self._backend, self._dtype)
        tokens = self._backend.get_added_tokens_decoder().values()
        added = "".join(token.content for token in tokens)
        self._signs = "".join(sign for sign in _SIGNS if sign not in added)
        special = (re.escape(token.content) for token in tokens if token.special)
        self.find_special = re.compile("|".join(special) or "(?!)").search
        self._drops = self._words is None and getattr(self._backend.model, "unk_token", "") is None

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker goes the tokenizer, not the words that were looked up so far."""
        return Encoder, (self._backend.to_str(), self._dtype)

    def num_dropped(self, text: str) -> int:
        """How many characters have no token; all have one, or are an error, where there is a token for what is unknown."""
        return sum(map(self._is_dropped, text)) if self._drops else 0

    @cache  # noqa: B019  (for the characters of a text)
    def _is_dropped(self, character: str) -> bool:
        alone, unknown = self._encode_texts([character, _UNKNOWN])
        return alone == unknown and not character.isspace()

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
        prefix, suffix = self._bytes(self.prefix), self._bytes(self.suffix)
        parts: list[bytes] = []
        ends: list[int] = []
        num_bytes = 0
        texts = [text for text, _, _ in batch]
        encoded = map(self._bytes, self._encode_texts(texts)) if self._words is None else self._words.encode(texts)
        for (_, is_first, is_last), ids in zip(batch, encoded, strict=True):
            part = (prefix if is_first else b"") + ids + (suffix if is_last else b"")
            parts.append(part)
            num_bytes += len(part)
            if is_last:
                ends.append(num_bytes)
        # a bytearray, for an array that can be written to
        tokens = np.frombuffer(bytearray().join(parts), dtype=self._dtype)
        return Encoded(tokens, np.array(ends, dtype=np.int64) // self._dtype.itemsize)

    def _bytes(self, ids: list[int]) -> bytes:
        return np.array(ids, dtype=self._dtype).tobytes()

    def _encode_texts(self, texts: list[str]) -> Iterator[list[int]]:
        return (encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False))

    def _pieces(self, document: str) -> Iterator[tuple[str, bool, bool]]:
        """(text, is the document's first, is its last)."""
        if len(document) <= _PIECE_CHARS:
            yield document, True, True
            return
        if self._words is not None and self._words.kind.name == "WordPiece":
            cut = cut_for_wordpiece(document, self._signs)
        else:
            cut = _cut(document, partial(self._safe_place, document))
        for number, (piece, following) in enumerate(pairwise(chain(cut, [None]))):
            assert piece is not None
            yield piece, number == 0, following is None

    def _safe_place(self, document: str, start: int) -> int | None:
        """The next place before white space (else before a sign that is no letter) where a trial shows that the tokens around a
        cut are the same with it as without."""
        for pattern in (r"(?<=\S)\s(?=\S)", r"(?<=\w)[^\w\s](?=\w)"):
            # a document without a safe place is rare; looking for it in all of it would cost a trial a candidate
            for match in islice(re.compile(pattern).finditer(document, start), 101):
                place = match.start()
                left, right = document[max(place - 100, 0) : place], document[place : place + 100]
                whole, of_left, of_right = self._encode_texts([left + right, left, right])
                if whole == of_left + of_right:
                    return place
        return None


def template_of(backend: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer (of `tokenizers`) puts before and after a text, whatever it has tokens for."""
    from tokenizers import Tokenizer, models

    text = 2**32 - 1  # the id of a token that is no tokenizer's
    framed = backend.post_process(Tokenizer(models.WordLevel({"text": text}, unk_token="text")).encode("text")).ids
    start = framed.index(text)
    return framed[:start], framed[start + 1 :]


def was_misread(tokenizer: str) -> bool:
    """Whether an earlier version put all special tokens at a document's end: it asked the tokenizer (of a folder, or of a hub
    name that was downloaded) where it has the letter a, for which some, of DNA or another alphabet, have no token."""
    folder = expanded(tokenizer)
    file = folder / "tokenizer.json"
    if not folder.exists():
        from huggingface_hub import try_to_load_from_cache

        with suppress(ValueError):  # no name that the hub could have
            file = Path(str(try_to_load_from_cache(tokenizer, file.name)))
    if not file.is_file():
        return False
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
        backend.no_truncation()
        backend.no_padding()
        bare, framed = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    except Exception:  # it is damaged, or has no answer: that version could not use it
        return False
    return any(framed[start : start + len(bare)] == bare for start in range(len(template_of(backend)[0])))


def cut_for_wordpiece(text: str, signs: str = _SIGNS) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters whose tokens are those of the text: they end before a space, newline or tab.

    Where there is none for long (base64, Chinese), they end before a sign that is always a token of its own; and a run of
    thousands of letters, which is [UNK], stays [UNK] when its end is left out.
    """
    for piece in cut_before(r"[ \n\t]", text):
        if len(piece) <= 2 * _PIECE_CHARS:
            yield piece
        else:
            shorter = re.sub(f"([A-Za-z0-9]{{{RUN_CHARS}}})[A-Za-z0-9]+", r"\1", piece)
            yield from cut_before(f"[{re.escape(signs)}]", shorter) if signs else (shorter,)


def cut_before(pattern: str, text: str) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters that end before a match."""
    search = re.compile(pattern).search
    return _cut(text, lambda start: match.start() if (match := search(text, start)) else None)


def _cut(text: str, place_after: Callable[[int], int | None]) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters, which grow to the next place where the text may be cut."""
    start = 0
    while len(text) - start > _PIECE_CHARS and (place := place_after(start + _PIECE_CHARS)) is not None:
        yield text[start:place]
        start = place
    yield text[start:]

"""Documents become ids, quickly: words are encoded once and looked up from then on.

    document   "Fellow citizens, fellow\\ncitizens"
    words      "Fellow"  " citizens,"  " fellow"  "\\ncitizens"            whose ids, one after the other, are the document's
    looked up  [2725]    [4875, 1010]  [2725]     [4875]                  each as bytes; joined, they are an array's
    framed     [CLS] 2725 4875 1010 2725 4875 [SEP]

That is exact only where a tokenizer treats every word on its own. Three kinds are known to: WordPiece as BERT has it,
byte-level BPE as RoBERTa and GPT-2 have it, and the unigram models that are trained here. All others encode the text itself.
Long documents are encoded in pieces, cut where that changes no token.

Needs `tokenizers` and numpy alone, so that a worker process starts at once.
"""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

UNIGRAM_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFKC"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    ],
}
"""Of the unigram models that are trained here, as `tokenizers` writes it; words are independent under it."""

METASPACE = "▁"

_BATCH_CHARS = 1_000_000
_PIECE_CHARS = 50_000
_CACHED_CHARS = 4_000_000
_RUN_CHARS = 10_000  # far beyond the 100 from which on BERT's WordPiece calls a word [UNK]
_SIGNS = ",.;/+、。，"  # always tokens of their own for BERT


class Encoded(NamedTuple):
    """The tokens of some documents, one after the other, and where in them a document ends (a long one may still go on)."""

    tokens: np.ndarray
    ends: np.ndarray


class Encoder:
    """Encodes documents, each with its special tokens, of any length, in bounded memory.

    `tokenizer` is one of `transformers` (fast) or of `tokenizers`. `prefix` and `suffix` are the ids that it puts before and
    after a text, such as [CLS] and [SEP].
    """

    def __init__(self, tokenizer: Any, dtype: np.dtype):
        from tokenizers import Tokenizer

        # said aloud, it spares every later fork (a loader's workers) a warning; no child of ours tokenizes
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._backend = Tokenizer.from_str(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._dtype = np.dtype(dtype)
        self.prefix, self.suffix = self._special_tokens()
        kind = _kind(self._backend)
        self._words = None if kind is None else _Words(kind, self._backend, self._dtype)
        added = "".join(token.content for token in self._backend.get_added_tokens_decoder().values())
        self._signs = "".join(sign for sign in _SIGNS if sign not in added)

    @classmethod
    def from_backend(cls, backend: str, dtype: np.dtype) -> "Encoder":
        """Of the text of a `tokenizer.json`; `transformers` is not imported."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(backend), dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker goes the tokenizer, not the words that were looked up so far."""
        return Encoder.from_backend, (self._backend.to_str(), self._dtype)

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
        wordpiece = self._words is not None and self._words.kind.name == "WordPiece"
        cut = cut_for_wordpiece(document, self._signs) if wordpiece else self._cut_safely(document)
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


# -- word by word ----------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """How a tokenizer that treats every word on its own sees a text.

    `words` cuts a text into words, of which `spell` gives strings whose ids, one after the other, are the text's. `parts` cuts
    such a string into what the model itself encodes, where it is plain ASCII (`plain`); that is several times faster than the
    whole of the tokenizer.
    """

    name: str
    words: Callable[[str], list[str]]
    spell: Callable[[str], str]
    plain: re.Pattern[str]
    parts: Callable[[str], list[str]]


class _Parts(dict[str, bytes]):
    """The ids of what the model encodes, as the bytes of an array."""

    def __init__(self, model: Any, dtype: np.dtype):
        super().__init__()
        self._model, self._code = model, dtype.char

    def __missing__(self, part: str) -> bytes:
        self[part] = encoded = array(self._code, [token.id for token in self._model.tokenize(part)]).tobytes()
        return encoded


class _Words(dict[str, bytes]):
    """The ids of words, as the bytes of an array; those of all words so far, until they are too many."""

    def __init__(self, kind: _Kind, backend: Any, dtype: np.dtype):
        super().__init__()
        self.kind = kind
        self._backend, self._code = backend, dtype.char
        self._parts = _Parts(backend.model, dtype)
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._find_added = re.compile("|".join(map(re.escape, added)) or "(?!)").search
        self._chars = 0

    def encode(self, texts: Iterable[str]) -> Iterator[bytes]:
        if self._chars > _CACHED_CHARS:
            self.clear()
            self._parts.clear()
            self._chars = 0
        return (b"".join(map(self.__getitem__, self.kind.words(text))) for text in texts)

    def __missing__(self, word: str) -> bytes:
        text = self.kind.spell(word)
        if self.kind.plain.fullmatch(text) and not self._find_added(text):
            encoded = b"".join(map(self._parts.__getitem__, self.kind.parts(text)))
        else:
            encoded = array(self._code, self._backend.encode(text, add_special_tokens=False).ids).tobytes()
        self[word] = encoded
        self._chars += len(word) + 10
        return encoded


def _kind(backend: Any) -> _Kind | None:
    """None where the ids of a text need not be those of its words."""
    tokenizer = json.loads(backend.to_str())
    added = tokenizer["added_tokens"]
    if any(token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]) for token in added):
        return None  # such a token looks beyond the word that it stands in
    return _wordpiece(tokenizer) or _byte_level(tokenizer) or _unigram(tokenizer)


def _wordpiece(tokenizer: dict) -> _Kind | None:
    """BERT's: a word is what stands between spaces, newlines and tabs, which it takes for spaces; other white space stays
    within a "word", for the tokenizer to decide."""
    model, normalizer = tokenizer["model"], tokenizer["normalizer"] or {"type": "BertNormalizer", "lowercase": False}
    if not (
        model["type"] == "WordPiece"
        and normalizer["type"] == "BertNormalizer"
        and (tokenizer["pre_tokenizer"] or {"type": None})["type"] == "BertPreTokenizer"
        and model["max_input_chars_per_word"] < _RUN_CHARS
    ):
        return None
    find_parts = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]").findall
    lowercase = normalizer["lowercase"]
    return _Kind(
        name="WordPiece",
        words=lambda text: text.replace("\n", " ").replace("\t", " ").split(" "),
        spell=str,
        plain=re.compile(r"[!-~]+"),
        parts=lambda word: find_parts(word.lower() if lowercase else word),
    )


def _byte_level(tokenizer: dict) -> _Kind | None:
    """GPT-2's and RoBERTa's BPE: its pattern never lets a match go on from a word into white space. Not with
    `add_prefix_space`, which would add one before a word that follows a newline, too."""
    model, normalizer, pre_tokenizer = tokenizer["model"], tokenizer["normalizer"], tokenizer["pre_tokenizer"] or {"type": None}
    if not (
        model["type"] == "BPE"
        and not model["dropout"]
        and (normalizer is None or normalizer["type"] == "NFC")
        and pre_tokenizer["type"] == "ByteLevel"
        and pre_tokenizer["use_regex"]
        and not pre_tokenizer["add_prefix_space"]
    ):
        return None
    # its pattern, for ASCII
    find_parts = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+").findall
    return _Kind(
        name="byte-level BPE",
        words=spaced_words,
        spell=spell,
        plain=re.compile(r"[ \n]?[!-~]+"),
        parts=lambda word: [part.replace(" ", "Ġ").replace("\n", "Ċ") for part in find_parts(word)],
    )


def _unigram(tokenizer: dict) -> _Kind | None:
    """Ours: all white space is one space, and a word starts with it."""
    pre_tokenizer = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always", "split": True}
    if (tokenizer["model"]["type"], tokenizer["normalizer"], tokenizer["pre_tokenizer"]) != (
        "Unigram",
        UNIGRAM_NORMALIZER,
        pre_tokenizer,
    ):
        return None
    return _Kind(
        name="unigram",
        # where the text itself has the mark of a space, that is none that a word would get
        words=lambda text: [_FIRST + text] if METASPACE in text else spaced_words(text),
        spell=spell,
        plain=re.compile(r"[ \n]*[!-~]+"),
        parts=lambda word: [METASPACE + word.lstrip(" \n")],
    )


# white space as Unicode has it: Python's has four control characters more
_SPACED_WORDS = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
_FIRST = "\0"


def spaced_words(text: str) -> list[str]:
    """Words, each with all the white space before it, and the white space at the end; written so that splitting is fast:

    text    "Fellow citizens  of\nthe"      word      "\0Fellow"  "citizens"  "  of"  "\nthe"
                                            spelled   "Fellow"    " citizens" "  of"  "\nthe"
    """
    marked = _FIRST + text.replace("\n", " \n").replace(" \n \n", " \n\n")
    cut_run = "  " in marked or "\n \n" in marked or marked.endswith("\n ")
    if cut_run or not text.replace("\n", " ").isprintable():
        first, *others = _SPACED_WORDS.findall(text) or [""]
        return [_FIRST + first, *others]
    # single spaces, newlines and now and then an empty line, as most texts have them: twice as fast
    return marked.split(" ")


def spell(word: str) -> str:
    """What one of `spaced_words` is in the text."""
    if word.startswith(_FIRST):
        return word[1:]
    return word if word[:1].isspace() else " " + word


# -- pieces of long documents ----------------------------------------------------------------------------------------------


def cut_for_wordpiece(text: str, signs: str = _SIGNS) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters whose tokens are those of the text: they end before a space, newline or tab.

    Where there is none for long (base64, Chinese), they end before a sign that is always a token of its own; and a run of
    thousands of letters, which is [UNK], stays [UNK] when its end is left out.
    """
    for piece in cut_before(r"[ \n\t]", text):
        if len(piece) <= 2 * _PIECE_CHARS:
            yield piece
        else:
            shorter = re.sub(f"([A-Za-z0-9]{{{_RUN_CHARS}}})[A-Za-z0-9]+", r"\1", piece)
            yield from cut_before(f"[{re.escape(signs)}]", shorter) if signs else (shorter,)


def cut_before(pattern: str, text: str) -> Iterator[str]:
    """Pieces of at least `_PIECE_CHARS` characters that end before a match."""
    compiled = re.compile(pattern)
    start = 0
    while len(text) - start > _PIECE_CHARS:
        match = compiled.search(text, start + _PIECE_CHARS)
        if match is None:
            break
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]

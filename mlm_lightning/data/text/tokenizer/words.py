"""Words are encoded once and looked up from then on, which makes the preparation of a text three to five times as fast.

    document   "Fellow citizens, fellow\\ncitizens"
    words      "Fellow"  " citizens,"  " fellow"  "\\ncitizens"            whose ids, one after the other, are the document's
    looked up  [2725]    [4875, 1010]  [2725]     [4875]                  each as bytes; joined, they are an array's

That is exact only where a tokenizer treats every word on its own. Three kinds are known to: WordPiece as BERT has it,
byte-level BPE as RoBERTa and GPT-2 have it, and the unigram models that are trained here.
"""

import json
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

_CACHED_CHARS = 4_000_000

RUN_CHARS = 10_000
"""A word of so many characters is [UNK] to every WordPiece model that is known here; to BERT's, one of more than 100."""


class WordKind(NamedTuple):
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


class Words(dict[str, bytes]):
    """The ids of words, as the bytes of an array; those of all words so far, until they are too many."""

    def __init__(self, kind: WordKind, backend: Any, dtype: np.dtype):
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


def kind_of(backend: Any) -> WordKind | None:
    """None where the ids of a text need not be those of its words."""
    tokenizer = json.loads(backend.to_str())
    added = tokenizer["added_tokens"]
    if any(token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]) for token in added):
        return None  # such a token looks beyond the word that it stands in
    return _wordpiece(tokenizer) or _byte_level(tokenizer) or _unigram(tokenizer)


def _wordpiece(tokenizer: dict) -> WordKind | None:
    """BERT's: a word is what stands between spaces, newlines and tabs, which it takes for spaces; other white space stays
    within a "word", for the tokenizer to decide."""
    model, normalizer = tokenizer["model"], tokenizer["normalizer"] or {"type": "BertNormalizer", "lowercase": False}
    if not (
        model["type"] == "WordPiece"
        and normalizer["type"] == "BertNormalizer"
        and (tokenizer["pre_tokenizer"] or {"type": None})["type"] == "BertPreTokenizer"
        and model["max_input_chars_per_word"] < RUN_CHARS
    ):
        return None
    find_parts = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9]").findall
    lowercase = normalizer["lowercase"]
    return WordKind(
        name="WordPiece",
        words=lambda text: text.replace("\n", " ").replace("\t", " ").split(" "),
        spell=str,
        plain=re.compile(r"[!-~]+"),
        parts=lambda word: find_parts(word.lower() if lowercase else word),
    )


def _byte_level(tokenizer: dict) -> WordKind | None:
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
    return WordKind(
        name="byte-level BPE",
        words=spaced_words,
        spell=spell,
        plain=re.compile(r"[ \n]?[!-~]+"),
        parts=lambda word: [part.replace(" ", "Ġ").replace("\n", "Ċ") for part in find_parts(word)],
    )


def _unigram(tokenizer: dict) -> WordKind | None:
    """Ours: all white space is one space, and a word starts with it."""
    pre_tokenizer = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always", "split": True}
    if (tokenizer["model"]["type"], tokenizer["normalizer"], tokenizer["pre_tokenizer"]) != (
        "Unigram",
        UNIGRAM_NORMALIZER,
        pre_tokenizer,
    ):
        return None
    return WordKind(
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

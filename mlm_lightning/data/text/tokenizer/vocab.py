"""What a tokenizer says about its tokens: special ones, and which of them continue a word."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mlm_lightning.batch import Vocab


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
    elif starts := _word_starts(backend):
        continues = [not token.startswith(starts) for token in tokens]
    else:
        return None
    return tuple(continued and number not in special_ids for number, continued in enumerate(continues))


def _word_starts(backend: dict) -> tuple[str, ...] | None:
    """What a tokenizer writes before a word: white space, as Ġ, Ċ, ĉ or č for byte-level BPE, as ▁ for sentencepiece.

    The first word of a text may have nothing before it; it stands after a special token or starts a row, where masks see a new
    word in any case.
    """
    if backend["model"].get("end_of_word_suffix"):
        return None
    for part in ("pre_tokenizer", "decoder"):
        text = json.dumps(backend[part])
        if '"ByteLevel"' in text:
            return ("Ġ", "Ċ", "ĉ", "č")  # space, newline, tab, carriage return
        if '"Metaspace"' in text:
            return ("▁",)
    return None

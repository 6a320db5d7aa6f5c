"""Where tokenizers come from, and what they say about their tokens: special ones, and which of them continue a word.

hub name, folder ┐
vocab.txt        ├─►  a tokenizer folder  ─►  Encoder (encoder.py):  documents ─► ids    [CLS] fellow citizens [SEP] …
train            ┘                        ─►  Vocab:  special ids, "##" …
(training.py)
"""

import json
import os
from pathlib import Path
from typing import Any

from mlm_lightning.batch import UNNAMED, Vocab
from mlm_lightning.errors import ConfigError, one_line
from mlm_lightning.packages import need
from mlm_lightning.values import expanded, expanded_name

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DEFAULT_MAX_LENGTH = 512
TRAIN = "train"
_REMEDY = "give a hub name, a tokenizer's folder, a vocab.txt, or 'train'"


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub name has one slash at most (`owner/name`), not at the start."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def keys_of(folder: Path) -> dict[str, Any]:
    """The keys of `data` that take the tokenizer of a folder, and train none."""
    return {"tokenizer": str(folder), "vocab_size": None, "tokenizer_algorithm": "wordpiece"}


def check_tokenizer(tokenizer: str) -> None:
    """Raises where the value of `data.tokenizer` cannot be a hub name, is a path and leads nowhere; reads nothing."""
    path = expanded(tokenizer)
    if tokenizer == TRAIN or path.exists():
        return
    if is_path(tokenizer) or path.suffix in (".txt", ".json"):
        raise ConfigError("data.tokenizer", tokenizer, "there is no such file or folder", _REMEDY)


def vocabulary_file(tokenizer: str) -> Path | None:
    """The bare vocab.txt that the value of `data.tokenizer` names, itself or as the only thing in a folder; else None."""
    path = expanded(tokenizer)
    if path.is_file():
        return path
    alone = path.is_dir() and not any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    return path / "vocab.txt" if alone and (path / "vocab.txt").is_file() else None


def tokenizer_files(tokenizer: str) -> list[Path]:
    """The local files that decide what the tokenizer does; none for a hub name."""
    file, folder = vocabulary_file(tokenizer), expanded(tokenizer)
    if file is not None:
        return [file]
    return sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt", ".model")) if folder.is_dir() else []


def open_tokenizer(tokenizer: str, revision: str | None = None) -> Any:
    """The `transformers` tokenizer of a hub name, a folder or a vocab.txt; ConfigError where there is none that can be used."""
    file = vocabulary_file(tokenizer)
    opened = load_tokenizer(tokenizer, revision) if file is None else bert_tokenizer(_read_vocabulary(file))
    if getattr(opened, "backend_tokenizer", None) is None:
        raise ConfigError("data.tokenizer", tokenizer, "it has no fast implementation (`tokenizers`), which is needed here")
    if opened.mask_token_id is None:
        remedy = "choose that of a masked language model (such as distilbert/distilbert-base-uncased), or data.tokenizer=train"
        raise ConfigError("data.tokenizer", tokenizer, "it has no mask token", remedy)
    return opened


def load_tokenizer(folder: str | Path, revision: str | None = None) -> Any:
    """Opens a tokenizer's folder (as `TextSource.save_tokenizer` writes it) or hub name; never runs code from it."""
    need("a tokenizer", "transformers", "tokenizers")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(expanded_name(str(folder)), revision=revision, trust_remote_code=False)
        if not set(tokenizer.get_vocab()).difference(tokenizer.all_special_tokens):  # made up for a model without a tokenizer
            raise ValueError("it has special tokens alone")
        return tokenizer
    except Exception as error:  # the hub's errors and those of broken files have no common ancestor
        problem = f"cannot be opened ({type(error).__name__}: {one_line(error)})"
        raise ConfigError("data.tokenizer", folder, problem, _REMEDY) from error


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError("data.tokenizer", file, "is not UTF-8 text", "a vocab.txt has one token a line") from error
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        remedy = f"a vocab.txt has one token a line, among them {' '.join(SPECIAL_TOKENS)}"
        raise ConfigError("data.tokenizer", file, f"the vocabulary lacks {', '.join(missing)}", remedy)
    return vocabulary


def bert_tokenizer(vocabulary: dict[str, int]) -> Any:
    """An uncased WordPiece tokenizer, as BERT's, of this vocabulary."""
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

    # `vocab_file=` would be ignored without a message
    return BertTokenizerFast(vocab=vocabulary, model_max_length=DEFAULT_MAX_LENGTH)


# -- the vocabulary --------------------------------------------------------------------------------------------------------


def read_vocab(tokenizer: Any) -> Vocab:
    """The vocabulary of a `transformers` tokenizer."""
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = tuple(names.get(number, UNNAMED.format(number)) for number in range(max(names) + 1))
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special_ids = added.union(tokenizer.all_special_ids)
    continues = _continues_word(tokens, json.loads(tokenizer.backend_tokenizer.to_str()))
    return Vocab(
        size=len(tokens),
        mask_id=tokenizer.mask_token_id,
        special_ids=tuple(special_ids),
        pad_id=tokenizer.pad_token_id,
        tokens=tokens,
        continues_word=continues and tuple(each and number not in special_ids for number, each in enumerate(continues)),
    )


def _continues_word(tokens: tuple[str, ...], backend: dict) -> tuple[bool, ...] | None:
    """None where a token does not tell: word-level models, and those that mark a word's end instead of its start.

    What a tokenizer writes before a word is white space, as Ġ, Ċ, ĉ or č for byte-level BPE, as ▁ for sentencepiece. The first
    word of a text may have nothing before it; it stands after a special token or starts a row, where masks see a new word in
    any case.
    """
    if prefix := backend["model"].get("continuing_subword_prefix"):
        return tuple(token.startswith(prefix) for token in tokens)
    if not backend["model"].get("end_of_word_suffix"):
        for text in (json.dumps(backend[part]) for part in ("pre_tokenizer", "decoder")):
            if '"ByteLevel"' in text:  # space, newline, tab, carriage return
                return tuple(not token.startswith(("Ġ", "Ċ", "ĉ", "č")) for token in tokens)
            if '"Metaspace"' in text:
                return tuple(not token.startswith("▁") for token in tokens)
    return None

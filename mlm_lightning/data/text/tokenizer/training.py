"""Training a tokenizer on documents: the same documents give the same `tokenizer.json`, byte for byte, in any process.

    wordpiece   fellow citizens  ─►  [CLS] fellow citizen ##s [SEP]        uncased; as BERT, DistilBERT, ELECTRA
    bpe         Fellow citizens  ─►  <s> F ellow Ġcitiz ens </s>           bytes: any text comes back as it was; as RoBERTa
    unigram     Fellow citizens  ─►  <s> ▁F ellow ▁citizen s </s>          white space is one space; as XLM-R, CamemBERT

The library's trainers keep words in hash tables that are seeded anew in every process. That does not matter to BPE over bytes,
where ties are broken by the tokens' numbers; for WordPiece those have to be settled first; unigram models are trained by
sentencepiece on one thread, which reads the words in the order that we give.
"""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlm_lightning.data.text.tokenizer.encoder import cut_before, cut_for_wordpiece
from mlm_lightning.data.text.tokenizer.load import DEFAULT_MAX_LENGTH, SPECIAL_TOKENS, TRAIN, bert_tokenizer
from mlm_lightning.data.text.tokenizer.words import METASPACE, spaced_words, spell
from mlm_lightning.errors import ConfigError

_ALPHABET_SIZE = 1000  # of a trained tokenizer; as in tokenizers' BertWordPieceTokenizer
_SENTENCE_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_MAX_WORDS = 2_000_000  # different ones that a unigram model is trained on: the most frequent
_MAX_WORD_CHARS = 1_000  # a longer word (Chinese has no spaces) is cut: sentencepiece skips what has more than 4,192 bytes
_FORCED_CHARS = 100_000  # a document without white space is cut for training after so many: words of that length teach nothing


def train_tokenizer(texts: Iterable[str], vocab_size: int, alphabet: Counter[str], algorithm: str = "wordpiece") -> Any:
    """A fast `transformers` tokenizer of at most `vocab_size` tokens, fewer where the texts have no more to offer.

    `alphabet` counts the texts' characters; WordPiece alone reads it. ConfigError where there is nothing to train on, and where
    the tokens that there must be (special ones, characters or bytes) are already more than `vocab_size`.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError("data.tokenizer_algorithm", algorithm, "unknown", f"choose one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algorithm](texts, vocab_size, alphabet)


def vocab_size_for(alphabet: Counter[str]) -> int:
    """How many tokens suit texts of these characters: 4,096 for four million of them, which are 800,000 words of English, and
    twice as many for eight times the text, up to 32,768: few enough that each occurs often enough to be learned."""
    least = 1024 + 2 * min(len(alphabet), _ALPHABET_SIZE)
    wanted = 4096 * (alphabet.total() / 4e6) ** (1 / 3)
    return max(least, min(32_768, round(wanted / 64) * 64))


def _check_size(vocab_size: int, needed: int, what: str) -> None:
    if needed > vocab_size:
        remedy = f"the special tokens and the {what} alone are {needed}"
        raise ConfigError("data.vocab_size", vocab_size, "too small", remedy)


def _most_frequent(counts: Counter[str], number: int) -> list[str]:
    return sorted(counts, key=lambda item: (-counts[item], item))[:number]


def _nothing_to_train_on() -> ConfigError:
    return ConfigError("data.tokenizer", TRAIN, "the training documents have no words", "give documents with text")


# -- WordPiece -------------------------------------------------------------------------------------------------------------


def _train_wordpiece(texts: Iterable[str], vocab_size: int, alphabet: Counter[str]) -> Any:
    """The library alone would number the characters ("##a") in the order of a hash table that differs from process to process,
    and break ties by that number; handing them over as given tokens settles it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, continuing = _normalized_alphabet(alphabet, wordpiece)
    if not first:
        raise _nothing_to_train_on()
    given = [*SPECIAL_TOKENS, *first, *("##" + character for character in continuing)]
    _check_size(vocab_size, len(given), "characters of the training documents")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=given, initial_alphabet=first, limit_alphabet=len(first), show_progress=False
    )
    wordpiece.train_from_iterator(chain.from_iterable(map(cut_for_wordpiece, texts)), trainer)
    return bert_tokenizer(dict(sorted(wordpiece.get_vocab().items(), key=lambda item: item[1])))


def _normalized_alphabet(alphabet: Counter[str], tokenizer: Any) -> tuple[list[str], list[str]]:
    """The most frequent characters after normalisation, and those of them that can stand inside a word; sorted."""
    counts: Counter[str] = Counter()
    continuing: set[str] = set()
    for character, count in alphabet.items():
        # after an "a", to see what may continue a word
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + character))
        counts.update(dict.fromkeys("".join(piece for piece, _ in pieces)[1:], count))
        continuing.update(*(piece[1:] for piece, _ in pieces))
    kept = _most_frequent(counts, _ALPHABET_SIZE)
    return sorted(kept), sorted(continuing.intersection(kept))


# -- byte-level BPE --------------------------------------------------------------------------------------------------------


def _train_bpe(texts: Iterable[str], vocab_size: int, alphabet: Counter[str]) -> Any:
    """The first word of a text has no Ġ, as with RoBERTa: every text can be restored, and a word at the start of a line or a
    text is another token than within it. The merges are those of the largest count, then of the smallest numbers of tokens,
    which start from the sorted bytes: nothing is left to chance."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    byte_alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(vocab_size, len(_SENTENCE_TOKENS) + len(byte_alphabet), "256 bytes")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SENTENCE_TOKENS[:-1], _mask_token()],
        initial_alphabet=byte_alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(_some(chain.from_iterable(map(_cut_at_spaces, texts))), trainer)
    ends = {token: (token, _SENTENCE_TOKENS.index(token)) for token in ("<s>", "</s>")}
    bpe.post_processor = processors.RobertaProcessing(ends["</s>"], ends["<s>"], trim_offsets=True, add_prefix_space=False)
    return _sentence_tokenizer(bpe)


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The same texts; ConfigError at their end where none of them has a word."""
    have_words = False
    for text in texts:
        have_words = have_words or bool(text.strip())
        yield text
    if not have_words:
        raise _nothing_to_train_on()


def _cut_at_spaces(text: str) -> Iterator[str]:
    """Pieces that have the words of the text: BPE and unigram models never cross from a word into white space."""
    for piece in cut_before(r"(?<=\S)[ \n]", text):
        yield from (piece[start : start + _FORCED_CHARS] for start in range(0, len(piece), _FORCED_CHARS))


# -- unigram ---------------------------------------------------------------------------------------------------------------


def _train_unigram(texts: Iterable[str], vocab_size: int, alphabet: Counter[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(replacement=METASPACE, prepend_scheme="always", split=True)
    unigram.decoder = decoders.Metaspace(replacement=METASPACE, prepend_scheme="always", split=True)
    words = _in_alphabet(_count_words(texts, unigram))
    characters = set().union(*words)
    _check_size(vocab_size, len(_SENTENCE_TOKENS) + len(characters), "characters of the training documents")
    pieces = _unigram_pieces(words, vocab_size - len(_SENTENCE_TOKENS))
    vocabulary = [*((token, 0.0) for token in _SENTENCE_TOKENS), *pieces]
    unigram.model = models.Unigram(vocabulary, unk_id=_SENTENCE_TOKENS.index("<unk>"))
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, _SENTENCE_TOKENS.index(token)) for token in ("<s>", "</s>")],
    )
    return _sentence_tokenizer(unigram)


def _unigram_pieces(counts: Counter[str], num_pieces: int) -> list[tuple[str, float]]:
    """At most `num_pieces` pieces with their log-probabilities, the most probable first; all characters are among them.

    Source: Kudo, "Subword Regularization", ACL 2018, section 3.2.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    words = _most_frequent(counts, _MAX_WORDS)
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.tsv"
        with file.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(f"{METASPACE}\t1\n")  # it needs one word that it does not skip
            for word in words:
                for start in range(0, len(word), _MAX_WORD_CHARS):
                    stream.write(f"{word[start : start + _MAX_WORD_CHARS]}\t{counts[word]}\n")
        SentencePieceTrainer.train(
            input=str(file),
            input_format="tsv",
            model_writer=trained,
            model_type="unigram",
            vocab_size=num_pieces + 2,  # with <unk>, and ▁, should no other word have it
            hard_vocab_limit=False,
            num_threads=1,
            # the words are ready: nothing is to be normalised, and pieces are any parts of them
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_number=False,
            split_by_unicode_script=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    model = SentencePieceProcessor(model_proto=trained.getvalue())
    scores = {model.id_to_piece(number): round(model.get_score(number), 6) for number in range(1, len(model))}
    # words with a few reserved characters, such as ▅, are skipped
    characters = {character: scores.get(character, min(scores.values())) for character in set().union(*counts)}
    longer = [piece for piece in scores if len(piece) > 1][: num_pieces - len(characters)]
    kept = characters | {piece: scores[piece] for piece in longer}
    return sorted(kept.items(), key=lambda item: (-item[1], item[0]))


def _count_words(texts: Iterable[str], unigram: Any) -> Counter[str]:
    """How often each word occurs, as the model gets it ("▁word")."""
    raw: Counter[str] = Counter()
    for piece in chain.from_iterable(map(_cut_at_spaces, texts)):
        raw.update(spaced_words(piece))
    counts: Counter[str] = Counter()
    for word, count in raw.items():
        for part, _ in unigram.pre_tokenizer.pre_tokenize_str(unigram.normalizer.normalize_str(spell(word))):
            counts[part] += count
    return counts


def _in_alphabet(counts: Counter[str]) -> Counter[str]:
    """The words without the characters beyond the most frequent ones, cut in two where there was one."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    if not set(characters) - {METASPACE}:
        raise _nothing_to_train_on()
    rare = set(characters).difference(_most_frequent(characters, _ALPHABET_SIZE))
    if not rare:
        return counts
    rare_one, cut = re.compile(f"[{re.escape(''.join(rare))}]"), Counter[str]()
    for word, count in counts.items():
        for part in filter(None, rare_one.split(word)):
            cut[part] += count
    return cut


def _mask_token() -> Any:
    """<mask> stands for a word with the space before it."""
    from tokenizers import AddedToken

    return AddedToken(_SENTENCE_TOKENS[-1], lstrip=True, special=True, normalized=False)


def _sentence_tokenizer(tokenizer: Any) -> Any:
    """With the special tokens' roles as RoBERTa and XLM-R have them."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=DEFAULT_MAX_LENGTH,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=_mask_token(),
    )


ALGORITHMS = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}

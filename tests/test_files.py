"""A file is whole or not there."""

from pathlib import Path

import pytest

from mlm_lightning.files import write_atomically


def test_writes_bytes_and_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomically(path, b"\x00content")
    assert path.read_bytes() == b"\x00content"


def test_writes_what_a_function_writes(tmp_path):
    write_atomically(tmp_path / "x", lambda file: [file.write(each) for each in (b"one ", b"two")])
    assert (tmp_path / "x").read_bytes() == b"one two"


def test_replaces_and_leaves_nothing_beside(tmp_path):
    for content in (b"a long first content", b"second"):
        write_atomically(tmp_path / "x", content)
    assert (tmp_path / "x").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_what_was_there_stays_when_the_writer_fails(tmp_path, old):
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)

    def fails(file):
        file.write(b"half of the new")
        file.flush()
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fails)
    assert [each.name for each in tmp_path.iterdir()] == ([] if old is None else ["x"])
    assert old is None or path.read_bytes() == old


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    seen = []

    def writes(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    write_atomically(path, writes)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_an_open_reader_keeps_what_it_opened(tmp_path):
    path: Path = tmp_path / "x"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert reader.read() == b"old"

"""Documents are read as they are; what is wrong with a file is an error that names it, or is counted with file and line."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mlm_lightning.data.text.documents import base as documents_module
from mlm_lightning.data.text.documents.base import UNUSED, Problems
from mlm_lightning.data.text.documents.files import FileDocuments
from mlm_lightning.data.text.documents.find import choose_txt_documents, find_files
from mlm_lightning.errors import ConfigError


def read(*files: Path, column: str = "text", txt_documents: str = "line") -> tuple[list[str], list[str]]:
    """All documents of the files and the messages about them."""
    documents = FileDocuments(files, column, txt_documents, "data.path")
    problems = Problems()
    texts = [text for shard in documents.shards() for text in documents.read(shard, problems)]
    documents.check(problems)
    return texts, problems.messages()


def write(file: Path, content: bytes | str) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


class TestTxt:
    TEXT = "one\ntwo\n\n \nthree\nfour"

    @pytest.mark.parametrize(
        ("txt_documents", "expected"),
        [("line", ["one", "two", "three", "four"]), ("paragraph", ["one\ntwo", "three\nfour"]), ("file", [TEXT])],
    )
    def test_what_a_document_is(self, tmp_path, txt_documents, expected):
        assert read(write(tmp_path / "a.txt", self.TEXT), txt_documents=txt_documents) == (expected, [])

    def test_crlf_and_byte_order_mark_leave_no_trace(self, tmp_path):
        assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")) == (["one", "two"], [])

    def test_only_newlines_end_lines(self, tmp_path):
        assert read(write(tmp_path / "a.txt", "one\x0cstill\u2028one\ntwo"))[0] == ["one\x0cstill\u2028one", "two"]

    def test_bytes_that_are_not_utf8_are_replaced_and_counted_with_file_and_line(self, tmp_path):
        texts, messages = read(write(tmp_path / "a.txt", b"fine\ncaf\xe9 \xff\xfe!\n\xf0\x9f\x98\n"))
        assert texts == ["fine", "caf\ufffd \ufffd\ufffd!", "\ufffd\ufffd\ufffd"]
        assert len(messages) == 1
        assert messages[0].startswith("2 line(s) with bytes that are not UTF-8")
        assert "a.txt line 2" in messages[0]
        assert "a.txt line 3" in messages[0]

    def test_utf16_is_an_error_that_says_so(self, tmp_path):
        with pytest.raises(ValueError, match=r"data\.path: .*a\.txt is UTF-16; convert it to UTF-8"):
            read(write(tmp_path / "a.txt", "hello".encode("utf-16")))

    @pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.TXT.GZ", gzip.compress)])
    def test_a_file_without_a_newline_is_cut_at_carriage_returns(self, tmp_path, monkeypatch, name, pack):
        file = write(tmp_path / name, pack(b"\xef\xbb\xbfone\rtwo\r\rthree\r"))
        texts, [message] = read(file)
        assert texts == ["one", "two", "three"]
        assert message.startswith("1 file(s) without a newline, whose lines end at carriage returns")
        assert read(file, txt_documents="paragraph")[0] == ["one\ntwo", "three"]
        monkeypatch.setattr(documents_module, "SHARD_BYTES", 4)
        assert read(file) == (texts, [message])

    @pytest.mark.parametrize("text", ["one\rstill one", "one\rstill one\r\ntwo"])
    def test_a_carriage_return_elsewhere_is_left_alone(self, tmp_path, text):
        assert read(write(tmp_path / "a.txt", text + "\n"))[0] == text.split("\r\n")
        assert read(write(tmp_path / "a.txt", "one\r")) == (["one"], [])

    @pytest.mark.parametrize("compression", ["gzip", "zstd"])
    def test_compressed(self, tmp_path, compression):
        text = "".join(f"line {number}\n" for number in range(10_000)).encode()
        if compression == "gzip":
            file = write(tmp_path / "a.txt.gz", gzip.compress(text))
        else:
            file = write(tmp_path / "a.txt.zst", pa.compress(text, codec="zstd", asbytes=True))
        texts, _ = read(file)
        assert texts == text.decode().splitlines()

    def test_a_broken_archive_names_the_file(self, tmp_path):
        file = write(tmp_path / "a.txt.gz", gzip.compress(b"line\n" * 1000)[:-10])
        with pytest.raises(ValueError, match=r"data\.path: cannot read .*a\.txt\.gz .*repair it or leave it out"):
            read(file)


class TestJsonl:
    def test_bad_lines_are_skipped_and_counted_with_file_and_line(self, tmp_path):
        lines = [
            '{"text": "one"}',
            "",
            "{oops",
            '{"other": 1}',
            '{"text": 3}',
            '{"text": " "}',
            "[1]",
            '{"text": null}',
            '{"text": "two"}',
        ]
        texts, messages = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
        assert texts == ["one", "two"]
        assert [message.split(" ", 1)[0] for message in messages] == ["2", "1", "1", "2"]
        places = {"not a JSON object": (3, 7), "lack the column 'text'": (4,), "not a string": (5,), "empty": (6, 8)}
        for what, numbers in places.items():
            [message] = [message for message in messages if what in message]
            assert all(f"a.jsonl line {number}" in message for number in numbers)

    def test_only_the_first_places_are_named(self, tmp_path):
        _, [message] = read(write(tmp_path / "a.jsonl", '{"text": "one"}\n' + "oops\n" * 1000))
        assert message.startswith("1,000 line(s)")
        assert message.endswith("line 4 and 997 more")

    def test_half_a_surrogate_pair_becomes_a_character(self, tmp_path):
        assert read(write(tmp_path / "a.jsonl", r'{"text": "a\ud800b \ud83d\ude00"}'))[0] == ["a?b 😀"]

    def test_unicode_line_separators_do_not_cut_a_record(self, tmp_path):
        text = "one\u2028two\x85three"
        assert read(write(tmp_path / "a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n"))[0] == [text]


class TestCsv:
    def test_quotes_newlines_and_long_fields(self, tmp_path):
        long = "word " * 100_000  # beyond the csv module's default limit
        content = f'id,text\r\n1,"a ""quoted"", thing\r\nin two lines"\r\n2,{long}\r\n3\r\n4,\r\n'
        texts, messages = read(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + content.encode()))
        assert texts == ['a "quoted", thing\nin two lines', long]
        assert any("lack the column" in message and "line 5" in message for message in messages)
        assert any("empty" in message and "line 6" in message for message in messages)

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    @pytest.mark.parametrize(
        ("lines", "begins"),
        [
            (["id,text", "1,fine", '2,"open', "3,text", '4,"closed"'], 3),
            (["id,text", '1,"two', 'lines","open', "3,text"], 3),
            (["id,text", '1,"closed"and more'], 2),
            (["id,text", '1,"over', 'two lines" and more', "2,fine"], 2),
            (['"id,text', "1,fine"], 1),
        ],
    )
    def test_a_quote_that_closes_no_field_names_the_line_where_that_begins(self, tmp_path, end, lines, begins):
        content = end.join(map(str.encode, lines)) + end
        for file in (write(tmp_path / "a.csv", content), write(tmp_path / "b.csv.gz", gzip.compress(content))):
            with pytest.raises(ConfigError, match=rf"data\.path: .*{file.name} line {begins}: a quote opens a field there"):
                read(file)

    def test_quotes_within_a_field_that_has_none_around_it_are_text(self, tmp_path):
        assert read(write(tmp_path / "a.csv", 'text\n5" of "rain"\n'))[0] == ['5" of "rain"']


class TestParquet:
    def test_reads_strings_and_counts_empty_rows(self, tmp_path):
        table = pa.table({"text": ["one", None, "", "two"] * 200, "id": list(range(800))})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
        texts, [message] = read(tmp_path / "a.parquet")
        assert texts == ["one", "two"] * 200
        assert message.startswith("400 empty document(s) skipped")
        assert "a.parquet row 2" in message

    def test_a_column_of_numbers_is_an_error(self, tmp_path):
        pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"data\.text_column=text: the column of .*a\.parquet holds int64, not strings"):
            read(tmp_path / "a.parquet")

    def test_a_file_that_is_none_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"cannot read .*a\.parquet"):
            read(write(tmp_path / "a.parquet", "no parquet"))


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_a_missing_column_names_the_file_and_the_columns_there_are(tmp_path, format_):
    file = tmp_path / f"a.{format_}"
    if format_ == "parquet":
        pq.write_table(pa.table({"document": ["a"], "id": [1]}), file)
    else:
        write(file, '{"document": "a", "id": 1}\n' if format_ == "jsonl" else "document,id\na,1\n")
    with pytest.raises(
        ValueError, match=rf"data\.text_column=text: .*a\.{format_} has no such column; it has 'document', 'id'"
    ):
        read(file)


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_two_columns_of_the_name_are_refused_and_of_another_name_are_not(tmp_path, format_):
    def made(*names: str) -> Path:
        file = tmp_path / f"a.{format_}"
        if format_ == "parquet":
            pq.write_table(pa.Table.from_arrays([pa.array(["one"])] * len(names), names=list(names)), file)
            return file
        return write(file, f"{','.join(names)}\n{','.join(['one'] * len(names))}\n")

    with pytest.raises(ConfigError, match=rf"data\.text_column=text: .*a\.{format_} has 2 columns of that name"):
        read(made("text", "id", "text"))
    documents = FileDocuments([made("text", "label", "label")], "text", "line", "data.path", "label")
    with pytest.raises(ConfigError, match=r"task\.label_column=label: .* has 2 columns of that name"):
        list(documents.read(documents.shards()[0], Problems()))
    assert read(made("text", "id", "id"))[0] == ["one"]


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["a\n\nb"], "paragraph"),
        (["a\n\nb", "a\nb", "\n\na\n\n"], "line"),
        (["a\r\n \r\nb", "a\nb"], "paragraph"),
        (["a\rb\r\rc"], "paragraph"),
        (["a\nb"] * 20, "file"),
        (["a\nb"] * 19, "line"),
        (["a\nb"] * 20 + ["a" * 1_000_001], "line"),
    ],
)
def test_what_txt_documents_are_by_themselves(tmp_path, texts, chosen):
    files = [write(tmp_path / f"{number}.txt", text) for number, text in enumerate(texts)]
    assert choose_txt_documents([*files, write(tmp_path / "a.jsonl", "{}\n\n{}")]) == chosen


def test_documents_are_numbered_through_all_files_and_any_choice_has_its_split(tmp_path):
    files = [write(tmp_path / f"{name}.txt", f"{name}0\n{name}1\n{name}2\n") for name in "abc"]
    documents = FileDocuments(files, "text", "line", "data.path")
    [(shard, split_D)] = documents.chosen({"train": np.array([8, 0]), "val": np.array([4])}, [9])
    chosen = dict(zip(documents.read(shard, Problems()), split_D.tolist(), strict=True))
    assert {text: split for text, split in chosen.items() if split != UNUSED} == {"a0": 0, "c2": 0, "b1": 1}


class TestShards:
    """Wherever a file is cut, the shards hold its documents, each once, and say the same about them."""

    LINES = (
        b"\xef\xbb\xbf" + b'{"text": "one"}\n\n\n{oops\n{"text": "a longer one, over some bytes"}\r\n   \n{"other": 1}\n'
        b'{"text": "caf\xe9"}\n\n{"text": "\xe3\x80\x80 three"}\n\xe3\x80\x80\n{"text": ""}\n{"text": "last"}'
    )

    def read_in_shards(self, shard_bytes, monkeypatch, *files, txt_documents):
        monkeypatch.setattr(documents_module, "SHARD_BYTES", shard_bytes)
        documents = FileDocuments(files, "text", txt_documents, "data.path")
        problems, texts = Problems(), []
        for shard in documents.shards():
            of_shard = Problems()
            texts += documents.read(shard, of_shard)
            problems.extend(Problems(**json.loads(json.dumps(vars(of_shard)))))
        return len(documents.shards()), texts, problems.messages()

    @pytest.mark.parametrize("ending", ["", "\n", "\n\n\n"])
    @pytest.mark.parametrize(("name", "txt_documents"), [("a.txt", "line"), ("a.txt", "paragraph"), ("a.jsonl", "line")])
    def test_of_lines_and_paragraphs(self, tmp_path, monkeypatch, name, txt_documents, ending):
        file = write(tmp_path / name, self.LINES + ending.encode())
        whole = read(file, txt_documents=txt_documents)
        assert len(whole[0]) >= 4
        assert whole[1]
        for shard_bytes in range(1, len(self.LINES) + 5):
            num_shards, *cut = self.read_in_shards(shard_bytes, monkeypatch, file, txt_documents=txt_documents)
            assert num_shards >= len(self.LINES) // shard_bytes
            assert tuple(cut) == whole

    def test_of_row_groups(self, tmp_path, monkeypatch):
        table = pa.table({"text": ["one", None, "two", "", "three", "four", None]})
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        num_shards, *cut = self.read_in_shards(1, monkeypatch, tmp_path / "a.parquet", txt_documents="line")
        assert num_shards == 4
        assert tuple(cut) == read(tmp_path / "a.parquet")
        assert "row 2" in cut[1][0]
        assert "row 7" in cut[1][0]

    def test_small_files_share_one(self, tmp_path, monkeypatch):
        files = [write(tmp_path / f"{number}.txt", f"document {number}\n") for number in range(100)]
        num_shards, texts, _ = self.read_in_shards(130, monkeypatch, *files, txt_documents="file")
        assert texts == [f"document {number}" for number in range(100)]
        assert num_shards == 10

    def test_a_column_that_only_some_shards_have_is_no_error(self, tmp_path, monkeypatch):
        file = write(tmp_path / "a.jsonl", '{"other": 1}\n' * 10 + '{"text": "one"}\n')
        _, texts, messages = self.read_in_shards(13, monkeypatch, file, txt_documents="line")
        assert texts == ["one"]
        assert messages[0].startswith("10 row(s) skipped that lack the column 'text'")


class TestFindFiles:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for name in ("b.txt", "a.jsonl", "notes.md", ".hidden.txt", "deep/c.csv", ".git/d.txt", "deep/e.txt.gz"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, "x")
        return tmp_path

    def names(self, folder: Path, *patterns: str) -> list[str]:
        files = find_files([str(folder / pattern) for pattern in patterns], "data.path")
        return [str(file.relative_to(folder)) for file in files]

    def test_folders_globs_and_files(self, folder):
        assert self.names(folder, ".") == ["a.jsonl", "b.txt", "deep/c.csv", "deep/e.txt.gz"]
        assert self.names(folder, "*") == ["a.jsonl", "b.txt"]
        assert self.names(folder, "**/*.csv") == ["deep/c.csv"]
        assert self.names(folder, "b.txt", "*.txt") == ["b.txt"]

    def test_a_file_of_several_names_is_one(self, folder, monkeypatch):
        (folder / "link.txt").symlink_to(folder / "b.txt")
        assert self.names(folder, "b.txt", ".") == ["b.txt", "a.jsonl", "deep/c.csv", "deep/e.txt.gz"]
        monkeypatch.chdir(folder)
        assert len(find_files(["b.txt", str(folder / "b.txt"), "deep/../b.txt"], "data.path")) == 1

    def test_folders_behind_links_and_endings_in_capitals(self, folder):
        elsewhere = folder.with_name(folder.name + "-elsewhere")
        for name in ("z.TXT", "y.Jsonl.GZ", "b.md", ".hidden.txt"):
            elsewhere.mkdir(exist_ok=True)
            write(elsewhere / name, "y")
        real = self.names(folder, ".")
        (folder / "again").symlink_to(folder / "deep")
        (folder / "deep" / "loop").symlink_to(folder)
        assert self.names(folder, ".") == real  # in the order that it had
        (folder / "deep" / "a-link").symlink_to(elsewhere)
        (elsewhere / "back").symlink_to(folder)
        assert self.names(folder, ".") == [*real, "deep/a-link/y.Jsonl.GZ", "deep/a-link/z.TXT"]

    @pytest.mark.parametrize(
        ("pattern", "kinds"),
        [
            (".", "2 .md, 1 dangling link(s), 1 .tar.gz, 1 without an ending"),
            ("*", "1 .md, 1 dangling link(s), 1 .tar.gz, 1 without an ending, 1 folder(s)"),
            ("**/*", "2 .md, 1 dangling link(s), 1 .tar.gz, 1 without an ending"),
            ("b.txt", None),
        ],
    )
    def test_what_is_left_out_is_counted_by_its_kind(self, folder, pattern, kinds, caplog):
        for name in ("deep/more.md", "README", "a.tar.gz"):
            write(folder / name, "x")
        (folder / "gone.txt").symlink_to(folder / "nowhere")
        with caplog.at_level("INFO"):
            find_files([str(folder / pattern)], "data.path", says=True)
        found = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
        assert [sorted(each.split(", ")) for each in found] == ([] if kinds is None else [sorted(kinds.split(", "))])

    @pytest.mark.parametrize("pattern", ["none.txt", "*.parquet", "deep/*.jsonl"])
    def test_nothing_found(self, folder, pattern):
        with pytest.raises(ConfigError, match=r"data\.path=.*(no such file|no readable file).*give a file, a folder or a glob"):
            self.names(folder, pattern)

    def test_unknown_format(self, folder):
        with pytest.raises(ValueError, match=r"data\.path=.*notes\.md: unknown format; files must end in \.txt, \.jsonl"):
            self.names(folder, "notes.md")

"""`mlm prepare` builds the token cache once; a training with the same data then finds it."""

from pathlib import Path

import pytest
from test_text_run import write_documents

from mlm_lightning.__main__ import main
from mlm_lightning.data.text.source import TextSource


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    corpus = write_documents(tmp_path / "corpus.txt", seed=0)
    overrides = ["data=text", f"data.path={corpus}", "data.tokenizer=train", "data.vocab_size=200", "data.chunk_size=16"]
    return ["prepare", *overrides, "data.test_size=10", f"data.cache_dir={tmp_path / 'cache'}"]


def state(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.suffix in (".tokens", ".npy", ".json")}


def test_the_second_time_everything_is_there(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    first, files = capsys.readouterr().out, state(tmp_path / "cache")
    assert {path.name for path in files} >= {"train.tokens", "val.tokens", "test.tokens", "meta.json"}
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert state(tmp_path / "cache") == files


def test_further_data_is_prepared_too(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_documents(tmp_path / "other.txt", seed=1)
    assert main(arguments) == 0
    files, alone = state(tmp_path / "cache"), capsys.readouterr().out
    assert main([*arguments, f"eval.data={{other: {{path: '{other}'}}}}"]) == 0
    assert capsys.readouterr().out.startswith(f"{alone}\neval.data.other\n")
    both = state(tmp_path / "cache")
    assert {path: both[path] for path in files} == files
    assert len({path.parent for path in both if path.name == "meta.json"}) == 2


def test_another_chunk_size_needs_no_new_cache(arguments: list[str], tmp_path: Path) -> None:
    assert main(arguments) == 0
    files = state(tmp_path / "cache")
    assert main([*arguments, "data.chunk_size=8"]) == 0
    assert state(tmp_path / "cache") == files


def test_the_table_has_the_numbers_of_the_source_in_80_columns(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    table, _, cache = capsys.readouterr().out.partition("\n\ncache        ")
    (folder,) = (tmp_path / "cache").glob("[!.]*")
    assert Path(cache.rstrip("\n")) == folder
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line[:20].strip(): line[20:].split() for line in lines}
    assert cells[""] == ["train", "val", "test"]
    source = TextSource(
        path=str(tmp_path / "corpus.txt"),
        tokenizer="train",
        vocab_size=200,
        chunk_size=16,
        test_size=10,
        cache_dir=str(tmp_path / "cache"),
    )
    summary = source.summary()
    assert cells["documents"] == ["180", "10", "10"]
    assert cells["tokens"] == [f"{row['tokens']:,}" for row in summary]
    assert cells["rows"] == [f"{len(source.rows(row['split'])):,}" for row in summary]
    assert cells["unknown tokens"] == ["0.00%"] * 3
    assert cells["size"] == [word for row in summary for word in (f"{2 * row['tokens'] / 1e6:.2f}", "MB")]


def test_nothing_else_is_made(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(arguments) == 0
    assert list((tmp_path / "empty").iterdir()) == []


def test_synthetic_data_needs_no_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "data=uniform"]) == 0
    assert "UniformSource" in (printed := capsys.readouterr().out)
    assert "nothing to prepare" in printed
    assert list(tmp_path.iterdir()) == []


def test_documents_that_will_not_do_are_a_mistake(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.txt").write_text("one .\ntwo .\n")
    assert main([*arguments, "data.test_size=null"]) == 2
    errors = capsys.readouterr().err
    assert "data." in errors
    assert "Traceback" not in errors


def test_a_class_in_this_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `mlm train`: the console script does not look here by itself."""
    (tmp_path / "prepared_here.py").write_text(
        "from mlm_lightning.data.languages.uniform import UniformSource\n\n\n"
        "class Mine(UniformSource):\n    def prepare(self, workers=None):\n        print('prepared')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert main(["prepare", "data=uniform", "data._target_=prepared_here.Mine"]) == 0
    assert capsys.readouterr().out.startswith("prepared\n")


def test_rows_are_shown_whole_and_as_the_model_sees_them(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--show", "2", "masking.rate=0.3", "masking.mask_share=1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    whole, seen, predicted = lines[-3:]
    assert whole.startswith("row 1 ")
    assert "[MASK]" not in whole
    assert seen.count("[MASK]") == len(predicted.split()[1:]) // 2 > 0


def test_symbols_and_labels_are_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "data.depth=2", "--show", "1", "masking=single"]) == 0
    *_, whole, seen, predicted = capsys.readouterr().out.split("\n")[:-1]
    symbols = whole.split()[2:]
    position, symbol = predicted.split()[1:]
    assert symbols[int(position)] == symbol
    assert seen.split()[1:] == [*symbols[: int(position)], "[MASK]", *symbols[int(position) + 1 :]]
    assert main(["prepare", "data.depth=2", "--show", "1", "task=classify", "task.label=level_2", "task.node=3"]) == 0
    *_, whole, label = capsys.readouterr().out.split("\n")[:-1]
    assert label.split() == ["label", whole.split()[-1]]
    assert main(["prepare", "data.depth=2", "--show", "-1"]) == 2

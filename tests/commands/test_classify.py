"""Text with labels: from files to a classifier, its predictions, and its folder that transformers opens."""

import csv
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_lightning.__main__ import main
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.commands.export import export
from mlm_lightning.commands.predict import predict
from mlm_lightning.data.text.source import TextSource
from mlm_lightning.errors import ConfigError

WORDS = {
    "sport": "team match goal league player",
    "world": "minister treaty border war vote",
    "tech": "chip software phone data code",
}
TEXT = "the goal in a match"


def documents(number: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    topics = [draw.choice(list(WORDS)) for _ in range(number)]
    words = {topic: f"the a in {of}".split() for topic, of in WORDS.items()}
    return [{"topic": topic, "text": " ".join(draw.choices(words[topic], k=draw.randint(3, 30)))} for topic in topics]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def text(tmp_path: Path) -> tuple[str, ...]:
    """Overrides: labelled text, a small model."""
    train, val = (write(tmp_path / f"{name}.jsonl", documents(n, n)) for name, n in (("train", 200), ("val", 60)))
    return (
        *("data=text", f"data.path={train}", f"data.val_path={val}", "data.tokenizer=train", "data.vocab_size=60"),
        *("data.packing=document", "data.chunk_size=16", "data.batch_size=16", f"data.cache_dir={tmp_path / 'cache'}"),
        *("trainer.accelerator=cpu", "trainer.max_steps=60", "trainer.val_check_interval=60", "optim.lr=1e-2"),
        f"output_dir={tmp_path / 'outputs'}",
    )


OURS = ("model.d_model=16", "model.num_layers=1", "model.nhead=2", "model.dim_feedforward=32")
MODERN = ("model=modern", *OURS)
DISTILBERT = ("model=distilbert", "model.config={dim: 16, n_layers: 2, n_heads: 2, hidden_dim: 32}")
LABELS = ("task=classify", "task.label_column=topic")


def run(tmp_path: Path, name: str, *overrides: str) -> Path:
    assert main(["train", *overrides, f"name={name}"]) == 0
    (folder,) = (tmp_path / "outputs" / name).iterdir()
    return folder


@pytest.mark.parametrize("model", [OURS, MODERN, DISTILBERT], ids=["ours", "modern", "distilbert"])
def test_from_scratch_to_a_folder_that_others_open(text: tuple[str, ...], tmp_path: Path, model: tuple[str, ...]) -> None:
    folder = run(tmp_path, "scratch", *text, *LABELS, *model)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val/accuracy"] > 0.6
    assert summary["val/macro_f1"] > 0.5
    assert not any("gram" in name or "perplexity" in name for name in summary)
    assert evaluate(str(folder))["val/loss"] == pytest.approx(summary["best/val/loss"], abs=1e-5)
    ((answer,),) = predict(str(folder), [TEXT], top_k=3)
    assert answer["text"] == TEXT
    scores = {each["label"]: each["probability"] for each in answer["predictions"]}
    assert set(scores) == set(WORDS)
    assert answer["predictions"][0]["label"] == "sport"

    shutil.move(str(export(str(folder), tmp_path / "made")), tmp_path / "moved")
    ((again,),) = predict(str(tmp_path / "moved"), [TEXT], top_k=3)
    assert {each["label"]: each["probability"] for each in again["predictions"]} == pytest.approx(scores, abs=1e-6)
    if model is OURS:  # of which transformers has no such architecture
        return
    from transformers import pipeline

    (found,) = pipeline("text-classification", str(tmp_path / "moved"), top_k=None)([TEXT])
    assert {each["label"]: each["score"] for each in found} == pytest.approx(scores, abs=1e-6)


def test_from_a_pretrained_run(text: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = run(tmp_path, "parent", *text, *DISTILBERT)
    folder = run(tmp_path, "fine", *text, *DISTILBERT, *LABELS, f"init.from_run={parent}", "init.freeze=encoder")
    weights = [torch.load(each / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for each in (parent, folder)]
    encoder = [name for name in weights[0] if ".distilbert." in name]
    assert len(encoder) > 20
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in encoder)
    assert main(["predict", str(folder), TEXT]) == 0
    assert "sport 0." in capsys.readouterr().out


def source(path: Path | None, tmp_path: Path, **changed: Any) -> TextSource:
    arguments = {"path": path and str(path), "val_size": 0, "tokenizer": "train", "vocab_size": 60, "packing": "document"}
    made = TextSource(**arguments | {"cache_dir": str(tmp_path / "cache"), "label_column": "topic"} | changed)
    made.prepare()
    return made


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_document_keeps_its_label(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlm_lightning.data.text.documents.base.SHARD_BYTES", 2_000)
    rows = documents(300, 1)
    rows[7]["text"], rows[20]["text"], rows[33]["topic"] = "", "   ", ""
    made = source(write(tmp_path / f"news.{ending}", rows), tmp_path, val_size=40, deduplicate=True)
    kept = {" ".join(row["text"].split()): row["topic"] for row in rows if row["text"].strip() and row["topic"]}
    names = made.classes("topic", 0)
    assert names == ("sport", "tech", "world")
    tokenizer = made.vocab.tokens
    assert tokenizer is not None
    seen = 0
    for split in ("train", "val"):
        labels, index = made.labels(split, "topic", 0), torch.arange(len(made.rows(split)))  # type: ignore[arg-type]
        tokens_BL, mask_BL = made.rows(split)[index]  # type: ignore[index]
        for row, label in enumerate(labels(index).tolist()):
            words = [tokenizer[i] for i in tokens_BL[row][mask_BL[row].bool()].tolist()]
            start = " ".join(words[1:-1]).replace(" ##", "")
            topics = {topic for text, topic in kept.items() if text.startswith(start)}
            assert names[label] in topics
            seen += 1
    assert seen == len(kept)


def test_classes_that_are_given_and_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"word {i % 12}", "topic": i % 12} for i in range(60)]
    file = write(tmp_path / "numbers.jsonl", rows)
    assert source(file, tmp_path).classes("topic", 0) == tuple(map(str, range(12)))
    order = [str(i) for i in reversed(range(12))]
    made = source(file, tmp_path, class_names=order)
    assert made.labels("train", "topic", 0)(torch.arange(5)).tolist() == [11, 10, 9, 8, 7]
    with pytest.raises(ConfigError, match=r"task\.classes=.*label '11'"):
        source(file, tmp_path, class_names=order[1:]).classes("topic", 0)


def test_equal_numbers_are_one_class_whatever_they_are_written_as(tmp_path: Path) -> None:
    written = [0, 0.0, "0", 1e1, 10, "0.5", 0.5, "007", "7", True, "x"]
    rows = [{"text": f"word {i % 12}", "topic": written[i % len(written)]} for i in range(66)]
    made = source(write(tmp_path / "numbers.jsonl", rows), tmp_path)
    names = made.classes("topic", 0)
    assert names == ("0", "007", "7", "10", "0.5", "True", "x")
    expected = [names.index(each) for each in ("0", "0", "0", "10", "10", "0.5", "0.5", "007", "7", "True", "x")]
    assert made.labels("train", "topic", 0)(torch.arange(66)).tolist() == expected * 6
    assert made.fingerprint().endswith("-2")
    given = source(tmp_path / "numbers.jsonl", tmp_path, class_names=["0.0", "1e1", "0.5", "7", "007", "True", "x"])
    assert given.labels("train", "topic", 0)(torch.arange(5)).tolist() == [0, 0, 0, 1, 1]

    floats = [{"text": f"word {i % 12}", "topic": float(i % 12)} for i in range(60)]
    alike = source(write(tmp_path / "floats.jsonl", floats), tmp_path)
    assert alike.classes("topic", 0) == tuple(sorted(f"{i}.0" for i in range(12)))  # as in an earlier version
    assert not alike.fingerprint().endswith("-2")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_labels_that_are_missing_or_none(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"word {i % 12}", "topic": [1.0, None, math.nan, 2.0][i % 4]} for i in range(60)]
    made = source(write(tmp_path / f"nan.{ending}", rows), tmp_path)
    assert made.classes("topic", 0) == ("1.0", "2.0")
    assert len(made.rows("train")) == 30  # type: ignore[arg-type]
    where = "row" if ending == "parquet" else "line"
    assert [each.partition(": ")[0] for each in made.warnings] == [
        "15 row(s) skipped that have no label",
        "15 row(s) skipped whose label is NaN",
    ]
    assert f"nan.{ending} {where} 3," in made.warnings[1]
    lists = [{"text": f"word {i}", "topic": ["a"]} for i in range(9)]
    with pytest.raises(ConfigError, match=rf"task\.label_column=topic: 9 row.* a list or a mapping: .*\.{ending} {where} 1,"):
        source(write(tmp_path / f"lists.{ending}", lists), tmp_path, label_column="topic")


def test_missing_labels_of_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write(folder / "train.parquet", [{"text": f"word {i}", "topic": [1.0, math.nan, 2.0][i % 3]} for i in range(60)])
    made = source(None, tmp_path, dataset=str(folder))
    assert made.classes("topic", 0) == ("1.0", "2.0")
    assert len(made.rows("train")) == 40  # type: ignore[arg-type]
    assert made.warnings[0].startswith("20 row(s) skipped whose label is NaN")


def test_a_run_whose_labels_were_read_otherwise_is_refused(
    text: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"word {i % 12} and another", "topic": [0, 0.0, 1, "1"][i % 4]} for i in range(60)]
    file = write(tmp_path / "numbers.jsonl", rows)
    others = [each for each in text if not each.startswith(("data.path", "data.val_path", "trainer.max", "trainer.val"))]
    command = [*others, f"data.path={file}", *OURS, *LABELS, "trainer.max_steps=2", "trainer.val_check_interval=2"]
    folder = run(tmp_path, "numbers", *command)
    manifest = json.loads((folder / "manifest.json").read_text())
    before = manifest["data"].removesuffix("-2")
    assert before != manifest["data"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"data": before}))
    assert main(["train", *command, "name=numbers"]) == 2
    assert "is complete, but the reading of text was mended since" in capsys.readouterr().err

    made = source(file, tmp_path)
    now = made.expected_fingerprint()
    assert made.mended_since({now.removesuffix("-2")})
    assert not made.mended_since({now})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.packing=chunk"], "data.packing=chunk"),
        (["task.label_column=topik"], "task.label_column"),
        (["task.label_column=null", "task.label=root"], "task.label=root"),
        (["masking.rate=0.3"], "masking.rate=0.3"),
        (["masking=single"], "masking=single"),
        (["task.classes=[sport,world]"], "task.classes"),
        (["data.label_column=topic"], "data.label_column"),
        (["task.lable=root"], "task.lable"),
    ],
)
def test_mistakes(
    text: tuple[str, ...], tmp_path: Path, overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *text, *OURS, *LABELS, *overrides]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_txt_files_have_no_labels(text: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain.txt").write_text("one line\nanother line\n")
    assert main(["train", *text, *LABELS, f"data.path={tmp_path / 'plain.txt'}", "data.val_path=null"]) == 2
    assert "no columns" in capsys.readouterr().err
    assert main(["train", *LABELS]) == 2
    assert "TreeSource has no columns" in capsys.readouterr().err


def test_a_dataset_with_named_labels(tmp_path: Path) -> None:
    import datasets

    names = ["neg", "pos"]
    features = datasets.Features({"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=names)})

    def rows(number: int) -> dict[str, list[Any]]:
        return {"text": [f"good {i}" for i in range(number)], "topic": [i % 2 for i in range(number)]}

    for split, number in (("train", 20), ("test", 6)):
        datasets.Dataset.from_dict(rows(number), features=features).to_parquet(str(tmp_path / "hub" / f"{split}.parquet"))
    made = source(None, tmp_path, dataset=str(tmp_path / "hub"), val_split="test", val_size=None)
    assert made.classes("topic", 0) == ("neg", "pos")
    assert made.labels("val", "topic", 0)(torch.arange(6)).tolist() == [0, 1, 0, 1, 0, 1]

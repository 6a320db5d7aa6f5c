"""The ONNX of a model computes what torch does, for any number of rows and any length."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed
from helpers import run_of, train
from test_text_run import DISTILBERT, TRANSFORMER, trained
from torch import nn

from mlm_lightning.__main__ import main
from mlm_lightning.commands.export import export
from mlm_lightning.runs.load import load_run


def test_a_missing_package_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", str(tmp_path / "no run"), str(tmp_path / "there"), "--onnx"]) == 2
    errors = capsys.readouterr().err
    assert "--onnx: needs onnx: pip install 'mlm-lightning[onnx]'" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", params=["synthetic", "transformer", "distilbert", "documents apart"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("run")
    if request.param != "synthetic":
        packing = ("data.packing=sentence_pack",) if request.param == "documents apart" else ()
        return trained(folder, *(DISTILBERT if request.param == "distilbert" else TRANSFORMER), *packing).folder
    config = composed(f"output_dir={folder / 'outputs'}")
    train(config)
    return str(run_of(config).folder)


def opened(folder: Path | str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"))


def test_logits_are_those_of_torch(run: str, tmp_path: Path) -> None:
    session, loaded = opened(export(run, tmp_path / "there", onnx=True)), load_run(tmp_path / "there")
    assert loaded.seq_len is not None
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    for rows, length in ((1, loaded.seq_len), (2, loaded.seq_len), (7, loaded.seq_len), (3, 1), (1, 2), (5, 3)):
        input_ids = torch.randint(0, loaded.vocab.size, (rows, length), generator=torch.Generator().manual_seed(length))
        attention_mask = torch.ones_like(input_ids)
        attention_mask[0, length // 2 + 1 :] = 0
        if loaded.model.separate_documents:
            attention_mask[-1, length // 2 :] = 2
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        (logits_BLV,) = session.run(["logits"], inputs)
        with torch.no_grad():
            expected_BLV = loaded.model(input_ids, attention_mask)
        assert logits_BLV.shape == (rows, length, loaded.vocab.size)
        assert (torch.tensor(logits_BLV) - expected_BLV).abs().max() < 1e-4


def test_the_file_names_no_place_of_this_machine(run: str, tmp_path: Path) -> None:
    content = (Path(export(run, tmp_path / "there", onnx=True)) / "model.onnx").read_bytes()
    for place in (run, Path(__file__).parents[1], Path(torch.__file__).parent, Path.home(), Path.cwd()):
        assert str(place).encode() not in content


class FixedLength(nn.Module):
    """Its forward pass is made for rows of `seq_len`."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.mix = nn.Linear(seq_len, seq_len)
        self.head = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: Any = None, positions_BK: Any = None) -> torch.Tensor:
        logits_BLV = self.mix(self.head(input_ids_BL).mT).mT
        return (
            logits_BLV
            if positions_BK is None
            else logits_BLV.gather(1, positions_BK[..., None].expand(-1, -1, logits_BLV.shape[-1]))
        )


class Untraceable(FixedLength):
    """What it computes is decided in Python, by its input."""

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: Any = None, positions_BK: Any = None) -> torch.Tensor:
        sign = -1 if int(input_ids_BL.sum()) % 3 == 1 else 1
        return sign * super().forward(input_ids_BL, attention_mask_BL, positions_BK)


def own(tmp_path: Path, model: type[nn.Module]) -> str:
    config = composed(f"output_dir={tmp_path / 'outputs'}")
    config["model"] = {"_target_": f"{__name__}.{model.__name__}"}
    train(config)
    return str(run_of(config).folder)


def test_a_model_of_one_length_is_exported_for_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    there = export(own(tmp_path, FixedLength), tmp_path / "there", trust=True, onnx=True)
    session, loaded = opened(there), load_run(there, trust=True)
    for rows in (1, 6):
        input_ids = torch.randint(0, 4, (rows, 4), generator=torch.Generator().manual_seed(rows))
        inputs = {each.name: input_ids.numpy() for each in session.get_inputs()}
        with torch.no_grad():
            expected_BLV = loaded.model(input_ids)
        assert (torch.tensor(session.run(["logits"], inputs)[0]) - expected_BLV).abs().max() < 1e-4
    assert "--trust" in (Path(there) / "README.md").read_text()


def test_a_model_that_cannot_be_followed_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    run = own(tmp_path, Untraceable)
    assert main(["export", run, str(tmp_path / "there"), "--trust", "--onnx"]) == 2
    errors = capsys.readouterr().err
    assert "torch.export can't follow this model" in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]

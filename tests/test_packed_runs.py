"""Runs whose rows pack documents: trained, evaluated and asked as if each document had a row of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import composed
from helpers import problems, run_of, settings_of, train
from torch import Tensor, nn

from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.commands.evaluate import evaluate
from mlm_lightning.commands.predict import predict
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.source import Rows, Source, Split
from mlm_lightning.errors import UserError
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.load import load_run

Q, L, PAD = 5, 12, 6


class PackedDocuments(Source):
    """Rows of three documents, of 3, 4 and 4 symbols that count upwards, and one position of padding; or, unpacked, a document
    of 4 a row."""

    def __init__(self, packed: bool = True) -> None:
        self.packed = packed

    @property
    def vocab(self) -> Vocab:
        return Vocab(Q + 2, mask_id=Q, pad_id=PAD)

    @property
    def seq_len(self) -> int:
        return L

    @property
    def packs_documents(self) -> bool:
        return self.packed

    def rows(self, split: Split) -> Rows:
        return _Rows(self.packed)


class _Rows:
    def __init__(self, packed: bool) -> None:
        self.mask_L = torch.tensor([1] * 3 + [2] * 4 + [3] * 4 + [0] if packed else [1] * 4 + [0] * 8)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index_B: Tensor) -> tuple[Tensor, Tensor]:
        mask_BL = self.mask_L.expand(len(index_B), -1).clone()
        tokens_BL = (index_B[:, None] * 3 + mask_BL * index_B[:, None] + torch.arange(L)) % Q
        return tokens_BL.masked_fill(mask_BL == 0, PAD), mask_BL


class PlainModel(nn.Module):
    """A user's model that knows nothing of documents."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, vocab_size)

    def forward(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor | None = None, positions_BK: Tensor | None = None
    ) -> Tensor:
        logits_BLV = self.embedding(input_ids_BL)
        if positions_BK is None:
            return logits_BLV
        return logits_BLV.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, logits_BLV.shape[-1]))


class DocumentModel(PlainModel):
    """A user's model that keeps documents apart, as far as it says."""

    def __init__(self, vocab_size: int, seq_len: int, separate_documents: bool = False) -> None:
        super().__init__(vocab_size, seq_len)
        self.told = separate_documents


def config(folder: Path, data: dict[str, Any] | None = None, **nodes: Any) -> dict[str, Any]:
    base = composed(f"output_dir={folder / 'outputs'}", "masking.rate=0.4", "optim.lr=0.01", "trainer.max_steps=30")
    loader = {name: base["data"][name] for name in ("batch_size", "num_workers")}
    return base | {"data": loader | {"_target_": "test_packed_runs.PackedDocuments"} | (data or {}), **nodes}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = config(tmp_path_factory.mktemp("packed"))
    train(settings)
    return run_of(settings)


def test_tokens_are_counted_and_documents_are_not(run: Run) -> None:
    assert run.summary is not None
    assert run.summary["tokens"] == 30 * 16 * (L - 1)


def test_evaluation_repeats_the_runs_own(run: Run) -> None:
    assert run.summary is not None
    again = evaluate(str(run.checkpoints / "last.ckpt"), trust=True)
    for name in ("val/loss", "val/accuracy"):
        assert again[name] == pytest.approx(run.summary[name], abs=1e-6)


def test_a_run_opened_again_keeps_documents_apart(run: Run) -> None:
    model = load_run(run.folder).model
    assert isinstance(model, TransformerClassifier)
    tokens_BL, mask_BL = PackedDocuments().rows("val")[torch.arange(5)]
    logits_BLV = model(tokens_BL, mask_BL)
    for number in (1, 2, 3):
        lone_BLV = model(tokens_BL[:, mask_BL[0] == number])
        torch.testing.assert_close(logits_BLV[:, mask_BL[0] == number], lone_BLV, atol=1e-5, rtol=0)
    description = json.loads((run.folder / "model.json").read_text())
    assert description["separate_documents"] is True


def test_a_run_of_an_earlier_version_keeps_documents_apart(run: Run, tmp_path: Path) -> None:
    """Its model.json names no argument of the model, but a method that was called on it."""
    folder = shutil.copytree(run.folder, tmp_path / "run")
    description = json.loads((folder / "model.json").read_text())
    description["separates_documents"] = description.pop("separate_documents")
    (folder / "model.json").write_text(json.dumps(description))
    tokens_BL, mask_BL = PackedDocuments().rows("val")[torch.arange(5)]
    torch.testing.assert_close(
        load_run(folder).model(tokens_BL, mask_BL), load_run(run.folder).model(tokens_BL, mask_BL), rtol=0, atol=0
    )
    assert load_run(folder).model.separate_documents  # type: ignore[union-attr]


def test_a_single_text_is_one_document(run: Run) -> None:
    text = "0 1 _ 3 4 0 1 _ 3 4 0 1"
    ids_1L = torch.tensor([[Q if word == "_" else int(word) for word in text.split()]])
    probs_LV = load_run(run.folder).model(ids_1L)[0].softmax(-1)
    (masks,) = predict(str(run.folder), [text], top_k=1)
    for mask in masks:
        best = mask["predictions"][0]
        assert best["probability"] == pytest.approx(probs_LV[mask["position"]].max().item(), abs=1e-5)


def test_without_packing_nothing_is_said_of_it(tmp_path: Path) -> None:
    settings = config(tmp_path, {"packed": False}) | {"name": "plain"}
    settings["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    summary = train(settings)
    assert summary["tokens"] == 2 * 16 * 4
    run = run_of(settings)
    assert "separate_documents" not in json.loads((run.folder / "model.json").read_text())
    loaded = load_run(run.folder)
    assert not loaded.model.separate_documents  # type: ignore[union-attr]


def test_a_run_without_packing_is_evaluated_on_packed_rows(tmp_path: Path) -> None:
    settings = config(tmp_path, {"packed": False})
    settings["trainer"] |= {"max_steps": 10, "val_check_interval": 10}
    train(settings)
    run = run_of(settings)
    loss = evaluate(str(run.folder), ["data.packed=true"], trust=True)["val/loss"]

    module = MLMDataModule(PackedDocuments(), settings_of(settings).masking.instance, batch_size=40)
    batch = module.eval_batches("val", module.conditions[0])[0]
    loss_sum = predicted = 0.0
    for number, length in ((1, 3), (2, 4), (3, 4)):
        of_document_BL = batch.attention_mask_BL == number
        logits_BLV = load_run(run.folder).model(batch.input_ids_BL[of_document_BL].view(40, length))
        labels_BL = batch.labels_BL[of_document_BL].view(40, length)
        loss_sum += F.cross_entropy(logits_BLV.flatten(0, 1), labels_BL.flatten(), reduction="sum").item()
        predicted += int((labels_BL != IGNORE_INDEX).sum())
    assert loss == pytest.approx(loss_sum / predicted, abs=1e-5)


# refused before anything is on disk

WITHOUT = {"_target_": "test_packed_runs.PlainModel"}
REFUSED = {
    "own": (WITHOUT, "data.packing=sentence_pack: the model PlainModel cannot keep documents apart"),
    "architecture": (
        {"_target_": "mlm_lightning.models.pretrained.PretrainedMLM", "architecture": "deberta-v2"},
        "data.packing=sentence_pack: deberta-v2 models cannot keep documents apart",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_is_refused_by_the_check(case: str, tmp_path: Path) -> None:
    model, message = REFUSED[case]
    settings = config(tmp_path, model=model)
    (problem,) = problems(settings)
    assert problem.startswith(message)
    assert "; choose data.packing=chunk or document, or model=transformer" in problem
    with pytest.raises(UserError, match="cannot keep documents apart"):
        train(settings)
    assert not (tmp_path / "outputs").exists()
    assert problems(config(tmp_path, {"packed": False}, model=model)) == []


def test_it_is_refused_for_further_data_too(tmp_path: Path) -> None:
    settings = config(tmp_path, {"packed": False}, model=WITHOUT)
    settings["eval"]["data"] = {"packed": {"packed": True}}
    (problem,) = problems(settings)
    assert problem.startswith(REFUSED["own"][1])


def test_evaluation_on_packed_rows_refuses_such_a_model(tmp_path: Path) -> None:
    settings = config(tmp_path, {"packed": False}, model=WITHOUT)
    settings["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    train(settings)
    with pytest.raises(UserError, match="PlainModel cannot keep documents apart"):
        evaluate(str(run_of(settings).folder), ["data.packed=true"], trust=True)


def test_a_users_model_is_told(tmp_path: Path) -> None:
    settings = config(tmp_path, model={"_target_": "test_packed_runs.DocumentModel"})
    settings["trainer"] |= {"max_steps": 1, "val_check_interval": 1}
    assert problems(settings) == []
    train(settings)
    model = load_run(run_of(settings).folder, trust=True).model
    assert isinstance(model, DocumentModel)
    assert model.told is True

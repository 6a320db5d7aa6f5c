"""Matrix work is that of the formula; the share of peak comes with runs that are long enough to measure it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_of, train
from torch import nn

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.training.callbacks import throughput
from mlm_lightning.training.limit import matrix_peak, matrix_work, peak_memory_gb

Toy = Callable[..., dict[str, Any]]
B, L, V, D, F, LAYERS, PLACES = 6, 20, 30, 8, 24, 3, 4


def batch(widest: int = PLACES) -> MLMBatch:
    """PLACES predictions a row in the mean, and up to `widest` in one."""
    counts = [widest, *[PLACES] * (B - 2), 2 * PLACES - widest]
    is_predicted_BL = torch.arange(L) < torch.tensor(counts).unsqueeze(1)
    ids_BL = torch.randint(V, (B, L))
    labels_BL = ids_BL.masked_fill(~is_predicted_BL, IGNORE_INDEX)
    return MLMBatch(ids_BL, labels_BL, None, torch.arange(widest).expand(B, widest), torch.arange(B))


@pytest.mark.parametrize("widest", [PLACES, PLACES + 3])
def test_the_work_is_that_of_the_formula(widest: int) -> None:
    model = TransformerClassifier(V, L, d_model=D, nhead=2, num_layers=LAYERS, dim_feedforward=F)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    # of a position: queries, keys, values, out, the two of the feed-forward network; of a query: scores and sums
    per_layer = B * (L * 2 * (4 * D * D + 2 * D * F) + L * 2 * 2 * L * D)
    last_layer = B * (L * 2 * 2 * D * D + PLACES * 2 * (2 * D * D + 2 * D * F) + PLACES * 2 * 2 * L * D)
    decoder = sum(B * PLACES * 2 * m.in_features * m.out_features for m in model.decoder.modules() if isinstance(m, nn.Linear))
    forward = (LAYERS - 1) * per_layer + last_layer + decoder
    assert matrix_work(model, batch(widest)) == pytest.approx(3 * forward, rel=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_a_rate_and_leaves_random_numbers_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert 1e8 < matrix_peak(torch.device("cpu"), dtype) < 1e15
    assert torch.equal(torch.rand(3), expected)


def test_memory_is_what_the_process_has_held() -> None:
    before = peak_memory_gb(torch.device("cpu"))["peak_memory_gb"]
    torch.ones(int((before + 0.1) * 1e9 / 4))
    assert peak_memory_gb(torch.device("cpu"))["peak_memory_gb"] > before + 0.05


@pytest.mark.parametrize("after", [0.0, 1e9])
def test_runs_of_more_than_some_seconds_log_their_share(toy: Toy, monkeypatch: pytest.MonkeyPatch, after: float) -> None:
    monkeypatch.setattr(throughput, "_MEASURED_AFTER", after)
    config = toy("trainer.log_every_n_steps=2", "trainer.accumulate_grad_batches=2")
    train(config)
    with (run_of(config).folder / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line.get("perf/step_seconds")]
    assert lines
    for line in lines:
        assert float(line["perf/peak_memory_gb"]) > 0.1
        assert ("perf/share_of_peak" in line) == (after == 0)
        assert after or 0 < float(line["perf/share_of_peak"]) < 1


def test_measuring_leaves_the_run_as_it_is_and_follows_rows_that_grow(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def work(model: nn.Module, batch: MLMBatch) -> float:
        seen.append(batch.input_ids_BL.shape[1])
        return matrix_work(model, batch)

    monkeypatch.setattr(throughput, "matrix_work", work)
    growing = "data.depth=4", "data.length_schedule={start: 8, steps: 0.5}", "model.dropout=0.1", "trainer.log_every_n_steps=1"
    weights = []
    for after in (0.0, 1e9):
        monkeypatch.setattr(throughput, "_MEASURED_AFTER", after)
        config = toy(*growing, f"output_dir={tmp_path / str(after)}")
        train(config)
        weights.append(torch.load(run_of(config).checkpoints / "last.ckpt", weights_only=True)["state_dict"])
    assert seen == [8, 16]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())

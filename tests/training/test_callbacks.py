"""What the callbacks show, and what stays as it was for the folders of earlier versions."""

import pytest
import torch

from mlm_lightning.batch import IGNORE_INDEX, MLMBatch
from mlm_lightning.errors import ConfigError
from mlm_lightning.training.callbacks.checkpoint import Checkpoint
from mlm_lightning.training.callbacks.samples import Samples, posteriors_as_image
from mlm_lightning.training.callbacks.throughput import Throughput


def test_the_image_has_the_model_left_and_the_oracle_right() -> None:
    """
    row 0: two masked positions, row 1: one; a vocabulary of three

        model | oracle
        ──────┼───────      a line a masked position
        ──────┼───────
        grey
        ──────┼───────
    """
    labels_BK = torch.tensor([[2, IGNORE_INDEX, 0], [IGNORE_INDEX, 1, IGNORE_INDEX]])
    positions_BK = torch.tensor([[0, 1, 2], [0, 1, 2]])
    labels_BL = torch.full((2, 3), IGNORE_INDEX).scatter(1, positions_BK, labels_BK)
    batch = MLMBatch(torch.zeros(2, 3, dtype=torch.int64), labels_BL, None, positions_BK, torch.arange(2))
    draw = torch.Generator().manual_seed(0)
    model_BKV, oracle_BKV = (torch.rand(2, 3, 3, generator=draw).softmax(-1) for _ in range(2))
    image_HW = posteriors_as_image(batch, model_BKV, oracle_BKV.double(), size=2)
    assert image_HW.shape == (2 * 4, 2 * 7)
    squares = image_HW[::2, ::2]
    assert torch.equal(squares, image_HW[1::2, 1::2])
    lines = [(0, 0), (0, 2), None, (1, 1)]
    for line, place in zip(squares, lines, strict=True):
        if place is None:
            assert torch.equal(line, torch.full((7,), 0.5))
        else:
            assert torch.equal(line[:3], model_BKV[place])
            assert torch.equal(line[4:], oracle_BKV[place])
            assert line[3] == 0.5


def test_old_checkpoints_find_their_callbacks() -> None:
    """By these keys their state is stored; another name of the class would start it anew."""
    assert [callback.state_key for callback in (Checkpoint("checkpoints"), Throughput())] == ["Checkpoint", "Throughput"]


def test_what_is_out_of_range_is_refused_with_its_key() -> None:
    for name, value in (("every_n_train_steps", 0), ("every_minutes", 0.0), ("every_n_epochs", -1)):
        with pytest.raises(
            ConfigError, match=rf"callbacks\.checkpoint\.{name}={value}: must be (at least 1|above 0); null is never"
        ):
            Checkpoint("checkpoints", **{name: value})
    with pytest.raises(ConfigError, match=r"callbacks\.samples\.num_rows=0: must be at least 1"):
        Samples(num_rows=0)

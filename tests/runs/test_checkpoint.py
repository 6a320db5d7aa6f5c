"""A checkpoint is what was written, or it is refused; nothing in it is executed."""

import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm_lightning.runs.checkpoint import (
    STATE,
    DamagedCheckpointError,
    differences,
    read_checkpoint,
    write_checkpoint,
)

CHECKPOINT = {
    "state_dict": {"weight": torch.arange(5000.0)},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5000)}}}],
    "global_step": 7,
    STATE: {"record": {"config": {"seed": 0, "name": "é"}}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "last.ckpt", CHECKPOINT)
    return tmp_path / "last.ckpt"


def test_what_was_written_is_read_by_us_and_by_torch_alone(path: Path) -> None:
    for read in (read_checkpoint(path, sealed=True), torch.load(path, weights_only=True)):
        assert read[STATE] == CHECKPOINT[STATE]
        assert torch.equal(read["state_dict"]["weight"], torch.arange(5000.0))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_every_single_flipped_bit_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    draw = random.Random(0)
    everywhere = [draw.randrange(len(whole)) for _ in range(60)] + list(range(len(whole) - 90, len(whole)))
    for offset in everywhere:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path, sealed=True)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", bytes(10_000), b"not a checkpoint at all " * 100])
def test_another_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(path, sealed=True)


def test_a_torch_file_without_weights_or_without_a_seal_is_refused(path: Path) -> None:
    torch.save(CHECKPOINT, path)
    with pytest.raises(DamagedCheckpointError, match="cut off"):
        read_checkpoint(path, sealed=True)
    assert read_checkpoint(path)["global_step"] == 7  # to look at, not to continue
    write_checkpoint(path, {"a": 1})
    with pytest.raises(DamagedCheckpointError, match="no weights"):
        read_checkpoint(path)
    with pytest.raises(DamagedCheckpointError, match="No such file"):
        read_checkpoint(path.with_name("missing.ckpt"))


class Planted:
    """Unpickled, it runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_hostile_checkpoint_executes_nothing(path: Path, tmp_path: Path) -> None:
    bait = tmp_path / "executed"
    hostile = CHECKPOINT | {"planted": Planted(f"touch {bait}")}
    write_checkpoint(path, hostile)  # its seal is whole
    with pytest.raises(DamagedCheckpointError, match="no checkpoint"):
        read_checkpoint(path, sealed=True)
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(path)
    assert not bait.exists()
    torch.load(io.BytesIO(_saved(hostile)), weights_only=False)  # the bait works
    assert bait.exists()


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_why_the_disk_refused_is_passed_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    class FullDisk(io.BytesIO):
        def write(self, part: Any) -> int:
            raise OSError(28, "No space left on device")

    def full(self: Path, mode: str) -> io.BytesIO:
        return FullDisk()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(path, CHECKPOINT)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_differences_name_the_keys_and_both_values() -> None:
    before = {"seed": 0, "optim": {"lr": 0.1, "betas": [0.9, 0.99]}, "callbacks": {}}
    now = {"seed": 0, "optim": {"lr": 0.2, "betas": [0.9, 0.99]}, "callbacks": {"early_stopping": {"patience": 5}}}
    assert differences(before, before) == []
    assert differences(before, now) == [
        "callbacks: {} → not set",
        "callbacks.early_stopping.patience: not set → 5",
        "optim.lr: 0.1 → 0.2",
    ]

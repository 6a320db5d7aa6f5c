"""What the training process is doing, readable from outside: one word, always in the same place of a small file.

    … train ─ validation ─ train ─ save ─ train … ─ end

A killer reads the word to choose its moment; what it reads after the kill is where the process died.
"""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

PHASES = ("train", "validation", "save")
"""Those to be killed in. `save` is from the assembling of a checkpoint to the next batch: the file, its renames, its links."""

_WIDTH = max(len(phase) for phase in PHASES)


def write_phase(file: Path, phase: str) -> None:
    file.write_bytes(_word(phase))


def read_phase(file: Path) -> str:
    return file.read_bytes().decode().strip()


def _word(phase: str) -> bytes:
    # of one width: a single write replaces the word before it, so that no reader meets a mixture
    return phase.encode().ljust(_WIDTH)


class Phases(Callback):
    """Writes the present phase into `file`: a system call each time, and no state in checkpoints."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._descriptor: int | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._write("train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write("validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # checkpoint callbacks come after all others: what they save after the validation is "save"
        self._write("train")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write("save")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write("end")

    def _write(self, phase: str) -> None:
        if self._descriptor is None:
            # never closed: a process is killed, or ends
            self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._descriptor, _word(phase), 0)

"""A model as ONNX, by torch.export: for those who have neither torch nor this package.

input_ids_BL, attention_mask_BL (int64) ─► logits_BLV (float32), for any number of rows and any length up to that of training
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlm_lightning.errors import UserError, one_line
from mlm_lightning.runs.load import LoadedRun

INPUTS = ("input_ids", "attention_mask")

log = logging.getLogger(__name__)


class _AllPositions(nn.Module):
    """The model with the names that its inputs get."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask)


def check_onnx() -> None:
    """Raises UserError where the packages are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx: needs {error.name}: pip install 'mlm-lightning[onnx]'") from error


def write_onnx(loaded: LoadedRun, file: Path) -> None:
    """Writes the model; UserError where torch.export can't follow it."""
    with _quiet():
        program = _exported(loaded)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where each operation stands in the source, in folders of this machine
    program.save(str(file))


def _exported(loaded: LoadedRun) -> Any:
    """With rows of any length, where the model allows it."""
    model, length = _AllPositions(loaded.model).eval(), loaded.seq_len or 8
    input_ids = torch.full((2, length), loaded.vocab.mask_id)
    rows, positions = torch.export.Dim("rows"), torch.export.Dim("length", max=length)
    choices: list[dict[int, Any]] = [{0: rows, 1: positions}, {0: rows}] if length > 1 else [{0: rows}]
    for dimensions in choices:
        try:
            return torch.onnx.export(
                model,
                (input_ids, torch.ones_like(input_ids)),
                dynamo=True,
                input_names=INPUTS,
                output_names=("logits",),
                dynamic_shapes=dict.fromkeys(INPUTS, dimensions),
                verbose=False,
            )
        except Exception as error:  # whatever a model does that can't be followed
            reason = error
            if dimensions is not choices[-1]:
                log.info("torch.export wants rows of one length for this model: %s", length)
    raise UserError(
        f"--onnx: torch.export can't follow this model ({one_line(reason.__cause__ or reason)}); export it without --onnx"
    ) from reason


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on operators that nobody asked for."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)

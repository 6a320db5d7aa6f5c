"""What the model predicts, to look at."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX, Vocab
from mlm_lightning.tasks import Classify
from mlm_lightning.training.compiled import eagerly
from mlm_lightning.training.module import MLMModule
from mlm_lightning.values import checked


class Samples(Callback):
    """Shows the first `num_rows` validation rows in TensorBoard after each validation: as text the input, predictions, truth,
    and the probability that the model gave to the truth. Of labels, also the confusion matrix as an image."""

    MOST_CLASSES = 64  # of the confusion matrix

    @checked("callbacks.samples")
    def __init__(self, num_rows: Annotated[int, Ge(1), "callbacks.samples=null shows none"] = 4) -> None:
        self.num_rows = num_rows

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not boards:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = datamodule.eval_batches("val", datamodule.conditions[0])
        batches.batch_size = min(self.num_rows, len(batches.rows))
        batch = batches[0]
        probs_BKV, vocab, confusion_CC = _probabilities(pl_module, batch), datamodule.source.vocab, pl_module.confusion_CC
        names = pl_module.task.class_names(datamodule.source) if isinstance(pl_module.task, Classify) else ()
        show = partial(labels_as_markdown, names=names) if names else samples_as_markdown
        text = show(batch, probs_BKV, vocab)
        for board in boards:
            board.experiment.add_text("val/samples", text, trainer.global_step)
            if confusion_CC is not None and len(confusion_CC) <= self.MOST_CLASSES:
                image_HWC = confusion_as_image(confusion_CC.cpu(), names)
                board.experiment.add_image("val/confusion", image_HWC, trainer.global_step, dataformats="HWC")


@torch.no_grad()
def _probabilities(module: MLMModule, batch: Any) -> Tensor:
    training = module.training
    module.eval()
    batch = type(batch)(*(None if each is None else each.to(module.device) for each in batch))
    with eagerly(), module.trainer.precision_plugin.forward_context():
        probs_BKV = module(batch).float().softmax(-1).cpu()
    module.train(training)
    return probs_BKV


def samples_as_markdown(batch: Any, probs_BKV: Tensor, vocab: Vocab) -> str:
    """A table a row: the masked input, then position, truth, its probability, and the best prediction with its probability."""
    parts = []
    for row in range(len(batch.input_ids_BL)):
        tokens = [vocab.token(i) for i in batch.input_ids_BL[row].tolist()]
        parts.append(f"**row {int(batch.row_ids_B[row])}**: " + " ".join(f"`{each}`" for each in tokens))
        lines = ["| position | truth | p(truth) | prediction | p(prediction) |", "|---|---|---|---|---|"]
        for k, label in enumerate(batch.labels_BK[row].tolist()):
            if label == IGNORE_INDEX:
                continue
            (probability,), (best,) = (each.tolist() for each in vocab.best(probs_BKV[row, k], 1))
            position, p_truth = int(batch.positions_BK[row, k]), probs_BKV[row, k, label]
            truth, guess = vocab.token(label), vocab.token(best)
            lines.append(f"| {position} | `{truth}` | {p_truth:.3f} | `{guess}` | {probability:.3f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def labels_as_markdown(batch: Any, probs_BKV: Tensor, vocab: Vocab, names: Sequence[str]) -> str:
    """A row a line: the input, the truth, its probability, and the best prediction with its probability."""
    lines = ["| row | input | truth | p(truth) | prediction | p(prediction) |", "|---|---|---|---|---|---|"]
    for row, label in enumerate(batch.labels_B.tolist()):
        if label != IGNORE_INDEX:
            tokens = " ".join(map(vocab.token, batch.input_ids_BL[row].tolist()))
            probability, best = probs_BKV[row, 0].max(-1)
            truth = f"`{names[label]}` | {probs_BKV[row, 0, label]:.3f}"
            lines.append(f"| {int(batch.row_ids_B[row])} | `{tokens}` | {truth} | `{names[int(best)]}` | {probability:.3f} |")
    return "\n".join(lines)


def confusion_as_image(confusion_CC: Tensor, names: Sequence[str]) -> Tensor:
    """`image_HWC`: a line is a class, and its cells are the shares of its rows that were taken for each class."""
    from PIL import Image, ImageDraw, ImageFont  # it comes with TensorBoard, which encodes images by it

    font, cell = ImageFont.load_default(12), max(14, min(48, 640 // len(names)))
    left, top = 30 + int(max(font.getlength(name) for name in names)), 56
    size = max(left + cell * len(names) + 10, 260), top + cell * len(names) + 10
    draw = ImageDraw.Draw(image := Image.new("RGB", size, "white"))
    draw.text((10, 16), "rows: the truth; columns: predictions", "black", font, "lm")
    every = math.ceil(max(font.getlength(name) + 4 for name in names) / cell)
    shares_CC = confusion_CC / confusion_CC.sum(1, keepdim=True).clamp(min=1)
    for i, name in enumerate(names):
        draw.text((left - 8, top + (i + 0.5) * cell), name, "black", font, "rm")
        if i % every == 0:
            draw.text((left + (i + 0.5) * cell, top - 10), name, "black", font, "mm")
        for j, share in enumerate(shares_CC[i].tolist()):
            x, y = left + j * cell, top + i * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), colour_of(share), "#cccccc")
            if cell >= 32:
                draw.text((x + cell / 2 - 1, y + cell / 2), f"{share:.2f}", "white" if share > 0.5 else "black", font, "mm")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)


def colour_of(p: float) -> tuple[int, int, int]:
    """From white for 0 to dark blue for 1."""
    return int(255 - 245 * p), int(255 - 200 * p), int(255 - 130 * p)

"""What the model predicts, to look at."""

from collections.abc import Callable
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mlm_lightning.batch import IGNORE_INDEX
from mlm_lightning.training.module import MLMModule
from mlm_lightning.values import checked


class Samples(Callback):
    """Shows the first `num_rows` validation rows in TensorBoard after each validation: as text the masked input, predictions,
    truth, and the probability that the model gave to the truth; with an oracle and a small vocabulary also as an image, the
    model's probabilities beside the exact ones."""

    LARGEST_VOCABULARY = 64  # of the image: a row of it is a token

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
        probs_BKV, oracle_BKV = _probabilities(pl_module, batch), pl_module.oracle_probs(batch, pl_module.conditions[0].oracle)
        text = samples_as_markdown(batch, probs_BKV, datamodule.source.vocab.token)
        for board in boards:
            board.experiment.add_text("val/samples", text, trainer.global_step)
            if oracle_BKV is not None and oracle_BKV.shape[-1] <= self.LARGEST_VOCABULARY:
                image_HW = posteriors_as_image(batch, probs_BKV, oracle_BKV)
                board.experiment.add_image("val/model_left_oracle_right", image_HW, trainer.global_step, dataformats="HW")


@torch.no_grad()
def _probabilities(module: MLMModule, batch: Any) -> Tensor:
    training = module.training
    module.eval()
    batch = type(batch)(*(None if each is None else each.to(module.device) for each in batch))
    with module.trainer.precision_plugin.forward_context():
        probs_BKV = module(batch).float().softmax(-1).cpu()
    module.train(training)
    return probs_BKV


def samples_as_markdown(batch: Any, probs_BKV: Tensor, token: Callable[[int], str]) -> str:
    """A table a row: the masked input, then position, truth, its probability, and the best prediction with its probability."""
    parts = []
    for row in range(len(batch.input_ids_BL)):
        tokens = [token(i) for i in batch.input_ids_BL[row].tolist()]
        parts.append(f"**row {int(batch.row_ids_B[row])}**: " + " ".join(f"`{each}`" for each in tokens))
        lines = ["| position | truth | p(truth) | prediction | p(prediction) |", "|---|---|---|---|---|"]
        for k, label in enumerate(batch.labels_BK[row].tolist()):
            if label == IGNORE_INDEX:
                continue
            probability, best = probs_BKV[row, k].max(-1)
            position, p_truth = int(batch.positions_BK[row, k]), probs_BKV[row, k, label]
            lines.append(f"| {position} | `{token(label)}` | {p_truth:.3f} | `{token(int(best))}` | {probability:.3f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def posteriors_as_image(batch: Any, probs_BKV: Tensor, oracle_BKV: Tensor, size: int = 16) -> Tensor:
    """The probabilities of the predicted tokens, black for 0 and white for 1, `image_HW`: the model's left, the oracle's right.

    A line of squares is a masked position, a square a token; a grey bar lies between two rows.
    """
    grey, parts = 0.5, []
    for row, labels_K in enumerate(batch.labels_BK):
        used_K = labels_K != IGNORE_INDEX
        panels = [probs_BKV[row, used_K].cpu(), oracle_BKV[row, used_K].cpu().to(probs_BKV.dtype)]
        squares = torch.cat([panels[0], torch.full((len(panels[0]), 1), grey), panels[1]], dim=1)
        parts += [squares, torch.full((1, squares.shape[1]), grey)]
    return torch.cat(parts[:-1]).nan_to_num().repeat_interleave(size, dim=0).repeat_interleave(size, dim=1)

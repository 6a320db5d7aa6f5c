"""What a user's own source, task or model has to keep to is tried on two rows, before there is a folder.

sources ─► two rows of each split ─► task ─► a batch ─► a model, built for this ─► logits ─► metrics of the task

Nothing is left of it: no weights, no random numbers, no rows that were taken from a stream.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mlm_lightning.batch import MLMBatch
from mlm_lightning.config.build import build_model, eval_data_key
from mlm_lightning.config.settings import Settings
from mlm_lightning.data.batches import EvalBatches
from mlm_lightning.data.condition import Condition, packs_documents
from mlm_lightning.data.exact import exactly
from mlm_lightning.data.source import SPLITS, check_read
from mlm_lightning.errors import ConfigError, UserError, described
from mlm_lightning.randomness import seed_torch

ROWS = (
    "rows(split) has a length, and rows[index_B] is a whole batch for a tensor of indices: tokens_BL, or (tokens_BL, "
    "attention_mask_BL); tokens are int64, seq_len a row, from 0 to vocab.size - 1"
)
ORACLE = "posterior(tokens_BL, observed_BL) gives the probability of each token at each position, probs_BLV"
MODEL = (
    "forward(input_ids_BL, attention_mask_BL=None, positions_BK=None) gives logits: BKV, those of the whole row at "
    "positions_BK; BLV without positions_BK; BC where rows are labelled"
)
TASK = (
    "maker(…) makes an MLMBatch or a LabelledBatch, whose labels are below num_outputs(source), and sums(…) gives MetricSums, "
    "whose compute(…) gives numbers by their names, a loss among them"
)
"""Contracts, as docs/own-source-and-model.md has them."""


def try_own_parts(settings: Settings, conditions: Sequence[Condition]) -> None:
    """Raises UserError where a part that is not ours breaks its contract; on the CPU."""
    condition, task, model = conditions[0], settings.task, settings.model.callable
    groups = {each.source: eval_data_key(each.names) for each in conditions} | {condition.source: "data"}
    if not any(map(_is_own, (model, type(task), *map(type, groups)))):
        return
    from lightning.pytorch.utilities.seed import isolate_rng

    with isolate_rng(include_cuda=False), torch.no_grad():
        for source, group in groups.items():
            # reading rows without end would move them
            for split in ("val",) if source.endless or group != "data" else SPLITS[:2]:
                with _keeps(ROWS, group, type(source), f"rows of {split}: "), exactly():
                    rows: Any = source.rows(split)
                    index_B = torch.arange(min(2, len(rows)))
                    check_read(rows[index_B], len(index_B), source)
        with _keeps(TASK, "task", type(task)):
            make = task.maker(condition.source, "val", condition.masking, 0)
            batch: Any = EvalBatches(condition.source.rows("val"), make, batch_size=2)[0]  # type: ignore[arg-type]
            asked = (*batch.labels_BK.shape, task.num_outputs(condition.source))
        with _keeps(ORACLE, "data", type(condition.source)), exactly():
            oracle_BKV = None if condition.oracle is None else task.oracle_probs(condition.oracle, batch)
        if not _is_own(model) and not _is_own(type(task)):
            return
        built = build_model(settings.model, settings.seed, condition.source, packs_documents(conditions), task).eval()
        with _keeps(MODEL, "model", model):
            try:
                logits_BKV = _logits(built, batch, asked)
            except RuntimeError:
                if settings.trainer.is_cpu:
                    raise
                return  # it may need the accelerator
        with _keeps(TASK, "task", type(task)):
            sums = task.sums(asked[-1], "cpu", condition.further_oracles)
            sums.update(logits_BKV, batch, oracle_BKV)
            metrics = sums.compute(oracle_BKV is not None)
            if not all(isinstance(each, int | float) for each in (metrics["loss"], *metrics.values())):
                raise ValueError(f"not all of its metrics are numbers: {metrics}")


def _is_own(part: Any) -> bool:
    return part.__module__.partition(".")[0] != "mlm_lightning"


@contextmanager
def _keeps(contract: str, group: str, part: Any, where: str = "") -> Iterator[None]:
    """What is raised inside is a ConfigError about a part that is the user's own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not _is_own(part):
            raise
        remedy = f"docs/own-source-and-model.md: {contract}"
        name = f"{part.__module__}.{part.__qualname__}"
        raise ConfigError(f"{group}._target_", name, where + described(error), remedy) from error


def _logits(model: Any, batch: Any, asked: tuple[int, ...]) -> Any:
    """What the model gives for a batch. Raises where that is not what it has to be."""
    seed_torch(0)
    logits_BKV = batch.logits(model)
    masked = isinstance(batch, MLMBatch)
    *shape, width = logits_BKV.shape
    # [MASK], at the end, needs no logit; a model may pad its vocabulary
    fits = width >= asked[-1] - 1 if masked else width == asked[-1]
    if (*shape, asked[-1]) != asked or not fits:
        raise ValueError(f"forward gives {(*shape, width)}, and {asked} is asked for")
    if not logits_BKV.is_floating_point() or not (logits_BKV < torch.inf).all():
        raise ValueError(f"forward gives {logits_BKV.dtype}, and not all are numbers")
    if masked:
        seed_torch(0)
        whole_BLV = model(*batch._replace(positions_BK=None).inputs)
        there_BKV = whole_BLV.gather(1, batch.positions_BK[..., None].expand_as(logits_BKV))
        tolerance = torch.finfo(logits_BKV.dtype).eps ** 0.5
        if not torch.allclose(logits_BKV, there_BKV, rtol=tolerance, atol=tolerance):
            raise ValueError("its logits at positions_BK are not those that the whole row has there")
    return logits_BKV

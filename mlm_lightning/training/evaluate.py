"""A run's weights under conditions, in this process: rows that its model can read, frozen masks, one pass of a split.

checkpoint ─► model ─ same vocabulary? rows it can read? ─► Trainer.validate or test ─► metrics by name
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mlm_lightning.config.settings import Settings
from mlm_lightning.data.batches import Plan
from mlm_lightning.data.condition import Condition, packs_documents
from mlm_lightning.data.datamodule import MLMDataModule
from mlm_lightning.data.source import Source, Split
from mlm_lightning.data.text.tokenizer.load import TRAIN
from mlm_lightning.errors import NO_VALUE, ConfigError, mistakes, one_line
from mlm_lightning.runs.load import LoadedRun, load_run
from mlm_lightning.training.fit import build_trainer, quiet
from mlm_lightning.training.module import MLMModule


def evaluate(
    path: str | Path, settings: Settings, conditions: Sequence[Condition], split: Split = "val", trust: bool = False
) -> dict[str, Any]:
    """The metrics of a run, or of one of its checkpoints, under prepared conditions; precision, batch size and masks' seed are
    those of `settings`. Raises ConfigError where the model can't read the rows."""
    quiet()
    source = conditions[0].source
    with mistakes():  # rows that it was trained on may not pack documents
        loaded = load_run(path, trust, separate_documents=packs_documents(conditions))
    _check_readable(loaded, source, settings.data.arguments.get("tokenizer") == TRAIN)
    trainer = build_trainer(replace(settings.trainer, devices=1, num_nodes=1, strategy="auto"), [], [])
    # whose metrics are returned, not logged
    module = MLMModule(loaded.model, conditions, plan=Plan(total_steps=0), task=settings.task)
    how: dict[str, Any] = {"batch_size": settings.loader.batch_size, "eval_seed": settings.eval.seed, "task": settings.task}
    datamodule = MLMDataModule(source, settings.masking.instance, conditions, **how)
    try:
        (trainer.validate if split == "val" else trainer.test)(module, datamodule, verbose=False)
    except SystemExit as error:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from error
    return {"checkpoint": str(loaded.checkpoint), "step": loaded.step, **module.last_metrics}


def _check_readable(loaded: LoadedRun, source: Source, trained_tokenizer: bool) -> None:
    """Raises ConfigError for rows of other tokens, or of a length that the model can't read."""
    if not source.vocab.has_tokens_of(loaded.vocab):
        problem = "its vocabulary is not the one that the run was trained with "
        problem += f"(there → here: {source.vocab.difference_from(loaded.vocab)})"
        remedy = "evaluate on data of the same vocabulary"
        if trained_tokenizer:
            remedy += ". Its files have changed since: name them, also by the same data.path=…, and they are read with the "
            remedy += "tokenizer of the run"
        raise ConfigError("data", NO_VALUE, problem, remedy)
    try:
        with torch.inference_mode():
            loaded.model(torch.full((1, source.seq_len), loaded.vocab.mask_id))
    except (ValueError, IndexError, RuntimeError) as error:
        problem = f"its rows have {source.seq_len} tokens, and the run's model can't read them ({one_line(error)})"
        raise ConfigError("data", NO_VALUE, problem, "evaluate on rows as long as the run's") from error

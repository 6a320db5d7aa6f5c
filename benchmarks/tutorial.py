"""The cells of the well-known tutorial that adapts DistilBERT to news, on transformers and datasets alone: what
`experiment=xsum_distilbert` is measured against.

    documents ─ create_chunks ─► rows ┬─ DataCollatorForLanguageModeling ─► run_training_loop    ┐
                                      └─ apply_random_mask, once ─────────► run_evaluation_loop  ┴─► a perplexity an epoch

Its `accelerate` is left out: on a single device it moves models and batches there, and does nothing else.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


def create_chunks(examples: Mapping[str, list], tokenizer: Any, chunk_size: int, column: str) -> dict[str, list]:
    """The rows of some documents: tokenised, concatenated and cut. What is left at the end is dropped."""
    inputs = tokenizer(examples[column], verbose=False)
    joined = {key: sum(lists, []) for key, lists in inputs.items()}  # noqa: RUF017  (that is how it stands there)
    total = len(joined["input_ids"]) // chunk_size * chunk_size
    chunks = {key: [flat[start : start + chunk_size] for start in range(0, total, chunk_size)] for key, flat in joined.items()}
    return {**chunks, "labels": chunks["input_ids"].copy()}


def apply_random_mask(examples: Mapping[str, list], collate: Callable[[list[dict]], Mapping[str, Tensor]]) -> dict[str, Any]:
    """The rows with masks that stay."""
    rows = [dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True)]
    return {key: tensor.numpy() for key, tensor in collate(rows).items()}


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor], autocast: bool = False
) -> float:
    """A step by the logits of all positions; returns the loss. `autocast`, to bfloat16, is not the tutorial's."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def run_training_loop(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader[Any]) -> float:
    """An epoch; returns its perplexity, of the mean over batches."""
    model.train()
    return math.exp(sum(training_step(model, optimizer, batch) for batch in batches) / len(batches))


def run_evaluation_loop(model: nn.Module, batches: DataLoader[Any]) -> float:
    """The perplexity, of the mean over batches."""
    model.eval()
    with torch.no_grad():
        return math.exp(sum(model(**batch).loss.item() for batch in batches) / len(batches))

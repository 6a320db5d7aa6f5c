"""A finished run's results under the conditions of other runs: `evaluations.json`, beside its summary, no part of its identity.

A sweep over masking.rate asks each run another question, so each run is measured at all of them, with its final weights:

    {"3f0c9a1e": {"name": "rate_0.40",                                    readable, for tables
                  "condition": {"split", "eval_seed", "masking", "data"}, all that decides rows and masks; the key is its hash
                  "files": null,                                          the fingerprint of text files
                  "step": 300, "checkpoint": "sha256…",                   of which weights: an entry of others is stale
                  "metrics": {"val/loss": 1.02, …}}}
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mlm_lightning.config.located import LAST
from mlm_lightning.config.settings import Node
from mlm_lightning.data.splits import Split
from mlm_lightning.files import checksum
from mlm_lightning.masking import Masking
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import deciding, identity

FILE = "evaluations.json"

TRAINING_ALONE = frozenset(
    {
        *("data.batch_size", "data.train_size", "data.shuffle_buffer"),
        *("masking.mask_share", "masking.random_share", "masking.rate.start", "masking.rate.schedule"),
        "masking.hiding",  # the same positions, and the same optimum
    }
)
"""Keys of masking and data that change how a model is trained, and not what it is asked in evaluation."""

Condition = dict[str, Any]
"""What identifies it whole, in plain values."""


def _training_alone(data: Mapping[str, Any]) -> frozenset[str]:
    # a tokenizer that is trained on other documents makes other tokens
    return TRAINING_ALONE - ({"data.train_size"} if data.get("tokenizer") == "train" else set())


def condition(masking: Masking, data: Node, eval_seed: int, split: Split = "val") -> Condition:
    """Of a frozen masking and the data whose rows it masks."""
    kind = type(masking)
    masks = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **dataclasses.asdict(masking)}
    whole = {"split": split, "eval_seed": eval_seed, "masking": masks, "data": {"_target_": data.target, **data.arguments}}
    # a frozen masking's shares are fixed, and its rate is a number
    return deciding(whole, without=_training_alone(data.arguments))


def key_of(condition: Mapping[str, Any]) -> str:
    return identity(condition)


def without_seeds(condition: Mapping[str, Any]) -> Condition:
    """What runs share that differ in seeds alone: each is measured on the rows and masks of its own seeds."""
    plain = {name: each for name, each in condition.items() if not name.endswith("seed")}
    return {name: without_seeds(each) if isinstance(each, Mapping) else each for name, each in plain.items()}


def changes_task(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether runs that differ in a key are asked different questions in evaluation. `settings` are a run's, flat."""
    group, _, name = key.partition(".")
    if key.endswith("seed"):  # they make replicates
        return False
    if group == "task":
        return True
    if group == "eval":
        return name == "masking"  # its other keys ask further questions beside a run's own
    if group == "masking" and (fixed := settings.get("eval.masking")):  # however the training hides
        return fixed != "single" and key in ("masking.rate", "masking.rate.end")
    return group in ("data", "masking") and key not in _training_alone({"tokenizer": settings.get("data.tokenizer")})


def natural(name: str) -> list[tuple[float, str]]:
    """Sorts the names of conditions: k2 before k10."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(float(part), "") if part[:1].isdigit() else (math.inf, part) for part in parts]


def read(run: Run) -> dict[str, dict[str, Any]]:
    """The entries that belong to the run's final weights, by their conditions' keys."""
    try:
        content = json.loads((run.folder / FILE).read_text())
        return {str(key): dict(entry) for key, entry in content.items() if _is_of(run, entry)}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):  # damaged: measured again
        return {}


def _is_of(run: Run, entry: Mapping[str, Any]) -> bool:
    last = run.checkpoints / LAST
    is_same = not last.exists() or checksum(last) == entry["checkpoint"]  # checkpoints may have been removed to save space
    return is_same and entry["step"] == (run.summary or {}).get("steps") and isinstance(entry["metrics"], dict)


def add(run: Run, name: str, found: Condition, files: str | None, metrics: Mapping[str, float]) -> None:
    """Keeps what was measured with the run's final weights. Entries of other weights go."""
    last = run.checkpoints / LAST
    weights = {"step": (run.summary or {})["steps"], "checkpoint": checksum(last) if last.exists() else None}
    entry = {"name": name, "condition": found, "files": files, **weights, "metrics": dict(metrics)}
    run.write_json(FILE, read(run) | {key_of(found): entry})


def rename(run: Run, names: Mapping[str, str]) -> None:
    """Gives entries the names that they have in a sweep that has grown."""
    entries = read(run)
    renamed = {key: entry | {"name": names.get(key, entry["name"])} for key, entry in entries.items()}
    if renamed != entries:
        run.write_json(FILE, renamed)

"""Run folders written by hand: what `mlm report` reads, without the training."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mlm_lightning.runs.evaluations import key_of

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "toy",
    "output_dir": "outputs",
    "resume": "auto",
    "logger": None,
    "optim": {"lr": 0.001},
    "masking": {"_target_": "mlm_lightning.masking.Bernoulli", "rate": 0.15},
    "data": {"filter_level": 0, "batch_size": 16, "num_workers": 0},
    "model": {"d_model": 32, "num_layers": 2},
    "trainer": {"max_steps": 300, "accelerator": "cpu"},
}
ORACLE = 0.9


def config_of(settings: dict[str, Any]) -> dict[str, Any]:
    """CONFIG with `{"optim.lr": 0.1}` set."""
    config = copy.deepcopy(CONFIG)
    for key, value in settings.items():
        *path, name = key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return config


def summary_of(loss: float, oracle: float | None = ORACLE, **conditions: float) -> dict[str, Any]:
    """A summary; `k0=1.2` adds `val/loss_k0` and the like."""
    summary: dict[str, Any] = {"steps": 300, "tokens": 3000, "seconds": 12.5}
    for name, value in {"": loss, **{f"_{name}": value for name, value in conditions.items()}}.items():
        summary |= {f"val/loss{name}": value, f"val/accuracy{name}": 1 - value / 2}
        if oracle is not None:
            summary |= {f"val/oracle_loss{name}": oracle, f"val/excess_loss{name}": value - oracle}
    return summary


def evaluation_of(condition: str, loss: float, steps: int = 300, **metrics: float) -> dict[str, Any]:
    """An entry of evaluations.json for a mask rate, `rate_0.40`, by its key."""
    masking = {"_target_": "mlm_lightning.masking.Bernoulli", "rate": float(condition.rpartition("_")[2])}
    whole = {"split": "val", "eval_seed": 0, "masking": masking, "data": {"filter_level": 0}}
    measured = {"val/loss": loss, "val/oracle_loss": ORACLE, "val/excess_loss": loss - ORACLE} | metrics
    entry = {"name": condition, "condition": whole, "files": None, "step": steps, "checkpoint": None, "metrics": measured}
    return {key_of(whole): entry}


def make_rates(parent: Path, losses: dict[tuple[float, int], dict[str, float]]) -> None:
    """A run for each (masking.rate, seed), and its loss under each condition."""
    for (rate, seed), measured in losses.items():
        entries = {key: entry for name, loss in measured.items() for key, entry in evaluation_of(name, loss).items()}
        own = measured.get(f"rate_{rate:.2f}", 1.0)
        settings = {"masking.rate": rate, "seed": seed}
        make_run(parent / f"{rate},{seed}", settings, summary_of(own), evaluations_json=json.dumps(entries))


def make_run(folder: Path, settings: dict[str, Any] | None = None, summary: dict[str, Any] | None = None, **files: str) -> Path:
    """A run's folder; `error_json="{}"` writes a further file. Its manifest keeps the settings as overrides."""
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config_of(settings or {})), folder / "config.yaml")
    packages = {"torch": "2.13.0", "lightning": "2.6.6"}
    manifest = {"git_commit": "abc", "packages": packages, "threads": 1, "device": "cpu", "kinship": folder.name}
    manifest |= {"num_parameters": 12345}
    overrides = [f"{key}={value}" for key, value in (settings or {}).items()]
    manifest |= {"overrides": overrides, "config_dir": None, "config_name": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.csv").write_text("step,train/loss,val/loss,val/oracle_loss\n50,1.5,,\n100,1.25,1.125,0.9\n")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    for name, content in files.items():
        (folder / name.replace("_json", ".json").replace("_csv", ".csv")).write_text(content)
    return folder


def make_grid(
    parent: Path, key: str, values: Sequence[Any], seeds: Sequence[int] = (0, 1), slope: float = 0.1, **more: Any
) -> dict[tuple[Any, int], float]:
    """A run for each value and seed; returns the loss of each: 1, + slope a value, + 0.01 a seed."""
    losses = {}
    for place, value in enumerate(values):
        for seed in seeds:
            losses[value, seed] = 1.0 + slope * place + 0.01 * seed
            settings = {key: value, "seed": seed, **more}
            make_run(parent / f"{key}={place},seed={seed}", settings, summary_of(losses[value, seed]))
    return losses


def make_sweep(folder: Path, jobs: Sequence[tuple[str, list[str]]], swept: Sequence[str], **more: Any) -> None:
    content = {
        "command": ["mlm", "train", "-m"],
        "swept": list(swept),
        "objective": "val/loss",
        "direction": "minimize",
        "trials": None,
        "jobs": [{"folder": name, "overrides": overrides} for name, overrides in jobs],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content | more))

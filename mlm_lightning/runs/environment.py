"""What a result may depend on beside the config."""

import hashlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import torch

_PACKAGES = (
    "mlm-lightning",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "transformers",
    "tokenizers",
    "datasets",
)


def describe_environment() -> dict[str, Any]:
    """Git commit, packages, Python, device and threads."""
    diff = _git("diff", "HEAD")
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": hashlib.sha256(diff.encode()).hexdigest()[:16] if diff else None,
        "packages": versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def of_last_digits(environment: dict[str, Any]) -> dict[str, Any]:
    """What the last digits of a result depend on."""
    versions = {name: environment.get("packages", {}).get(name) for name in ("torch", "transformers")}
    return {"device": environment.get("device"), "threads": environment.get("threads")} | versions


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

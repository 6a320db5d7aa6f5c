"""Runs that a command or a config names: their folders, their checkpoints, and what of them decides a result.

init.from_run=outputs/default/x-1a2b3c4d    ─►  checkpoints/best.ckpt  ─►  init.weights=5f0c…: the digest of its content

The parent must be there until the run has a checkpoint of its own. After that its digest is known from the run's own config,
which the same command finds by the path that it gives.
"""

from dataclasses import replace
from pathlib import Path

from mlm_lightning.config.compose import read_config
from mlm_lightning.config.composed import Composed
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.files import checksum
from mlm_lightning.values import expanded

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
CHECKPOINTS = (LAST, PREVIOUS)


def locate(path: str | Path, argument: str = "RUN") -> tuple[Path, Path]:
    """The folder and the checkpoint that a RUN argument (or `resume`) names."""
    path = expanded(path)
    hint = "give a run's folder (outputs/NAME/…) or a .ckpt file in it" + (", or auto or never" if argument == "resume" else "")
    if path.is_file() and path.suffix == ".ckpt":
        folder, checkpoint = path.parent.parent, path
    elif path.is_dir():
        folder = path
        found = [each for name in (BEST, *CHECKPOINTS) if (each := path / "checkpoints" / name).is_file()]
        if not found:
            raise ConfigError(argument, str(path), "has no checkpoint", hint)
        checkpoint = found[0]
    else:
        raise ConfigError(argument, str(path), "no such folder or checkpoint", hint)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(argument, str(path), f"is not a run: there is no {folder / 'config.yaml'}")
    return folder, checkpoint


def with_weights(composed: Composed) -> Composed:
    """The config with `init.weights` where it names another run; ConfigError where that is gone and this run has not begun."""
    named = composed.get("init.from_run")
    if named is None or composed.get("init.weights"):  # which a run's own config has
        return composed
    path = str(expanded(str(named)).absolute())  # a sweep's run, or a rank, may be in another folder
    try:
        _, checkpoint = locate(path, "init.from_run")
        digest = checksum(checkpoint)
        if digest is None:
            raise ConfigError("init.from_run", path, f"{checkpoint.name} is damaged: it has no seal", "name another checkpoint")
    except ConfigError:
        digest = _noted(composed, path)
        if digest is None:
            raise
    init = {**composed.get("init"), "from_run": path, "weights": digest}
    return replace(composed, config={**composed.config, "init": init})


def _noted(composed: Composed, path: str) -> str | None:
    """The digest that runs of this name noted when they began with the run at `path`; the newest run's, of several."""
    configs = (expanded(str(composed.get("output_dir"))) / str(composed.get("name"))).glob("*/config.yaml")
    for file in sorted(configs, key=lambda each: each.stat().st_mtime, reverse=True):
        try:
            noted = read_config(file.parent)
        except (UserError, OSError):
            continue
        if noted.get("init.from_run") == path and (digest := noted.get("init.weights")):
            return str(digest)
    return None

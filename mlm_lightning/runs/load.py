"""Opening a run again, or what `mlm export` made of one: its model and vocabulary, without its data or the hub.

config.yaml  model.json  vocab.json  tokenizer/      the model's class and all its arguments, its tokens
checkpoints/  or, exported, model.safetensors        its weights; neither executes anything when it is read
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mlm_lightning.batch import Vocab
from mlm_lightning.config.build import for_task
from mlm_lightning.config.compose import WRITTEN_AGAIN, read_config
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.located import locate
from mlm_lightning.config.settings import Settings
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.data.condition import Condition, packs_documents
from mlm_lightning.errors import ConfigError, MissingPackagesError, UserError, one_line
from mlm_lightning.files import damaged, read_json
from mlm_lightning.models.protocol import Exportable, Loadable, Rebuildable
from mlm_lightning.runs.checkpoint import DamagedCheckpointError, read_checkpoint
from mlm_lightning.runs.folder import Run
from mlm_lightning.tasks import Classify
from mlm_lightning.values import expanded

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CLASSES = "classes.json"
_EXPORTED_AGAIN = "export the run again"


@dataclass
class LoadedRun:
    """A trained model, in evaluation mode on the CPU, with all that belongs to it. `seq_len` is the length of its rows."""

    folder: Path
    checkpoint: Path
    step: int
    composed: Composed
    model: nn.Module
    vocab: Vocab
    seq_len: int | None
    tokenizer: Any | None
    classes: tuple[str, ...] | None = None
    """The names of what it labels rows with; None of a masked language model."""

    @property
    def config(self) -> dict[str, Any]:
        """The run's config in plain dicts."""
        return dict(self.composed.config)


def load_run(path: str | Path, trust: bool = False, separate_documents: bool = False) -> LoadedRun:
    """Opens a run's folder (its best checkpoint, else the last), one checkpoint in it, or a folder that `mlm export` wrote.

    A folder may come from anywhere: checkpoints are read with `weights_only=True`, and only this package's own classes are
    instantiated unless `trust` says otherwise. With `separate_documents` the model keeps documents that share a row apart, also
    if it was trained on rows of one document. Raises UserError where `path` is no run.
    """
    folder, checkpoint = locate_weights(path)
    if trust:
        see_packages_of(folder)
    composed, is_export = read_config(folder), checkpoint.name == WEIGHTS
    if is_export:
        weights, step = None, read_json(folder / "manifest.json", _EXPORTED_AGAIN).get("step", 0)
    else:
        weights, step = _read_weights(checkpoint)
    remedy = _EXPORTED_AGAIN if is_export else WRITTEN_AGAIN
    arguments = read_json(folder / "model.json", remedy)
    if (target := arguments.pop("_target_", None)) is None:
        raise damaged(folder / "model.json", ValueError("it has no _target_"), remedy)
    vocab = None if is_export and not (folder / "vocab.json").is_file() else stored_vocab(folder / "vocab.json", remedy)
    if arguments.pop("separates_documents", False) or separate_documents:  # the key of versions up to 0.1
        arguments["separate_documents"] = True
    build = resolve_target(target, trust)
    try:
        model: nn.Module = build(**arguments)
        if weights is not None:
            model.load_state_dict(weights)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise damaged(folder / "model.json", error, f"its model is not that of {checkpoint.name}; {remedy}") from error
    if is_export:
        _read_export(model, folder)
    model.eval()
    seq_len, tokenizer = arguments.get("seq_len") or composed.get("data.chunk_size"), None
    if (tokenizer_files := tokenizer_folder(folder)) is not None:
        from mlm_lightning.data.text.tokenizer.load import load_tokenizer, read_vocab

        try:
            tokenizer = load_tokenizer(tokenizer_files)
        except MissingPackagesError:
            raise
        except ConfigError as error:
            raise UserError(f"{tokenizer_files}: {error.problem}; {remedy}") from error
        vocab = vocab or read_vocab(tokenizer)
    if vocab is None:
        raise UserError(f"{folder}: has neither vocab.json nor a tokenizer; export the run again")
    classes = tuple(read_json(folder / CLASSES, remedy)["classes"]) if (folder / CLASSES).is_file() else None
    if edits := Run(folder).edits:
        log.warning("%s: its code has been edited since it was trained: %s", folder, ", ".join(edits))
    return LoadedRun(folder, checkpoint, step, composed, model, vocab, seq_len, tokenizer, classes)


def _read_weights(checkpoint: Path) -> tuple[dict[str, Any], int]:
    """Of the model in a checkpoint, and its step."""
    try:
        state = read_checkpoint(checkpoint)
    except DamagedCheckpointError as error:
        others = [path for path in sorted(checkpoint.parent.glob("*.ckpt")) if path != checkpoint]
        remedy = f"give another one: {', '.join(map(str, others))}" if others else "there is no other one; train the run again"
        raise UserError(f"{checkpoint}: cannot be read: {error}; {remedy}") from error
    prefix, weights = "model.", state["state_dict"]
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}, state["global_step"]


def stored_vocab(path: Path, remedy: str) -> Vocab:
    """That of a run's vocab.json. Raises UserError where it is damaged."""
    content = read_json(path, remedy)
    try:
        return Vocab.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error, remedy) from error


def _read_export(model: nn.Module, folder: Path) -> None:
    """Gives a model the weights of a folder that `mlm export` wrote."""
    from safetensors.torch import load_model

    if isinstance(model, Exportable) and not isinstance(model, Loadable):
        raise UserError(f"{folder}: is for transformers alone: {type(model).__name__} has no load_pretrained(folder)")
    try:
        if isinstance(model, Loadable):
            model.load_pretrained(folder)
        else:
            load_model(model, folder / WEIGHTS)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {one_line(error)}") from error


def tokenizer_folder(folder: Path) -> Path | None:
    """Where a run has its tokenizer; where `transformers` has it in what was exported for it; None for a run of no text."""
    if (folder / "tokenizer").is_dir():
        return folder / "tokenizer"
    return folder if (folder / "tokenizer_config.json").is_file() else None


def locate_weights(path: str | Path) -> tuple[Path, Path]:
    """The folder and the file of weights that a RUN argument names: as `locate`, or a folder that `mlm export` wrote."""
    folder = expanded(path)
    if not (folder / WEIGHTS).is_file():
        return locate(path)
    if missing := [name for name in ("config.yaml", "model.json", "manifest.json") if not (folder / name).is_file()]:
        raise UserError(f"RUN={path}: was not written by mlm export, for it has no {missing[0]}; give a run's folder")
    return folder, folder / WEIGHTS


def see_packages_of(folder: Path) -> None:
    """Classes that a trusted run names may be in the folder that it was started in."""
    start = Run(folder).working_directory
    if start is not None and str(start) not in sys.path:
        sys.path.append(str(start))


def describe_model(run: Run, settings: Settings, model: nn.Module, conditions: list[Condition]) -> None:
    """Writes model.json and vocab.json: enough to build the model again without its data or the hub."""
    source = conditions[0].source
    if isinstance(model, Rebuildable):
        description = model.rebuild_config()
    else:
        node, provided = for_task(settings.model, settings.task), settings.task.model_arguments(source)
        description = {"_target_": node.target, **node.arguments}
        description |= {name: value for name, value in provided.items() if node.takes(name)}
        description |= {"vocab_size": source.vocab.size, "seq_len": source.seq_len}
        description |= {"separate_documents": True} if packs_documents(conditions) else {}
    run.write_json("model.json", description)
    run.write_json("vocab.json", source.vocab.to_json())
    if isinstance(settings.task, Classify):
        run.write_json(CLASSES, {"classes": settings.task.class_names(source)})

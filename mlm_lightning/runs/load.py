"""Opening a run again: its model and vocabulary, without its data or the hub.

model.json   the model's class and all its arguments        vocab.json   tokenizer/
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mlm_lightning.batch import Vocab
from mlm_lightning.config.compose import WRITTEN_AGAIN, read_config
from mlm_lightning.config.settings import Composed, Settings
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.data.condition import Condition, packs_documents
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.files import damaged, read_json
from mlm_lightning.models.protocol import Rebuildable
from mlm_lightning.runs.checkpoint import BEST, DamagedCheckpointError, read_checkpoint
from mlm_lightning.runs.folder import CHECKPOINTS, Run


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

    @property
    def config(self) -> dict[str, Any]:
        """The run's config in plain dicts."""
        return dict(self.composed.config)


def load_run(path: str | Path, trust: bool = False, separate_documents: bool = False) -> LoadedRun:
    """Opens a run's folder (its best checkpoint, else the last) or one checkpoint in it.

    A folder may come from anywhere: checkpoints are read with `weights_only=True`, and only this package's own classes are
    instantiated unless `trust` says otherwise. With `separate_documents` the model keeps documents that share a row apart, also
    if it was trained on rows of one document. Raises UserError where `path` is no run.
    """
    folder, checkpoint = locate(path)
    composed = read_config(folder)
    try:
        state = read_checkpoint(checkpoint)
    except DamagedCheckpointError as error:
        others = [path for path in sorted(checkpoint.parent.glob("*.ckpt")) if path != checkpoint]
        remedy = f"give another one: {', '.join(map(str, others))}" if others else "there is no other one; train the run again"
        raise UserError(f"{checkpoint}: cannot be read: {error}; {remedy}") from error
    arguments = read_json(folder / "model.json", WRITTEN_AGAIN)
    if (target := arguments.pop("_target_", None)) is None:
        raise damaged(folder / "model.json", ValueError("it has no _target_"), WRITTEN_AGAIN)
    content = read_json(folder / "vocab.json", WRITTEN_AGAIN)
    try:
        vocab = Vocab.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / "vocab.json", error, WRITTEN_AGAIN) from error
    if arguments.pop("separates_documents", False) or separate_documents:  # the key of versions up to 0.1
        arguments["separate_documents"] = True
    prefix = "model."
    weights = {name.removeprefix(prefix): value for name, value in state["state_dict"].items() if name.startswith(prefix)}
    build = resolve_target(target, trust)
    try:
        model: nn.Module = build(**arguments)
        model.load_state_dict(weights)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = f"its model is not that of {checkpoint.name}; {WRITTEN_AGAIN}"
        raise damaged(folder / "model.json", error, remedy) from error
    model.eval()
    seq_len, tokenizer = arguments.get("seq_len") or composed.get("data.chunk_size"), None
    if (folder / "tokenizer").is_dir():
        from mlm_lightning.data.text.tokenizer.load import load_tokenizer

        try:
            tokenizer = load_tokenizer(folder / "tokenizer")
        except ConfigError as error:
            raise UserError(f"{folder / 'tokenizer'}: {error.problem}; {WRITTEN_AGAIN}") from error
    return LoadedRun(folder, checkpoint, state["global_step"], composed, model, vocab, seq_len, tokenizer)


def locate(path: str | Path, argument: str = "RUN") -> tuple[Path, Path]:
    """The folder and the checkpoint that a RUN argument (or `resume`) names."""
    path = Path(path)
    hint = "give a run's folder (outputs/NAME/…) or a .ckpt file in it" + (", or auto or never" if argument == "resume" else "")
    if path.is_file() and path.suffix == ".ckpt":
        folder, checkpoint = path.parent.parent, path
    elif path.is_dir():
        folder = path
        found = [each for name in (BEST, *CHECKPOINTS) if (each := path / "checkpoints" / name).is_file()]
        if not found:
            raise UserError(f"{argument}={path}: has no checkpoint; {hint}")
        checkpoint = found[0]
    else:
        raise UserError(f"{argument}={path}: no such folder or checkpoint; {hint}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{argument}={path}: is not a run: there is no {folder / 'config.yaml'}")
    return folder, checkpoint


def describe_model(run: Run, settings: Settings, model: nn.Module, conditions: list[Condition]) -> None:
    """Writes model.json and vocab.json: enough to build the model again without its data or the hub."""
    source = conditions[0].source
    if isinstance(model, Rebuildable):
        description = model.rebuild_config()
    else:
        description = {"_target_": settings.model.target, **settings.model.arguments}
        description |= {"vocab_size": source.vocab.size, "seq_len": source.seq_len}
        description |= {"separate_documents": True} if packs_documents(conditions) else {}
    run.write_json("model.json", description)
    run.write_json("vocab.json", source.vocab.to_json())

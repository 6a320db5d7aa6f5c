"""A run as a folder that opens on any machine: weights that execute nothing, and what it takes to build the model again.

    model.safetensors    the weights                model.onnx, if wanted: them with what is computed, for others
    model.json           the model's class and all its arguments
    config.yaml          what the run computed, without what is on this machine only
    manifest.json        the step of these weights, their metrics, versions
    classes.json         the names of its labels, where it labels rows
    vocab.json           a synthetic vocabulary …
    tokenizer/           … or the tokenizer

A model of `transformers`, and one of ours that is the same function as such a one (models/convert.py), is written in that
library's own files (config.json, tokenizer.json …), all at the top, with ours beside them.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mlm_lightning.config.compose import config_yaml
from mlm_lightning.config.composed import Composed
from mlm_lightning.config.signatures import PROVIDED
from mlm_lightning.errors import ConfigError, UserError
from mlm_lightning.models.protocol import Exportable, Rebuildable
from mlm_lightning.models.transformer import TransformerClassifier
from mlm_lightning.runs.checkpoint import flat
from mlm_lightning.runs.folder import processes_of, read_metrics, read_note
from mlm_lightning.runs.identity import identity
from mlm_lightning.runs.load import CLASSES, WEIGHTS, LoadedRun, tokenizer_folder

log = logging.getLogger(__name__)

FORMAT = 1
ONNX = "model.onnx"

_NOT_SHARED = ("prepare", "callbacks", "logger", "sweep", "launcher", "hydra")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
"""What `save_pretrained` writes."""
_PATHS = re.compile(r"(path|dir|folder|file)$")
_KEPT = ("python", "packages", "device", "threads", "data", "splits", "num_parameters", "settled", "own_code")
"""What a run's manifest knows of its result. Its command is left out, for it may name files."""


def as_shared(loaded: LoadedRun) -> LoadedRun:
    """With its model as one of transformers, where that is the same function: others can open it then."""
    if type(loaded.model) is not TransformerClassifier or loaded.tokenizer is None:
        return loaded
    from mlm_lightning.models.convert import as_transformers

    return replace(loaded, model=as_transformers(loaded.model, loaded.vocab, loaded.classes) or loaded.model)


def write_model(loaded: LoadedRun, folder: Path) -> None:
    """Everything that opens the model again."""
    _check_links(loaded.folder)
    folder.mkdir()
    tokenizer_files = tokenizer_folder(loaded.folder)
    if isinstance(loaded.model, Exportable):
        if loaded.tokenizer is None:
            raise UserError(
                f"RUN={loaded.folder}: has no tokenizer/ in its folder, which a model of transformers needs; train it on text "
                "(data=text)"
            )
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    else:
        from safetensors.torch import save_model

        save_model(loaded.model, str(folder / WEIGHTS), metadata={"format": "pt"})
        if tokenizer_files is None:
            _write_json(folder / "vocab.json", loaded.vocab.to_json())
        else:
            (folder / "tokenizer").mkdir()
            for file in filter(Path.is_file, map(tokenizer_files.joinpath, _TOKENIZER)):
                shutil.copyfile(file, folder / "tokenizer" / file.name)
    if isinstance(loaded.model, Rebuildable):
        description = json.loads(json.dumps(loaded.model.rebuild_config()))  # as it is read again
    else:
        description = read_note(loaded.folder / "model.json")
    if found := list(_local("model", description)):
        key, value = found[0]
        remedy = "the model can't be built again elsewhere; give its class rebuild_config(), as models/protocol.py says"
        raise ConfigError(key, value, "is a place on this machine", remedy)
    for file in folder.rglob("*config.json"):  # a tokenizer may name the folder that it came from
        _write_json(file, _without_places(read_note(file)))
    _write_json(folder / "model.json", description)
    if loaded.classes is not None:
        _write_json(folder / CLASSES, {"classes": loaded.classes})
    (folder / "config.yaml").write_bytes(config_yaml(shared_config(loaded, description)))
    _write_json(folder / "manifest.json", manifest_of(loaded))
    for file in filter(Path.is_file, folder.rglob("*")):  # safetensors writes what its owner alone may read
        shutil.copymode(folder / "manifest.json", file)


def _check_links(run: Path) -> None:
    """Raises UserError where a file of a run, or its tokenizer, is a link to what is not the run's: that would be copied. In a
    cache of the hub, files are links to its `blobs`."""
    home = run.resolve()
    own = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for path in [*filter(Path.is_file, run.glob("*")), run / "tokenizer", *run.glob("tokenizer/*")]:
        target = path.resolve()
        if not any(map(target.is_relative_to, own)):
            raise UserError(f"{path}: is a link to {target}, which is not the run's; put a copy in its place, or remove it")


def shared_config(loaded: LoadedRun, description: Mapping[str, Any]) -> Composed:
    """The run's config without what means nothing elsewhere: folders and files, how it was watched, on which device. The model
    is the one that was built, so that no checkpoint is asked for again."""
    kept = {group: _without_files(group, value) for group, value in loaded.config.items() if group not in _NOT_SHARED}
    kept |= {"output_dir": "outputs", "resume": "auto"}
    kept |= {"model": {name: value for name, value in description.items() if name not in PROVIDED["model"]}}
    config = Composed(kept).changed("trainer", {"accelerator": "auto", "devices": 1, "num_nodes": 1, "strategy": "auto"})
    if loaded.tokenizer is not None:  # that of the folder is read
        config = config.changed("data", {"tokenizer": None}).changed("eval", {"data": None})
    return config


def manifest_of(loaded: LoadedRun) -> dict[str, Any]:
    """What is known of these weights. That of an export is handed on."""
    manifest = read_note(loaded.folder / "manifest.json")
    if loaded.checkpoint.name == WEIGHTS:
        return manifest
    summary = read_note(loaded.folder / "summary.json")
    known = {name: manifest[name] for name in _KEPT if manifest.get(name) is not None}
    weights = {
        "format": FORMAT,
        "step": loaded.step,
        "identity": identity(loaded.config, processes_of(manifest, loaded.config)),
        "metrics": metrics_of(loaded),
    }
    return weights | {name: summary[name] for name in ("steps", "tokens") if name in summary} | known


def metrics_of(loaded: LoadedRun) -> dict[str, float]:
    """Those that the run measured of these very weights: of the validation after their step."""
    file = loaded.folder / "metrics.csv"
    lines = read_metrics(file) if file.is_file() else []
    found: dict[str, float] = {}
    for line in (line for line in lines if int(line["step"]) == loaded.step):
        found |= {name: float(value) for name, value in line.items() if name.startswith("val/") and value}
    summary = read_note(loaded.folder / "summary.json")
    if not found and summary.get("steps") == loaded.step:
        found = {name: value for name, value in summary.items() if name.startswith("val/")}
    return found


def _without_files(key: str, value: Any) -> Any:
    """Null in place of every value that names files, by its key or by what it says."""
    if isinstance(value, Mapping):
        return {name: _without_files(name, each) for name, each in value.items()}
    return None if _PATHS.search(key) or any(_local(key, value)) else value


def _without_places(value: Any) -> Any:
    """Leaves out what is a place on this machine."""
    if isinstance(value, Mapping):
        return {name: _without_places(each) for name, each in value.items() if not (isinstance(each, str) and is_place(each))}
    return value


def _local(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The keys and values of a node that are places on this machine."""
    values = flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    for name, each in values.items():
        yield from (
            (name, text) for text in (each if isinstance(each, list) else [each]) if isinstance(text, str) and is_place(text)
        )


def is_place(text: str) -> bool:
    """Whether a text is, or has in it, an absolute path of this machine."""
    here = (str(place) for place in (Path.home(), Path.cwd()) if len(place.parts) > 1)
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith(("~", "file:"))
    return absolute or any(place in text for place in here)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

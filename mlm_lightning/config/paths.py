"""Relative paths of a run's config mean what they meant where it was started, wherever it is opened.

    config.yaml      data: {path: texts/*.txt}          as typed, for the reader
    manifest.json    working_directory: /home/me/a
    opened in /home/me/b                                data.path=/home/me/a/texts/*.txt

Which parameters are paths, a signature says: `Located` beside the type, or `pathlib.Path` as the type.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from glob import escape, glob, has_magic
from pathlib import Path
from typing import Any

from mlm_lightning.config.composed import Composed
from mlm_lightning.config.signatures import resolve_target
from mlm_lightning.errors import ConfigError, refuse
from mlm_lightning.values import Located, expanded, located

log = logging.getLogger(__name__)


def resolved(composed: Composed, start: Path | None, overrides: Sequence[str], trusted: bool) -> Composed:
    """The config of a run that was started in `start` (None: unknown), for this process. What `overrides` set was typed here.

    Raises ConfigError for paths that lead nowhere any more.
    """
    typed = tuple(each.lstrip("+~").partition("=")[0] for each in overrides)
    errors: list[ConfigError] = []

    def group(key: str, node: Any, target: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        result = dict(node)
        for name, kind in _paths_of(target, trusted):
            path = f"{key}.{name}"
            if name in node and not any(path == each or path.startswith(f"{each}.") for each in typed):
                result[name] = _resolve(path, node[name], kind, start, errors)
        return result

    groups = {key: group(key, composed.get(key), composed.get(f"{key}._target_")) for key in ("data", "model")}
    if isinstance(further := composed.get("eval.data"), Mapping):
        own = composed.get("data._target_")
        targets = {name: node.get("_target_", own) if isinstance(node, Mapping) else None for name, node in further.items()}
        found = {name: group(f"eval.data.{name}", further[name], target) for name, target in targets.items()}
        groups["eval"] = {**composed.get("eval"), "data": found}
    refuse(errors)
    return Composed({**composed.config, **groups})


def _paths_of(target: Any, trusted: bool) -> Iterator[tuple[str, Located]]:
    try:
        yield from located(resolve_target(target, trusted)).items()
    except ConfigError:  # the check that follows says so
        return


def _resolve(key: str, value: Any, kind: Located, start: Path | None, errors: list[ConfigError]) -> Any:
    if isinstance(value, list):
        return [_resolve(key, each, kind, start, errors) for each in value]
    if not isinstance(value, str) or value in ("", kind.word, "???"):
        return value
    if start is not None and not expanded(value).is_absolute():
        there = f"{escape(str(start)) if has_magic(value) else start}/{value}"
        if _leads_somewhere(there):
            return there
    if _leads_somewhere(value):
        if start is not None and not expanded(value).is_absolute() and start != Path.cwd():
            log.info(
                "%s=%s: is not in %s any more, where the run was started; taking the one in this folder", key, value, start
            )
    elif not kind.or_name:
        gone = "is not there any more" if start is None else f"is neither in {start}, where the run was started, nor here"
        errors.append(ConfigError(key, value, gone, f"say where it is now: {key}=PATH"))
    return value


def _leads_somewhere(path: str) -> bool:
    there = expanded(path)
    return there.exists() or (has_magic(path) and bool(glob(str(there), recursive=True)))

"""What may be meant by a key that its group doesn't have.

lr               ─►  optim.lr                 it is another group's
experiment.name  ─►  # @package _global_      a YAML of whole experiments lacks its first line
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlm_lightning.config.composed import Composed
from mlm_lightning.errors import ConfigError
from mlm_lightning.values import UnknownKeyError

WITHOUT_PACKAGE = "its keys are those of whole experiments, and land in one group"
PACKAGE_REMEDY = "start its YAML with the line '# @package _global_'"

_MOST = 3  # suggestions
_WHOLE = ("experiment", "sweep", "launcher")
"""Groups whose YAMLs set keys of all others."""


def hinted(errors: Sequence[ConfigError], composed: Composed) -> list[ConfigError]:
    """The errors, with what may be meant where a key is unknown."""
    unknown = {error.key for error in errors if isinstance(error, UnknownKeyError)}
    return [_hinted(error, composed, unknown) if isinstance(error, UnknownKeyError) else error for error in errors]


def _hinted(error: UnknownKeyError, composed: Composed, unknown: set[str]) -> ConfigError:
    group, _, name = error.key.partition(".")
    chosen = [each for each in composed.overrides or () if group in _WHOLE and each.startswith(f"{group}=")]
    if chosen and (not name or name in {"hydra", *composed.config}):
        return ConfigError(group, chosen[-1].partition("=")[2], WITHOUT_PACKAGE, PACKAGE_REMEDY)
    if elsewhere := homes(error.key, composed.config, unknown, fuzzy=not error.names or "." not in error.key):
        return UnknownKeyError(error.key, error.owner, error.names, elsewhere)
    return error


def homes(key: str, config: Mapping[str, Any], unknown: Iterable[str] = (), fuzzy: bool = True) -> list[str]:
    """The keys of a config that end like an unknown one, or with `fuzzy` nearly so; empty where they are many."""
    word, wrong = key.rpartition(".")[2], {key, *unknown}
    paths = [path for path in _paths(config) if path not in wrong and "._target_" not in path]
    same = [path for path in paths if path.rpartition(".")[2] == word]
    if not same and fuzzy:
        ends = {path.rpartition(".")[2] for path in paths}
        close = difflib.get_close_matches(word, ends, n=1, cutoff=0.75)
        same = [path for path in paths if path.rpartition(".")[2] in close]
    return same if len(same) <= _MOST else []


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")

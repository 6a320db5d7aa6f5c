"""The command line that trains a run once more: of its sweep's command and its job, else of what differs from the defaults.

It is composed again to see whether it gives the run's config, so what a report prints is a command that has been checked.
"""

import json
import re
import shlex
from typing import Any

from mlm_lightning.config.compose import Composer, composer, to_plain
from mlm_lightning.errors import UserError
from mlm_lightning.report.results import Result
from mlm_lightning.runs.checkpoint import flat
from mlm_lightning.runs.identity import identity

_CHOSEN = ("data", "masking", "model", "optim", "schedule")
"""Groups that a `_target_` tells apart."""
_UNSAID = ("resume", "logger", "sweep", "hydra")


def command_of(result: Result) -> tuple[str, bool]:
    """The command, and whether it gives the run's config here."""
    flags, fixed = _of_sweep(result)
    # a sweep's own settings would make a sweep of the one run
    asked = [*fixed, *(each for each in result.overrides if not _key(each).startswith(("sweep", "hydra")))]
    try:
        with composer(_flag(flags, "--config-dir"), _flag(flags, "--config-name")) as hydra:
            if result.sweep_command and _gives(hydra, asked, result):
                return _line([*flags, *asked]), True
            differing = _differences(hydra, result.config)
            if _gives(hydra, differing, result):
                return _line([*flags, *differing]), True
    except UserError:  # its folder of configs isn't there any more
        differing = []
    return _line([*flags, *(asked if result.sweep_command else differing)]), False


def _line(arguments: list[str]) -> str:
    return shlex.join(["mlm", "train", *(re.sub(r"^\+\+(?=[^+])", "", each) for each in arguments)])


def _of_sweep(result: Result) -> tuple[list[str], list[str]]:
    """The flags of a sweep's command, and those of its overrides that the job doesn't set."""
    words = result.sweep_command[result.sweep_command.index("train") + 1 :] if "train" in result.sweep_command else []
    own = {_key(override) for override in result.overrides}
    flags, fixed = [], []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--config-dir", "--config-name", "-cd", "-cn") or word.startswith("--config-"):
            flags.append(word)
        elif word in ("-cd", "-cn"):
            flags.append({"-cd": "--config-dir", "-cn": "--config-name"}[word])
        elif not word.startswith("-") and _key(word) not in own and not _key(word).startswith(("sweep", "hydra")):
            fixed.append(word)
    return flags, fixed


def _flag(flags: list[str], name: str) -> str | None:
    for before, word in zip(["", *flags], flags, strict=False):
        if before == name:
            return word
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _gives(hydra: Composer, overrides: list[str], result: Result) -> bool:
    try:
        return identity(to_plain(hydra.compose(hydra.plain(overrides)))) == identity(result.config)
    except UserError:  # of another version, or of another folder's configs
        return False


def _differences(hydra: Composer, config: dict[str, Any]) -> list[str]:
    """Overrides that lead from the defaults to a config: groups first, then keys."""
    default = to_plain(hydra.compose([]))
    groups = [choice for group in _CHOSEN if (choice := _choice(hydra, group, config, default))]
    there, wanted = _said(to_plain(hydra.compose(groups)) if groups else default), _said(config)
    missing = object()
    changed = [f"{key}={_text(value)}" for key, value in wanted.items() if there.get(key, missing) != value]
    removed = [f"~{key}" for key in there if key not in wanted and not any(each.startswith(f"{key}.") for each in wanted)]
    return groups + changed + removed


def _said(config: dict[str, Any]) -> dict[str, Any]:
    return flat({key: value for key, value in config.items() if key not in _UNSAID})


def _choice(hydra: Composer, group: str, config: dict[str, Any], default: dict[str, Any]) -> str | None:
    """The option of a group that has a config's `_target_` and comes closest to it, unless the default has it."""
    wanted, target = flat({group: config.get(group)}), f"{group}._target_"
    if wanted.get(target) == flat({group: default.get(group)}).get(target):
        return None
    distances = {}
    for option in hydra.options(group):
        try:
            there = flat({group: to_plain(hydra.compose([f"{group}={option}"])).get(group)})
        except UserError:  # an option that needs another one
            continue
        if there.get(target) == wanted.get(target):
            distances[f"{group}={option}"] = sum(there.get(key) != wanted.get(key) for key in {**there, **wanted})
    return min(distances, key=lambda each: distances[each], default=None)


def _text(value: Any) -> str:
    """A value as Hydra's grammar reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_/.][\w/.@%-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf")
        return value if plain else "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return json.dumps(value)

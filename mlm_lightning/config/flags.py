"""What is typed for Hydra: its flags and keys, those that work here and why others are refused, and values, with the quotes
that Hydra wants."""

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from mlm_lightning.errors import UserError
from mlm_lightning.values import expanded

if TYPE_CHECKING:  # help needs none of it
    from omegaconf import DictConfig


class Once(argparse.Namespace):
    """Flags of which a second one would hide the first are refused."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("config_") and getattr(self, name, None):
            raise UserError(f"--{name.replace('_', '-')} {value}: is given a second time; give one")
        super().__setattr__(name, value)


_IGNORED = re.compile(r"[+~]*hydra\.(?!mode|run\.dir|sweep\.dir|sweeper|searchpath)")
_PARAMS = re.compile(r"^\+*hydra\.sweeper\.params\.")
_REFUSED = {
    "config_path": "give --config-dir, whose configs come before the shipped ones",
    "experimental_rerun": "give the run's command again, which mlm report shows",
    "shell_completion": "mlm has none; mlm train --help lists what there is to choose",
    "hydra_help": "mlm train --help shows what works here",
    "resolve": "goes with --cfg",
    "package": "goes with --cfg",
}


def hydra_flags(arguments: list[str]) -> argparse.Namespace:
    """Hydra's flags, with the overrides as `overrides`; those that would have no effect are refused."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"mlm train: {message}; mlm train --help shows how to call it")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_intermixed_args(arguments, Once())
    for name, remedy in _REFUSED.items():
        if getattr(flags, name) and not (flags.cfg and remedy == "goes with --cfg"):
            raise UserError(f"--{name.replace('_', '-')}: {remedy}")
    overrides = [_PARAMS.sub("", each) for each in flags.overrides]
    flags.multirun |= overrides != flags.overrides  # many runs are meant
    flags.overrides = overrides
    if flags.multirun and (flags.package or flags.cfg in ("hydra", "all")):
        raise UserError("-m: --cfg job alone shows the runs of a sweep; leave out -m to see a config")
    return flags


def is_sweep(config: "DictConfig") -> bool:
    """Whether a config with Hydra's own part means many runs: by its mode, or else by what it sweeps over."""
    mode = str(config.hydra.mode)
    return mode == "RunMode.MULTIRUN" or (mode == "None" and bool(config.hydra.sweeper.get("params")))


def check_hydra_keys(overrides: Sequence[str], config: "DictConfig") -> None:
    """Raises UserError for keys of Hydra's that would have no effect."""
    run, sweep = config.hydra.run.dir, config.hydra.sweep.dir
    if (run, sweep) != (".", str(expanded(f"{config.get('output_dir')}/{config.get('name')}"))):
        where = "runs lie in output_dir/name; set these in their place"
        raise UserError(f"hydra.run.dir={run}, hydra.sweep.dir={sweep}: {where}")
    if "BasicLauncher" in config.hydra.launcher._target_:  # others take what they know
        for ignored in filter(_IGNORED.match, overrides):
            raise UserError(f"{ignored.lstrip('+~')}: has no effect in mlm train")


_FOREIGN = re.compile(r"[^,()\[\]{}:=]*[^\w\s,()\[\]{}:=/+.$%*@?|-][^,()\[\]{}:=]*", re.ASCII)
"""Text of a value that Hydra reads in quotes alone, such as über."""
_A_RUN = re.compile(r"^[^'\"]*-[0-9a-f]{8}(/|$)")
"""A path that ends as a run's folder does, or leads into one."""


def in_quotes(override: str) -> str:
    """`resume='outputs/default/rate=0.1,seed=0-1a2b3c4d'` for the same without quotes. A path that is there or begins with `~/`
    stands for itself, though '=' means something to Hydra; so does the name of a run that is gone, and either after a null."""
    key, equals, text = override.partition("=")
    before, value = ("null,", text[5:]) if text.startswith("null,") else ("", text)
    if re.search(r"[=,:(){}\[\] ~]", value):
        with suppress(OSError, ValueError):  # too long for a path
            if value.startswith("~/") or expanded(value).exists() or (key == "init.from_run" and _A_RUN.search(value)):
                escaped = value.replace("'", "\\'")
                return f"{key}={before}'{escaped}'"
    if re.search(r"['\"\\]", text):  # quoted by the user
        return override
    if re.search(r"\$\{[^}]*(\$\{|[^ -~])", text):
        return f"{key}='{text}'"
    return key + equals + _FOREIGN.sub(lambda words: f"'{words[0].strip()}'", text)

"""Hydra's flags of `mlm train`: those that work here, and why others are refused."""

import argparse
import re
from typing import Any, NoReturn

from mlm_lightning.errors import UserError


class Once(argparse.Namespace):
    """Flags of which a second one would hide the first are refused."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("config_") and getattr(self, name, None):
            raise UserError(f"--{name.replace('_', '-')} {value}: is given a second time; give one")
        super().__setattr__(name, value)


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

"""Arguments that commands share: flags by argparse, and plain Hydra overrides on top of a run's config."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mlm_lightning.config import Config
from mlm_lightning.errors import UserError


class Parser(argparse.ArgumentParser):
    """Prints `help_text` for --help, and one line with exit status 2 for anything it can't take."""

    def __init__(self, help_text: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.help_text = help_text

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        if "-h" in arguments or "--help" in arguments:
            print(self.help_text, end="")
            sys.exit(0)
        flags = self.parse_intermixed_args(arguments)
        if getattr(flags, "trust", False):
            see_own_packages()
        return flags

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace(', OVERRIDE', '')}\n{self.help_text.splitlines()[0]}")


def see_own_packages() -> None:
    """A trusted `_target_` may name a package in this folder, as in `mlm train`."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config of a run with `key=value` changes; `data=NAME` takes a shipped group."""
    if not overrides:
        return config
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mlm_lightning.compose import composer, to_plain

    changed = OmegaConf.create(config)
    with composer() as hydra:
        for text in overrides:
            try:
                (parsed,) = OverridesParser.create().parse_overrides([text])
            except HydraException as error:
                raise UserError(f"'{text}': is no KEY=VALUE") from error
            key, value = parsed.key_or_group, parsed.value()
            if parsed.is_sweep_override():
                raise UserError(f"'{text}': several values; give one, and call the command once for each")
            if isinstance(value, str) and isinstance(config.get(key), dict):
                changed[key] = OmegaConf.create(to_plain(hydra.compose([text])))[key]
            elif key.split(".")[0] not in config:
                raise UserError(f"{key}: unknown key of the run's config")
            else:
                try:
                    OmegaConf.update(changed, key, value, merge=True, force_add=True)
                except OmegaConfBaseException as error:
                    raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    plain: Any = OmegaConf.to_container(changed, resolve=True)
    return plain

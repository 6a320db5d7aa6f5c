"""Arguments that commands share: flags by argparse, and plain Hydra overrides on top of a run's config."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mlm_lightning.config import Config, UserError


class Parser(argparse.ArgumentParser):
    """Prints `help_text` for --help, and one line with exit status 2 for anything it can't take."""

    def __init__(self, help_text: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.help_text = help_text

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        if "-h" in arguments or "--help" in arguments:
            print(self.help_text, end="")
            sys.exit(0)
        return self.parse_intermixed_args(arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace(', OVERRIDE', '')}\n{self.help_text.splitlines()[0]}")


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The config of a run with `key=value` changes; `data=NAME` takes a shipped group."""
    if not overrides:
        return config
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from mlm_lightning.compose import composer, to_plain

    changed = OmegaConf.create(config)
    with composer() as hydra:
        for text in overrides:
            try:
                (parsed,) = OverridesParser.create().parse_overrides([text])
            except HydraException as error:
                raise UserError(f"'{text}': is no KEY=VALUE") from error
            key, value = parsed.key_or_group, parsed.value()
            if isinstance(value, str) and isinstance(config.get(key), dict):
                changed[key] = OmegaConf.create(to_plain(hydra.compose([text])))[key]
            elif key.split(".")[0] not in config:
                raise UserError(f"{key}: unknown key of the run's config")
            else:
                OmegaConf.update(changed, key, value, merge=True, force_add=True)
    plain: Any = OmegaConf.to_container(changed, resolve=True)
    return plain

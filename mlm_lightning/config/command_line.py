"""Hydra's side of a command line: its flags, what it answers itself, and overrides on top of a run's config."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlm_lightning.config.compose import CONFIG_NAME, composer, config_folder
from mlm_lightning.config.settings import Composed
from mlm_lightning.errors import NO_VALUE, ConfigError, UserError, one_line

_ANSWERED_BY_HYDRA = ("cfg", "info", "hydra_help", "shell_completion", "version")


def hydra_flags(arguments: list[str], command: str) -> argparse.Namespace:
    """Hydra's flags, with the overrides as `overrides`."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{command}: {message}; {command} --help shows how to call it")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


def is_for_hydra(flags: argparse.Namespace) -> bool:
    """Whether Hydra itself answers: --cfg, --info, shell completion."""
    return any(getattr(flags, name, None) for name in _ANSWERED_BY_HYDRA)


def answer_by_hydra(command: str, arguments: list[str], flags: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Hydra's answer to a command line whose overrides are replaced by `overrides`."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    flags_only, typed = [], list(flags.overrides)
    for argument in arguments:
        if argument in typed:
            typed.remove(argument)
        else:
            flags_only.append(argument)
    GlobalHydra.instance().clear()
    sys.argv = [command, *flags_only, *overrides]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=CONFIG_NAME)(lambda config: None)()


def changed(composed: Composed, overrides: Sequence[str]) -> Composed:
    """The config of a run with `key=value` changes; `data=NAME` takes a shipped group."""
    if not overrides:
        return composed
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    config = composed.config
    result = OmegaConf.create(dict(config))
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
                result[key] = OmegaConf.create(dict(hydra.composed([text]).config))[key]
            elif key.split(".")[0] not in config:
                raise ConfigError(key, NO_VALUE, "unknown key of the run's config")
            else:
                try:
                    OmegaConf.update(result, key, value, merge=True, force_add=True)
                except OmegaConfBaseException as error:
                    raise ConfigError(key, NO_VALUE, one_line(error)) from error
    plain: Any = OmegaConf.to_container(result, resolve=True)
    return Composed(plain)

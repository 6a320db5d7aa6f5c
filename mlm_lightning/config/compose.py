"""Command lines become configs: Hydra's composition, without its stack traces.

    data=uniform  optim.lr=1e-3,3e-4  ─►  jobs: [data=uniform, ++optim.lr=1e-3]  ─►  compose  ─►  one Composed a job
                                                [data=uniform, ++optim.lr=3e-4]

A plain `key=value` is composed as `++key=value`: Hydra would stop at the first unknown key with a message of its own, while the
check that follows (`parse`) finds all of them, whichever way they came in.
"""

import argparse
import itertools
import logging
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlm_lightning.config.composed import Composed
from mlm_lightning.config.flags import in_quotes
from mlm_lightning.config.hints import PACKAGE_REMEDY, WITHOUT_PACKAGE, homes
from mlm_lightning.config.shipped import GROUPS, config_folder, replaced
from mlm_lightning.errors import NO_VALUE, ConfigError, UserError, one_line
from mlm_lightning.files import damaged
from mlm_lightning.packages import need, requirements
from mlm_lightning.values import UnknownKeyError, expanded, suggestion

log = logging.getLogger(__name__)

CONFIG_NAME = "train"
OWN = "--config-dir"
"""The provider of the user's own folder in Hydra's search path."""
WRITTEN_AGAIN = "remove the run's summary.json, and the command that trained it writes this file again"
MOST_JOBS = 100_000
"""Of a sweep: each is composed and checked before the first one starts."""
_CHOSEN_ALREADY = re.compile(r"(?:'override |is not supported: '\++)([^:=]+)(?:: |=)(.+)'")
_ALIAS = re.compile(r"(?:^|[\s,\[{])[*&]\w")
OmegaConf.register_new_resolver("quotient", operator.floordiv, replace=True)
OmegaConf.register_new_resolver("expanded", lambda path: str(expanded(path)), replace=True)


@contextmanager
def composer(config_dir: str | None = None, config_name: str | None = None, quiet: bool = False) -> Iterator["Composer"]:
    """Opens the shipped configs, and before them the user's own folder; says what that replaces unless `quiet`."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if config_dir is not None and not expanded(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3", job_name="mlm"):
        hydra: Any = GlobalHydra.instance().hydra
        search_path = hydra.config_loader.config_search_path
        if config_dir is not None:
            search_path.prepend(OWN, f"file://{expanded(config_dir).resolve()}")
            hydra.config_loader.repository.initialize_sources(search_path)
            if not quiet and (own := replaced(expanded(config_dir))):
                log.info("%-12s %s, in place of what is shipped", "own config", ", ".join(map(str, own)))
        yield Composer(hydra, config_dir, config_name or CONFIG_NAME)


class Composer:
    def __init__(self, hydra: Any, config_dir: str | None, config_name: str) -> None:
        self.hydra, self.loader = hydra, hydra.config_loader
        self.config_dir, self.config_name = config_dir, config_name

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """One config, with Hydra's own part. Raises UserError for anything that Hydra or OmegaConf finds wrong."""
        from hydra import compose
        from hydra.core.hydra_config import HydraConfig

        with self._explaining(overrides):
            config = compose(self.config_name, overrides=list(overrides), return_hydra_config=True)
            with open_dict(config.hydra):
                config.hydra.runtime.output_dir = os.getcwd()
            HydraConfig.instance().set_config(config)  # for ${hydra:…} in a config
        return config

    def composed(self, overrides: Sequence[str]) -> Composed:
        """One config in plain dicts."""
        return self.with_origin(self.compose(overrides), overrides)

    def with_origin(self, config: DictConfig, overrides: Sequence[str]) -> Composed:
        name = None if self.config_name == CONFIG_NAME else self.config_name
        return Composed(to_plain(config), tuple(overrides), self.config_dir, name)

    @contextmanager
    def _explaining(self, overrides: Sequence[str] = ()) -> Iterator[None]:
        from hydra.errors import HydraException, MissingConfigException
        from yaml import YAMLError

        try:
            yield
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if isinstance(error, MissingConfigException):
                _need_launcher(error.missing_cfg_file or "", overrides)
            raise UserError(self._explain(error)) from error
        except RecursionError as error:
            raise UserError("a config names itself in its defaults; give it another name than that of a shipped one") from error
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{mark.name}, line {mark.line + 1}" if mark else "a config"
            raise UserError(f"{where}: is no YAML: {one_line(error)}") from error

    def plain(self, overrides: Sequence[str]) -> list[str]:
        """The overrides with `++` before every plain `key=value` that chooses no group."""
        return [self._plain(in_quotes(override)) for override in overrides]

    def master(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a sweep as a whole, with Hydra's own part: without the values that are swept over."""
        from hydra.types import RunMode

        with self._explaining(overrides):
            return self.hydra.compose_config(self.config_name, overrides, run_mode=RunMode.MULTIRUN)

    def with_params(self, overrides: Sequence[str], master: DictConfig) -> list[str]:
        """The overrides, and before them those that the config itself sweeps over (`hydra.sweeper.params`)."""
        given = {override.lstrip("+~").partition("=")[0] for override in overrides}
        params = OmegaConf.to_container(master.hydra.sweeper.get("params") or OmegaConf.create({}))
        assert isinstance(params, dict)
        # text in Hydra's grammar of overrides, a list, or a plain value
        text = {str(key): ",".join(map(str, each)) if isinstance(each, list) else each for key, each in params.items()}
        return [*self.plain([f"{key}={each}" for key, each in text.items() if key.lstrip("+~") not in given]), *overrides]

    def launch(self, task: Callable[[DictConfig], Any], master: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
        """Runs jobs by the launcher that `hydra/launcher` names; returns when all have ended."""
        from hydra._internal.callbacks import Callbacks
        from hydra.core.plugins import Plugins
        from hydra.errors import HydraException
        from hydra.types import HydraContext

        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(master))
        try:
            launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
        except (ImportError, HydraException) as error:
            problem = f"cannot be used: {one_line(error)}"
            raise ConfigError("hydra.launcher._target_", master.hydra.launcher._target_, problem) from error
        launcher.launch(jobs, initial_job_idx=0)

    def choices(self, overrides: Sequence[str]) -> list[Any]:
        """The parsed overrides, in their order; `is_sweep_override()` tells those with several values."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import Glob

        with self._explaining():
            parsed = OverridesParser.create(self.loader).parse_overrides(list(overrides))
        for override in parsed:
            key, value, typed = override.key_or_group, override.value(), str(override.input_line).lstrip("+")
            if override.is_range_sweep() and not 0 < _length(value) <= MOST_JOBS:
                problem = f"has {max(0, _length(value)):,.0f} values; give from 1 to {MOST_JOBS:,}"
                raise UserError(f"{typed}: {problem}, e.g. {key}='range(0,5)', which ends before 5")
            if isinstance(value, Glob) and not value.filter(options := self.options(key)):
                raise UserError(f"{typed}: is none of {key}'s options, which are: {', '.join(options) or 'none'}")
        return parsed

    def jobs(self, overrides: Sequence[str]) -> list[list[str]]:
        """The overrides of each job of a sweep, as Hydra's basic sweeper would run them: the product of all choices."""
        choices: list[list[str]] = []
        for override in self.choices(overrides):
            key, typed = override.get_key_element(), override.input_line or ""
            if override.is_interval_sweep():
                typed = typed.lstrip("+")
                raise UserError(f"{typed}: an interval has no end of values; give sweep.trials=N to search in it")
            swept = override.is_sweep_override()
            values = [f"{key}={value}" for value in override.sweep_string_iterator()] if swept else [typed]
            choices.append(values)
        if (number := math.prod(map(len, choices))) > MOST_JOBS:
            raise UserError(
                f"this sweep would have {number:,} runs, more than {MOST_JOBS:,}; give fewer values, or sweep.trials=N"
            )
        return [list(job) for job in itertools.product(*choices)]

    def _plain(self, override: str) -> str:
        key, equals, value = override.partition("=")
        if not key:
            raise UserError(self._no_key_value(override))
        if found := re.match(r"\+*(callbacks|logger)=\[\s*\{", override):
            raise UserError(f"{override}: a list has names; a class of your own is '{found[1]}.NAME={{_target_: …}}'")
        if not equals or key[0] in "+~" or "@" in key or key.startswith("hydra."):
            return override
        if not key.startswith("hydra/") and key not in GROUPS and ("." in key or not self.options(key)):
            return f"++{override}"
        if key in GROUPS and re.fullmatch(r"true|false|[-+.\d]+", value):
            raise UserError(f"{override}: is no name of an option. There are: {', '.join(self.options(key))}")
        if value not in ("null", "[]"):
            return override
        # no option is for Hydra an empty list of them, and none of the callbacks that are in every run is an option
        return "callbacks=none" if key == "callbacks" else f"{key}=[]"

    def answer(self, flags: argparse.Namespace, overrides: Sequence[str]) -> None:
        """What Hydra itself says to --info or --cfg."""
        with self._explaining(overrides):
            if flags.info:
                self.hydra.show_info(flags.info, self.config_name, overrides)
            else:
                self.hydra.show_cfg(self.config_name, overrides, flags.cfg, flags.package, flags.resolve)

    def options(self, group: str) -> list[str]:
        """What may be chosen for a group."""
        from hydra.core.object_type import ObjectType

        return sorted(self.loader.get_group_options(group, ObjectType.CONFIG))

    def _explain(self, error: Exception) -> str:
        from hydra.errors import MissingConfigException, OverrideParseException

        if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            options = self.options(group)
            return f"{group}={choice}: no such option{suggestion(choice, options)} There are: {', '.join(options)}"
        if isinstance(error, OverrideParseException):
            return self._no_key_value(error.override)
        if found := re.search(r"In '(\w+/[^']+)': Could not override '\w+@", str(error)):
            return f"{found[1].replace('/', '=', 1)}: {WITHOUT_PACKAGE}; {PACKAGE_REMEDY}"
        if found := _CHOSEN_ALREADY.search(str(error)):
            group, choice = found.groups()
            remedy = f"{group}={choice} replaces it (in a YAML: override /{group}: {choice})"
            return f"+{group}={choice}: {group} has a choice; {remedy}"
        return _with_key(error)

    @staticmethod
    def _no_key_value(override: str) -> str:
        return (
            f"'{override.removeprefix('++')}': is no KEY=VALUE; quote it where the shell needs it, e.g. "
            "'data.path=texts/*.txt', and a value with spaces, quotes or brackets once more, e.g. 'data.path=\"my texts\"'"
        )


def _need_launcher(option: str, overrides: Sequence[str]) -> None:
    """An option of hydra/launcher comes with a plugin: `hydra/launcher/submitit_slurm` with hydra-submitit-launcher."""
    group, _, choice = option.rpartition("/")
    plugin = f"hydra-{choice.partition('_')[0]}-launcher"
    if group == "hydra/launcher" and plugin in requirements():
        typed = [each for each in overrides if each.startswith(("launcher=", f"{group}="))]
        need(typed[-1] if typed else f"{group}={choice}", plugin)


def _length(sweep: Any) -> float:
    """The number of values of a range."""
    return math.ceil((sweep.stop - sweep.start) / sweep.step) if sweep.step else math.inf


def _with_key(error: Exception) -> str:
    """The message without OmegaConf's details, but with the key that they name."""
    message, key = one_line(error), getattr(error, "full_key", None)
    return f"{key}: {message}" if key and key not in message else message


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The config without Hydra's own part, as plain dicts and lists, interpolations resolved, `???` kept."""
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(plain, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise UserError(_with_key(error)) from error
    assert isinstance(container, dict)
    # a group without any option leaves no key, and one that is off as a whole is off
    plain_config = {"callbacks": None, "logger": None} | {str(key): value for key, value in container.items()}
    if not any((plain_config["callbacks"] or {}).values()):
        plain_config["callbacks"] = None
    return plain_config


def config_yaml(composed: Composed) -> bytes:
    """As a run's folder keeps it."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(composed.config))).encode()


def read_config(folder: Path) -> Composed:
    """The config of a run's folder. Raises UserError where it is damaged."""
    from yaml import AliasEvent, YAMLError, parse

    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:  # that of a foreign run could read our environment
            raise ValueError("it holds an interpolation (${…}), and a run's config none")
        if _ALIAS.search(text) and any(isinstance(each, AliasEvent) for each in parse(text)):
            raise ValueError("it holds a YAML alias (*…), and a run's config none")  # which may stand for gigabytes
        config = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(config, dict) or not config:
            raise ValueError("it holds no config")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise damaged(path, error, WRITTEN_AGAIN) from error
    return Composed({str(key): value for key, value in config.items()})


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
                (parsed,) = OverridesParser.create().parse_overrides([in_quotes(text)])
            except HydraException as error:
                raise UserError(f"'{text}': is no KEY=VALUE") from error
            key, value = parsed.key_or_group, parsed.value()
            if parsed.is_sweep_override():
                raise UserError(f"'{text}': several values; give one, and call the command once for each")
            if isinstance(value, str) and isinstance(config.get(key), dict):
                result[key] = OmegaConf.create(dict(hydra.composed([text]).config))[key]
            elif key.split(".")[0] not in config:
                raise UnknownKeyError(key, "the run's config", sorted(config), homes(key, config))
            else:
                try:
                    OmegaConf.update(result, key, value, merge=True, force_add=True)
                except OmegaConfBaseException as error:
                    raise ConfigError(key, NO_VALUE, one_line(error)) from error
    return Composed(OmegaConf.to_container(result, resolve=True))  # type: ignore[arg-type]

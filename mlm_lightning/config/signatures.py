"""What a `_target_` may be, and which keys its signature knows.

A config knows exactly the keys that the constructor knows, whichever way they came in (`key=`, `+key=`, YAML), and a user's own
class is checked like ours. A config that was read from a run's folder may have come from anywhere: what it names is imported
only from a list of our own modules, unless the user says `--trust`.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mlm_lightning.config.unimported import parameters_of
from mlm_lightning.errors import NO_VALUE, ConfigError, MissingPackagesError, UntrustedError, described
from mlm_lightning.packages import OF_CLASSES, missing, need
from mlm_lightning.values import UnknownKeyError, check_arguments

_CALLBACKS, _TRAINING = "mlm_lightning.training.callbacks", "mlm_lightning.training"
MOVED: dict[str, str] = {
    "mlm_lightning.data.tree.TreeSource": "mlm_lightning.data.languages.tree.TreeSource",
    "mlm_lightning.data.uniform.UniformSource": "mlm_lightning.data.languages.uniform.UniformSource",
    "mlm_lightning.data.text.TextSource": "mlm_lightning.data.text.source.TextSource",
    "mlm_lightning.data.workers.Local": "mlm_lightning.data.text.prepare.workers.Local",
    "mlm_lightning.data.workers.Ray": "mlm_lightning.data.text.prepare.workers.Ray",
    "mlm_lightning.callbacks.Checkpoint": f"{_CALLBACKS}.checkpoint.Checkpoint",
    "mlm_lightning.callbacks.Throughput": f"{_CALLBACKS}.throughput.Throughput",
    "mlm_lightning.callbacks.Progress": f"{_CALLBACKS}.progress.ProgressReport",
    "mlm_lightning.callbacks.Samples": f"{_CALLBACKS}.samples.Samples",
    "mlm_lightning.loggers.CSVLogger": f"{_TRAINING}.loggers.CSVLogger",
    "mlm_lightning.loggers.TensorBoardLogger": f"{_TRAINING}.loggers.TensorBoardLogger",
    **{f"mlm_lightning.optim.{name}": f"{_TRAINING}.optim.{name}" for name in ("Constant", "Cosine", "Linear", "WSD")},
}
"""Where classes were in earlier versions: users' configs and the folders of runs still name them so."""

_LANGUAGES = [
    "code",
    "dyck",
    "hmm",
    "ising",
    "markov",
    "mixture",
    "pcfg",
    "periodic",
    "recall",
    "rhm",
    "tree",
    "uniform",
    "urn",
]
TRUSTED_MODULES = frozenset(
    {
        *(f"mlm_lightning.data.languages.{name}" for name in _LANGUAGES),
        "mlm_lightning.data.text.source",
        "mlm_lightning.masking",
        "mlm_lightning.models.transformer",
        "mlm_lightning.models.pretrained",
        "mlm_lightning.tasks",
    }
)

PROVIDED: dict[str, tuple[str, ...]] = {
    "data": ("label_column", "class_names"),
    "model": ("vocab_size", "seq_len", "pad_token_id", "separate_documents", "num_outputs", "class_names"),
    "optim": ("params", "matrices"),
    "callbacks": ("folder", "save_dir", "purge_step"),
    "logger": ("folder", "save_dir", "purge_step"),
}
"""What the framework passes to the constructors of a group."""
_COMES_FROM = {"data": "task", "model": "data", "optim": "model"}


def resolve_target(path: Any, trusted: bool = True) -> Any:
    """The class that a `_target_` names; ConfigError where there is none, none that is trusted, or a package is missing."""
    problem = "the run names a class that is not mlm_lightning's own, and whose code may do anything"
    refused = UntrustedError("_target_", path, problem, "--trust (from Python: trust=True) runs it all the same")
    now = MOVED.get(str(path), str(path))
    module, _, name = now.rpartition(".")
    if not trusted and module not in TRUSTED_MODULES:
        raise refused
    if now in OF_CLASSES:
        need(*OF_CLASSES[now])
    try:
        target = getattr(import_module(module), name)
    except Exception as error:  # importing a user's module may raise anything
        raise ConfigError("_target_", path, f"cannot be imported: {described(error)}") from error
    if not callable(target):
        raise ConfigError("_target_", path, "is no class")
    if not trusted and (getattr(target, "__module__", "") not in TRUSTED_MODULES or not inspect.isclass(target)):
        raise refused
    return target


def check_node(key: str, node: Mapping[str, Any], base: Any, trusted: bool, also: tuple[str, ...] = ()) -> list[ConfigError]:
    """What is wrong with a group that has a `_target_`, which must be a subclass of `base` (its name where it is Lightning's,
    which is not imported for that). `also` are keys of the group that are not the target's."""
    if "_target_" not in node:
        return [_no_target(key)]
    try:
        target = resolve_target(node["_target_"], trusted)
    except MissingPackagesError as error:
        return [error]
    except ConfigError as error:
        return [type(error)(f"{key}.{error.key}", error.value, error.problem, error.remedy)]
    if not _is_subclass(target, base):
        wanted = base if isinstance(base, str) else base.__name__
        return [ConfigError(f"{key}._target_", node["_target_"], f"is no subclass of {wanted}")]
    group = key.partition(".")[0]
    provided, source = PROVIDED.get(group, ()), _COMES_FROM.get(group)
    taken = [name for name in node if source and name in provided]
    found = [ConfigError(f"{key}.{name}", NO_VALUE, f"is not set in a config; it comes from the {source}") for name in taken]
    arguments = {name: value for name, value in node.items() if name not in ("_target_", *taken)}
    return found + check_arguments(key, arguments, target, provided, also)


def mistyped_keys(key: str, node: Mapping[str, Any]) -> list[ConfigError]:
    """The same, as far as it is known without an import: no class, a package that is not installed, or keys that the class
    doesn't know by its source."""
    if "_target_" not in node:
        return [_no_target(key)]
    target = MOVED.get(str(node["_target_"]), str(node["_target_"]))
    if absent := missing(*OF_CLASSES.get(target, ("",))):
        return [*absent]
    names = parameters_of(target)
    if names is None:
        return []
    options = sorted({*names} - {*PROVIDED.get(key.partition(".")[0], ())})
    found = [name for name in node if name not in ("_target_", *names)]
    return [UnknownKeyError(f"{key}.{name}", target.rpartition(".")[2], options) for name in found]


def _no_target(key: str) -> ConfigError:
    example = f"it names the class, e.g. {key}._target_=package.module.Class"
    return ConfigError(key, NO_VALUE, "has no _target_", example)


def _is_subclass(target: Any, base: Any) -> bool:
    if base is None or not inspect.isclass(target):
        return True
    if isinstance(base, str):
        return any(each.__name__ == base for each in target.__mro__)
    return issubclass(target, base)

"""Optional packages: a command that needs one says so at once, with the line that installs all that it lacks.

    need("data=text", "transformers", "tokenizers")
    data=text: needs transformers and tokenizers, not installed here; pip install 'tokenizers<0.24,>=0.22' 'transformers<6,>=5'

Which versions we work with is read from the metadata of our own distribution, where an extra lists them. The line names the
packages themselves, so it is the same for a clone and for a wheel. A package counts as installed where its metadata is there:
if it cannot be imported all the same, its own error is shown.
"""

import re
from functools import cache
from importlib import metadata

from mlm_lightning.errors import MissingPackagesError

OF_CLASSES = {
    "mlm_lightning.models.pretrained.PretrainedMLM": ("model=pretrained (or distilbert)", "transformers", "tokenizers"),
    "mlm_lightning.training.loggers.WandbLogger": ("logger=wandb", "wandb"),
    "lightning.pytorch.loggers.WandbLogger": ("logger=wandb", "wandb"),
    "optimi.StableAdamW": ("optim=stable_adamw", "torch-optimi"),
}
"""What a class needs that a config names, where importing the class or its constructor would be too late to say so."""


@cache
def requirements() -> dict[str, str]:
    """What our distribution asks for, extras included, by the packages' names in lower case: {"optuna": "optuna<6,>=4"}."""
    asked = [each.partition(";")[0].strip() for each in metadata.requires("mlm-lightning") or ()]
    return {re.split(r"[^\w.-]", each, maxsplit=1)[0].lower(): each for each in asked}


def missing(user: str, *packages: str) -> list[MissingPackagesError]:
    """An error that names those of the packages that are not installed, which `user` needs; none if all are there."""
    absent = {name: requirements().get(name.lower(), name) for name in packages if not _is_installed(name)}
    return [MissingPackagesError([user], absent)] if absent else []


def need(user: str, *packages: str) -> None:
    """Raises MissingPackagesError where a package is not installed."""
    for error in missing(user, *packages):
        raise error


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True

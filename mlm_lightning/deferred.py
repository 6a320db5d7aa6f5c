"""Lightning imports all of torchmetrics, and with it scipy and transformers, for two classes: seconds before a first step.

    import lightning ─► torchmetrics.Metric, .MetricCollection     from the modules that define them
    whatever else is asked of torchmetrics, by whomever            imports it as ever

If Lightning comes to use more of it, that imports it, too: then all is as without this.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NAME = "torchmetrics"
_HOMES = {
    "__version__": ("__about__",),
    "Metric": ("utilities", "metric"),  # which import each other, and in this order only
    "MetricCollection": ("utilities", "collections"),
}
"""What Lightning uses, and the modules of torchmetrics to import for it: the last one has it."""


def defer_torchmetrics() -> None:
    """From here on in this process, torchmetrics is imported where something of it is used that Lightning does not use."""
    if _NAME not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Package(ModuleType):
    """The package before it is imported: its submodules can be."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr([importlib.import_module(f"{_NAME}.{each}") for each in _HOMES[name]][-1], name)
        if name == "_logger":  # what its own modules use; its handler comes with the package
            return logging.getLogger(_NAME)
        if name.startswith("__"):  # what looks at every module asks for such names
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        assert isinstance(self.__spec__, ModuleSpec)
        assert isinstance(self.__spec__.loader, _Loader)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__loader__ = self.__spec__.loader = self.__spec__.loader.loader
        self.__loader__.exec_module(self)
        return getattr(self, name)


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _NAME or (spec := PathFinder.find_spec(fullname, path)) is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader)
        return spec

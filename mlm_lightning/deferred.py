"""Lightning imports all of torchmetrics, with it scipy, transformers, matplotlib, for two classes: seconds before a first step.

    import lightning ─► torchmetrics.Metric, .MetricCollection     from the modules that define them, but for their plots
    whatever else is asked of torchmetrics, by whomever            imports it as ever

If Lightning comes to use more of it, that imports it, too: then all is as without this.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NAME, _PLOTS = "torchmetrics", "torchmetrics.utilities.plot"
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


class _Deferred(ModuleType):
    """A module before it is imported: its submodules can be, and it has stand-ins for some of its names."""

    def __getattr__(self, name: str) -> Any:
        if (make := _STAND_INS[self.__name__].get(name)) is not None:
            return make()
        if name.startswith("__"):  # what looks at every module asks for such names
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_imported(self), name)


def _imported(module: ModuleType) -> ModuleType:
    """The same module, after its own code has run."""
    if isinstance(module, _Deferred):
        assert isinstance(module.__spec__, ModuleSpec)
        assert isinstance(module.__spec__.loader, _Loader)
        module.__class__ = ModuleType  # type: ignore[assignment]
        module.__loader__ = module.__spec__.loader = module.__spec__.loader.loader
        module.__loader__.exec_module(module)
    return module


def _from_home(name: str) -> Any:
    return getattr([importlib.import_module(f"{_NAME}.{each}") for each in _HOMES[name]][-1], name)


class _AnyAxes(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _imported(sys.modules[_PLOTS])._AX_TYPE)


class _Axes(metaclass=_AnyAxes):
    """Stands in for matplotlib's, in annotations and where a plot is asked what it was given."""


def _plot(*args: Any, **kwargs: Any) -> Any:
    return _imported(sys.modules[_PLOTS]).plot_single_or_multi_val(*args, **kwargs)


_STAND_INS: dict[str, dict[str, Callable[[], Any]]] = {
    _NAME: {
        **{name: lambda name=name: _from_home(name) for name in _HOMES},  # type: ignore[misc]
        "_logger": lambda: logging.getLogger(_NAME),  # what its own modules use; its handler comes with the package
    },
    _PLOTS: {"_AX_TYPE": lambda: _Axes, "_PLOT_OUT_TYPE": lambda: tuple, "plot_single_or_multi_val": lambda: _plot},
}


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _STAND_INS or (spec := PathFinder.find_spec(fullname, path)) is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader)
        return spec

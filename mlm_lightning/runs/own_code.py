"""Which code of the user's a run computes with: where a file of it is edited, the same command computes something else.

    model._target_: my_package.models.Net          my_package/__init__.py, my_package/models.py …
    my_package/models.py: from . import layers     my_package/layers.py           what it imports of the same package …
    callbacks.x._target_: my_callback.Probe        my_callback.py, helpers.py     … or beside it, where it is in none
    optim._target_: optimi.StableAdamW             torch-optimi 0.2.1             installed: its version

A digest of each file. Imports are found in the sources, wherever they stand there; nothing is executed.
"""

import ast
import contextlib
import hashlib
import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from mlm_lightning.config.settings import Settings

# their versions are noted in every manifest
_NOTED_ELSEWHERE = sys.stdlib_module_names | {"mlm_lightning", "torch", "lightning", "transformers"}


def own_code(settings: Settings) -> dict[str, Any]:
    """Of the classes that decide the result: `own_code`, the digests of their files and of what these import, by their paths
    in `code_folders`; `classes_of`, the versions of other distributions. Empty where all classes are ours."""
    files: dict[str, str] = {}
    folders: set[str] = set()
    versions: dict[str, str] = {}
    for name, made in _written_in(settings):
        module: Any = sys.modules.get(name)
        path = getattr(module, "__file__", None)
        if path is None:
            files[f"{name}.{getattr(made, '__name__', '?')}"] = _digest_of_source(made)
            continue
        root = Path(path).parents[len(module.__package__.split(".")) if module.__package__ else 0]
        file = Path(path).relative_to(root)
        for record in root.glob("*.dist-info/RECORD"):  # in which an editable install has no sources
            if f"\n{file.as_posix()}," in f"\n{record.read_text()}":
                installed = Distribution.at(record.parent)
                versions[installed.name] = installed.version
                break
        else:
            _add_with_imports(files, root, file)
            folders.add(str(root))
    noted = {"own_code": files, "code_folders": sorted(folders), "classes_of": versions}
    return {name: each for name, each in noted.items() if each}


def digests_now(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What the files that a run notes hold now, where they are found without an import; else what is noted."""
    now = dict(manifest.get("own_code", {}))
    for name in now:
        if made := getattr(sys.modules["__main__"], name.removeprefix("__main__."), None):  # of a notebook
            now[name] = _digest_of_source(made)
        for folder in [*manifest.get("code_folders", ()), *reversed(sys.path)]:
            file = Path(folder, name)  # a foreign manifest may name a device
            with contextlib.suppress(OSError):  # it is not there, or may not be read
                now[name] = _digest(file.read_bytes()) if file.suffix == ".py" and file.is_file() else now[name]
    return now


def _written_in(settings: Settings) -> Iterator[tuple[str, Any]]:
    """The modules that the config names, and those where the classes and their bases are written; each with the class."""
    nodes = [*settings.sources.values(), *settings.oracles.values(), *settings.callbacks.values()]
    nodes += [settings.model, settings.masking, settings.optim, settings.schedule]
    named = [(node.target.rpartition(".")[0], node.callable) for node in nodes]
    for name, made in [*named, (type(settings.task).__module__, type(settings.task))]:
        written = [(each.__module__ or name, each) for each in getattr(made, "__mro__", [made])]
        for module, each in [(name, made), *written]:
            if module.partition(".")[0] not in _NOTED_ELSEWHERE:
                yield module, each


def _add_with_imports(digests: dict[str, str], root: Path, first: Path) -> None:
    """A module's file, and all that it imports of its package, or beside it."""
    waiting = [first, *(folder / "__init__.py" for folder in first.parents[:-1])]
    while waiting:
        file = waiting.pop()
        is_near = file.parts[0] == first.parts[0] if first.parts[1:] else file.parts[0] not in _NOTED_ELSEWHERE
        if is_near and str(file) not in digests:
            with contextlib.suppress(OSError, SyntaxError, ValueError):  # importing it says what is wrong with it
                content = (root / file).read_bytes()
                digests[str(file)] = _digest(content)
                waiting += _imports(file, ast.parse(content))


def _imports(file: Path, tree: ast.AST) -> Iterator[Path]:
    """Where the modules may be that a source imports, and the packages that they are in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            level, module = getattr(node, "level", 0), getattr(node, "module", None) or ""
            start = file.parts[:-level] if level else ()
            for alias in node.names:
                path = Path(*start, *f"{module}.{alias.name}".split("."))
                for each in (path, *path.parents[:-1]):
                    yield from (each.with_suffix(".py"), each / "__init__.py")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _digest_of_source(made: Any) -> str:
    """Of what is in no file: of a notebook's class, Python keeps the cell for the tracebacks of its methods."""
    for function in filter(inspect.isfunction, (made, *vars(made).values())):
        for node in ast.walk(ast.parse("".join(linecache.getlines(function.__code__.co_filename)))):
            if getattr(node, "name", None) == made.__name__:
                return _digest(ast.unparse(node).encode())
    return "unknown"

"""The keys of a class that isn't imported yet, from its source: Lightning takes seconds to import, and a typo needs none of it.

callbacks.checkpoint.every_minute  ─►  training/callbacks/checkpoint.py, parsed  ─►  every_minutes, monitor …

Nothing is executed. Where the source doesn't say it for certain (another decorator, `**kwargs`, an inherited constructor), the
answer is None, and the class itself is asked later.
"""

import ast
from importlib.util import find_spec
from pathlib import Path


def parameters_of(target: str) -> list[str] | None:
    """The names that the constructor of `package.module.Class` takes."""
    for _ in range(5):  # a package's __init__ hands names on
        module, _, name = target.rpartition(".")
        tree = _parsed(module)
        if tree is None:
            return None
        handed_on = None
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return None if node.decorator_list else _of_constructor(node)
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                handed_on = next((f"{node.module}.{a.name}" for a in node.names if (a.asname or a.name) == name), handed_on)
        if handed_on is None:
            return None
        target = handed_on
    return None


def _of_constructor(node: ast.ClassDef) -> list[str] | None:
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            arguments = function.args
            if arguments.kwarg or not all(ast.unparse(each).startswith("checked(") for each in function.decorator_list):
                return None
            return [each.arg for each in (*arguments.args[1:], *arguments.kwonlyargs)]
    return None


def _parsed(module: str) -> ast.Module | None:
    """A module's source, found without importing the packages that it is in."""
    top, *parts = module.split(".")
    try:
        spec = find_spec(top) if top else None
        if spec is None:
            return None
        roots = [Path(folder, *parts) for folder in spec.submodule_search_locations or ()]
        files = [file for root in roots for file in (root.with_suffix(".py"), root / "__init__.py")]
        files += [Path(spec.origin)] if spec.origin and not parts else []
        for file in files:
            if file.is_file():
                return ast.parse(file.read_bytes())
    except (ValueError, SyntaxError, OSError):  # importing it will say what is wrong with it
        return None
    return None

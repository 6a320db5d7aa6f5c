"""The picture of DESIGN section 1 holds: imports point down, and nothing heavy is imported for nothing."""

import ast
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlm_lightning

PACKAGE = Path(mlm_lightning.__file__).parent

# from the bottom up: what a room imports lies in it or below it, function-level and TYPE_CHECKING imports included
ROOMS = (
    ("batch", "deferred", "errors", "values", "messages", "files", "packages", "processes", "randomness"),
    ("masking", "metrics", "cross_entropy"),
    ("tasks",),
    ("data", "models"),
    ("config", "testing"),
    ("runs",),
    ("training",),
    ("report",),
    ("analysis",),
    ("sweeps",),
    ("sharing",),
    ("commands",),
    ("", "__main__"),
)
BOTTOM = ROOMS[0]
MAY_USE = {
    "lightning": ("data.datamodule", "training"),
    "hydra": ("config", "sweeps"),
    "omegaconf": ("config", "sweeps"),
}
LOADED_BY_NAME = (
    "models.pretrained",
    "models.pretrained_build",
    "models.pretrained_parts",
    "models.convert",
)  # by a config's _target_, or where needed
HEAVY = ("transformers", "tokenizers", "datasets", "matplotlib", "pandas", "wandb")


def name_of(path: Path) -> str:
    """`data.tree` of mlm_lightning/data/tree.py, and `data` of its __init__.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
EVERY_MODULE = pytest.mark.parametrize("module", [name for name in MODULES if name])


def room(module: str) -> str:
    return module.partition(".")[0]


def level(module: str) -> int:
    levels = [level for level, rooms in enumerate(ROOMS) if room(module) in rooms]
    assert len(levels) == 1, f"{module} has no place in ROOMS: give it one"
    return levels[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names that are imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(tree: ast.AST) -> set[str]:
    """Our modules among what a module imports."""
    inside = {name.removeprefix("mlm_lightning.") for name in imported(tree) if name.startswith("mlm_lightning.")}
    return inside & set(MODULES)


def runs_at_import(tree: ast.Module) -> ast.Module:
    """The module without its functions' bodies and without what only a type checker reads."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)

    return Prune().visit(ast.parse(ast.unparse(tree)))


@EVERY_MODULE
def test_imports_point_down(module):
    for other in ours(MODULES[module]) - {module}:
        # the files of the lowest level, and metrics and masking, are neighbours; rooms of one level do not know each other
        neighbours = room(module) == room(other) or level(module) < 2
        assert level(other) < level(module) or (neighbours and level(other) == level(module)), f"{module} imports {other}"


@pytest.mark.parametrize("module", LOADED_BY_NAME)
def test_what_is_loaded_by_name_is_imported_by_nobody(module):
    importers = {other for other, tree in MODULES.items() if module in ours(runs_at_import(tree))}
    assert importers <= set(LOADED_BY_NAME)


def test_there_is_no_circle_of_imports():
    """Function-level and TYPE_CHECKING imports included."""
    left = {module: ours(tree) - {module} for module, tree in MODULES.items()}
    while left:
        leaves = [module for module, needs in left.items() if not needs & set(left)]
        assert leaves, f"a circle of imports among {sorted(left)}"
        for module in leaves:
            del left[module]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("models.")])
def test_models_know_the_bottom_modules_and_nothing_else_of_ours(module):
    assert {name for name in ours(MODULES[module]) if not name.startswith("models")} <= {"batch", "errors", "values"}


@EVERY_MODULE
@pytest.mark.parametrize("library", MAY_USE)
def test_each_framework_has_its_place(module, library):
    uses = any(name.partition(".")[0] in (library, f"pytorch_{library}") for name in imported(MODULES[module]))
    assert not uses or module in MAY_USE[library] or room(module) in MAY_USE[library], f"{module} imports {library}"


@pytest.mark.parametrize("module", ["config.build", "config.settings", "config.signatures", "config.trainer"])
def test_settings_are_plain_python(module):
    """They can be used, and tested, without Hydra."""
    assert not {"hydra", "omegaconf", "lightning"} & {name.partition(".")[0] for name in imported(MODULES[module])}


@pytest.mark.parametrize("module", [name for name in MODULES if name and name not in LOADED_BY_NAME])
def test_heavy_libraries_are_imported_where_they_are_used(module):
    at_import = {name.partition(".")[0] for name in imported(runs_at_import(MODULES[module]))}
    assert not at_import & set(HEAVY)


# how the parts speak to each other

SOURCES = {name_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
FORBIDDEN = {
    # what, and the modules that may
    r"\bhasattr\(": {"files", "processes"},  # of the operating system's constants and functions
    r"inspect\.signature\(\w+\.prepare": set(),
    r"str\(error\)\.(startswith|splitlines|split)\b": {"errors"},  # one_line
    # parsed once, as every part, and then replaced or passed on; or read from a plain Trainer
    r"TrainerSettings\(": {"config.trainer", "training.module"},
    r"file=sys\.stderr": {"messages"},
    r"warnings\.warn\(": set(),
    r"\bconfig\[": {"config.parse", "config.paths", "data.text.source"},  # the last: that of `transformers`
}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_contracts_are_written_not_looked_up(pattern):
    assert {name for name, text in SOURCES.items() if re.search(pattern, text)} <= FORBIDDEN[pattern]


def test_files_and_functions_fit_their_reader():
    """A file under 330 lines, a function's body under 61; but for what is one thing. A constructor's signature is a config."""
    lengths = {module: len(text.splitlines()) for module, text in SOURCES.items()}
    whole = {"masking"}
    assert {module for module, length in lengths.items() if length > 330} <= whole
    assert statistics.median(lengths.values()) < 160
    functions = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if (node.end_lineno or 0) - node.body[0].lineno >= 60] == []


# what a process has in memory


def loaded(code: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """Which of `names` are in sys.modules of a fresh process after `code`."""
    ending = f"\nimport sys\nprint('LOADED', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + ending], capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return line.split()[1:]


@pytest.mark.parametrize("arguments", [["--help"], [], ["trian"], ["--version"], ["train", "--help"], ["runs", "-h"]])
def test_help_imports_nothing_heavy(arguments, tmp_path):
    code = (
        f"import contextlib\nfrom mlm_lightning.__main__ import main\nwith contextlib.suppress(SystemExit): main({arguments!r})"
    )
    assert loaded(code, ("torch", "lightning", "hydra", "omegaconf", "numpy", "transformers", "datasets"), tmp_path) == []


@pytest.mark.parametrize(
    ("mistake", "without"),
    [
        ("data=unifrom", ("torch", "lightning")),
        ("masking.rate=0.1,0.2", ("torch", "lightning")),
        ("data.dpeth=3", ("torch._dynamo", "lightning", "transformers")),
        ("optim.lrr=3", ("torch._dynamo", "lightning", "transformers")),
        ("callbacks.checkpoint.every_minute=3", ("torch._dynamo", "lightning", "transformers")),
        ("logger.tensorboard.flush=3", ("torch._dynamo", "lightning", "transformers")),
        ("model.nhead=3", ("torch._dynamo", "lightning", "transformers")),
    ],
)
def test_a_mistake_is_answered_before_the_slow_imports(mistake, without, tmp_path):
    code = f"from mlm_lightning.__main__ import main\nassert main(['train', {mistake!r}]) == 2"
    assert loaded(code, without, tmp_path) == []


def test_a_synthetic_run_imports_no_text_libraries(tmp_path):
    """Lightning's metrics may touch `transformers` itself; its models and `datasets` cost seconds and are not needed."""
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from conftest import composed
        from helpers import train
        summary = train(composed("output_dir=outputs", "trainer.max_steps=2", "trainer.val_check_interval=2"))
        assert summary["steps"] == 2, summary
    """
    names = ("transformers.modeling_utils", "datasets", *(f"mlm_lightning.{name}" for name in LOADED_BY_NAME), "lightning")
    assert loaded(code, names, tmp_path) == ["lightning"]
    assert len(list((tmp_path / "outputs").rglob("summary.json"))) == 1

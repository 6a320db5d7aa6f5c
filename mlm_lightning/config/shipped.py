"""The configs that there are to choose from: those in `conf/`, and the user's own beside them. Their names are files' names, so
that they can be listed without Hydra."""

import re
from functools import cache
from pathlib import Path

from mlm_lightning.values import expanded

GROUPS = (
    "data",
    "task",
    "masking",
    "model",
    "optim",
    "schedule",
    "trainer",
    "callbacks",
    "logger",
    "experiment",
    "sweep",
    "prepare",
    "launcher",
)


def config_folder() -> Path:
    """The shipped `conf/`: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def replaced(config_dir: Path) -> list[Path]:
    """The user's own configs that stand for other shipped ones of their names."""
    shipped = config_folder()
    pairs = [(file, config_dir / file.relative_to(shipped)) for file in sorted(shipped.rglob("*.yaml"))]
    return [own for file, own in pairs if own.is_file() and own.read_bytes() != file.read_bytes()]


def options(config_dir: str | None = None) -> dict[str, dict[str, str]]:
    """By group its options, each with what the first line of its file says of it; the user's own last."""
    found: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for folder in (config_folder(), *([expanded(config_dir)] if config_dir else [])):
        for file in sorted(folder.glob("*/*.yaml")):
            if file.parent.name != "hydra":
                found.setdefault(file.parent.name, {})[file.stem] = _description(file)
    return {group: files for group, files in found.items() if files}


@cache
def name_of(target: str) -> str | None:
    """What a shipped config calls a class, such as `hmm`, where a single one has it."""
    line = re.compile(rf"^\s*_target_:\s*{re.escape(target)}\s", re.MULTILINE)
    groups = [group for group in GROUPS if group not in ("experiment", "sweep")]  # which are made of the others
    files = [file for group in groups for file in config_folder().glob(f"{group}/*.yaml")]
    having = [file.stem for file in files if line.search(file.read_text(encoding="utf-8"))]
    return having[0] if len(having) == 1 else None


def _description(file: Path) -> str:
    """The first sentence of the comment that a file begins with; empty where there is none."""
    comment = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comment.append(line.lstrip("# ").rstrip())
    return " ".join(comment).partition(". ")[0].removesuffix(".")

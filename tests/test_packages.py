"""Whatever optional package is missing, one message names it with the line that installs it, and nothing is created."""

import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import TOY
from helpers import run_of, train

from mlm_lightning import packages
from mlm_lightning.errors import InvalidConfigError, MissingPackagesError

REPOSITORY = Path(__file__).parents[1]
HIDDEN = {
    **{name: name for name in ("transformers", "tokenizers", "datasets", "sentencepiece", "pyarrow")},
    "matplotlib": "matplotlib",
    "jinja2": "Jinja2",
    "optuna": "optuna",
    "wandb": "wandb",
    "optimi": "torch-optimi",
    "ray": "ray",
    **{f"hydra_plugins.hydra_{name}_launcher": f"hydra-{name}-launcher" for name in ("joblib", "submitit", "ray")},
}
"""Modules, with their packages."""

# run by every child before anything else
HIDE = f"""
import importlib.abc, importlib.metadata, pkgutil, sys

MODULES, PACKAGES = {set(HIDDEN)!r}, {{name.lower() for name in {set(HIDDEN.values())!r}}}

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == module or name.startswith(module + ".") for module in MODULES):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())

finder, walk = importlib.metadata.MetadataPathFinder, pkgutil.walk_packages
found = finder.find_distributions
finder.find_distributions = classmethod(
    lambda cls, *context: (each for each in found(*context) if (each.metadata["Name"] or "").lower() not in PACKAGES)
)
# Hydra looks for its plugins by it
pkgutil.walk_packages = lambda *args, **kwargs: (
    each for each in walk(*args, **kwargs) if not any(each.name.startswith(module) for module in MODULES)
)
"""
RUNNER = """
import contextlib, io, json, os, shlex, sys
from mlm_lightning.__main__ import main

for command in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            status = main(shlex.split(command))
        except SystemExit as ended:
            status = ended.code
    print(json.dumps([status, errors.getvalue(), sorted(os.listdir())]))
"""
TEXT = "data=text data.path=texts.txt data.tokenizer=train"
TRANSFORMERS = ["transformers", "tokenizers"]
COMMANDS: dict[str, list[str]] = {
    f"train {TEXT}": TRANSFORMERS,
    f"prepare {TEXT}": TRANSFORMERS,
    f"prepare {TEXT} prepare=ray": [*TRANSFORMERS, "ray"],
    f"train {TEXT} data.tokenizer_algorithm=unigram": [*TRANSFORMERS, "sentencepiece"],
    "train data=text data.dataset=owner/name data.tokenizer=owner/name": [*TRANSFORMERS, "datasets"],
    f"train {TEXT} model=distilbert logger=wandb prepare=ray": [*TRANSFORMERS, "wandb", "ray"],
    f"train -m {TEXT} seed=0,1": TRANSFORMERS,
    "train model=pretrained": TRANSFORMERS,
    "train model=distilbert": TRANSFORMERS,
    "train logger=wandb": ["wandb"],
    "train optim=stable_adamw": ["torch-optimi"],
    "train logger=[tensorboard,wandb]": ["wandb"],
    "train -m launcher=ray seed=0,1": ["hydra-ray-launcher"],
    "train -m launcher=joblib seed=0,1": ["hydra-joblib-launcher"],
    "train -m launcher=slurm seed=0,1": ["hydra-submitit-launcher"],
    "train -m launcher=submitit_local seed=0,1": ["hydra-submitit-launcher"],
    "train -m hydra/launcher=joblib seed=0,1": ["hydra-joblib-launcher"],
    "train -m sweep.trials=3 optim.lr=1e-3,1e-2": ["optuna"],
    "train -m sweep.trials=3 optim.lr=1e-3,1e-2 model=pretrained": ["optuna", *TRANSFORMERS],
    "report {run}": ["matplotlib", "Jinja2"],
    "predict {text_run} 'one [MASK]'": TRANSFORMERS,
    "predict {hf_run} 'one [MASK]'": TRANSFORMERS,
    "evaluate {text_run}": TRANSFORMERS,
    "evaluate {hf_run} --trust": TRANSFORMERS,
    "export {hf_run} there": TRANSFORMERS,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run on symbols, one on text, and one of a model of transformers."""
    from conftest import composed

    folder = tmp_path_factory.mktemp("runs")
    (folder / "texts.txt").write_text("one two three\nfour five six\n" * 40)
    short = (f"output_dir={folder}/outputs", "trainer.max_steps=1", "trainer.val_check_interval=1")
    without_tree = [each for each in TOY if not each.startswith(("data.", "model."))]
    text = ["data=text", f"data.path={folder}/texts.txt", "data.tokenizer=train", f"data.cache_dir={folder}/cache"]
    text += ["data.chunk_size=8", "data.batch_size=4", *short, *without_tree[:2]]
    tiny = ["model=distilbert", "model.config={dim: 8, hidden_dim: 8, n_layers: 1, n_heads: 2}"]
    configs = {"run": composed(*short), "text_run": _composed(text), "hf_run": _composed([*text, *tiny])}
    for config in configs.values():
        assert train(config)["steps"] == 1
    return {name: str(run_of(config).folder) for name, config in configs.items()}


def _composed(overrides: list[str]) -> dict[str, Any]:
    from mlm_lightning.config.compose import composer, to_plain

    with composer() as hydra:
        return to_plain(hydra.compose(hydra.plain(overrides)))


@pytest.fixture(scope="module")
def answers(runs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """What each command says in a process that has none of the optional packages: exit status, message, files in its folder."""
    folder, hiding = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("hiding")
    (folder / "texts.txt").write_text("one two three\n" * 40)
    (hiding / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(hiding), str(REPOSITORY)])}
    commands = [command.format(**runs) for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(commands),
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(zip(COMMANDS, lines, strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_all_that_is_missing_is_named_before_anything_is_created(command, answers):
    status, errors, files = answers[command]
    assert status == 2, errors
    assert files == ["texts.txt"]
    assert "Traceback" not in errors
    installs = [line.partition("; pip install ")[2].split() for line in errors.splitlines()]
    asked = [each.strip("'") for install in installs for each in install]
    assert sorted(asked) == sorted(packages.requirements()[name.lower()] for name in COMMANDS[command]), errors
    assert [name for name in COMMANDS[command] if name not in errors.partition("; pip")[0]] == [] or len(installs) > 1, errors


def test_what_is_installed_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(packages, "_is_installed", lambda package: package != "datasets")
    with pytest.raises(MissingPackagesError, match=r"^data=text: needs datasets, not installed here; pip install 'datasets<"):
        packages.need("data=text", "transformers", "datasets")
    packages.need("data=text", "transformers")


def test_several_who_lack_something_are_told_in_one_line():
    first = MissingPackagesError(["data=text"], {"transformers": "transformers>=5", "tokenizers": "tokenizers"})
    second = MissingPackagesError(["model=pretrained"], {"transformers": "transformers>=5"})
    together = "data=text and model=pretrained: need transformers and tokenizers, not installed here"
    assert str(InvalidConfigError([first, second])) == f"{together}; pip install tokenizers 'transformers>=5'"
    assert str(pickle.loads(pickle.dumps(first))) == str(first)


def test_every_package_that_the_code_asks_for_is_in_an_extra():
    """Names are typed in the code, versions in pyproject.toml alone."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {re.split(r"[^\w.-]", each)[0].lower() for names in extras.values() for each in names}
    asked = {name for _, *names in packages.OF_CLASSES.values() for name in names}
    for path in (REPOSITORY / "mlm_lightning").rglob("*.py"):
        for call in re.findall(r"\b(?:need|missing)\(f?\"[^\"]*\", ([^*)]*)\)", path.read_text()):
            asked |= set(re.findall(r'"([\w-]+)"', call))
    assert {"ray", "optuna", "matplotlib", "Jinja2", "wandb", "transformers", "pyarrow"} <= asked
    assert {name.lower() for name in asked} <= listed


def test_a_package_that_is_there_but_broken_says_so_itself(tmp_path, monkeypatch):
    """Its own error names what it lacks; "not installed" would send the user the wrong way."""
    from mlm_lightning.config.signatures import resolve_target
    from mlm_lightning.errors import ConfigError

    for name in [name for name in sys.modules if name.startswith(("mlm_lightning.models.pretrained", "transformers"))]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("import a_package_that_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be imported: .*No module named 'a_package_that_it_needs'"):
        resolve_target("mlm_lightning.models.pretrained.PretrainedMLM")

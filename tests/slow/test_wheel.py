"""The wheel alone is enough: `mlm` from any folder, and a user's own dataset and model without a change to the package.

repository ─ build ─►  wheel ─►  a new venv, which sees the heavy packages of this one (torch …), but not the checkout
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from documented import PAGES, follow
from test_docs import make_stand_ins, write_texts

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TINY = ("trainer=smoke", "trainer.accelerator=cpu", "data.batch_size=8", "data.val_size=32")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if _has("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of a new environment with the wheel."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    # a .pth in a folder that a .pth names is not read, so the checkout's editable install stays unseen
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "heavy.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment / "bin"


@pytest.fixture
def empty_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def _has(package: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True).returncode == 0


def call(command: list[str | Path], folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "MLM_DEBUG")}
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=inherited | environment, capture_output=True, text=True
    )


def summary_in(folder: Path) -> dict[str, float]:
    (path,) = folder.glob("outputs/*/*/summary.json")
    return json.loads(path.read_text())


def test_the_wheel_holds_the_package_with_its_configs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {f"mlm_lightning/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert "mlm_lightning/conf/train.yaml" in shipped
    assert shipped <= set(names)
    assert {name.split("/")[0] for name in names} == {"mlm_lightning", "mlm_lightning-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_package_is_the_wheel(bin_folder: Path, empty_folder: Path) -> None:
    code = "import mlm_lightning.config.compose as c; print(c.__file__); print(c.config_folder())"
    done = call([bin_folder / "python", "-c", code], empty_folder)
    assert [Path(line).is_relative_to(bin_folder.parent) for line in done.stdout.split()] == [True, True], done.stdout
    assert call([bin_folder / "mlm", "--version"], empty_folder).stdout == "0.1.0\n"


def test_it_trains_in_an_empty_folder(bin_folder: Path, empty_folder: Path) -> None:
    done = call([bin_folder / "mlm", "train", *TINY], empty_folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in empty_folder.iterdir()] == ["outputs"]
    assert summary_in(empty_folder)["steps"] == 20
    (run,) = empty_folder.glob("outputs/*/*/")
    evaluated = call([bin_folder / "mlm", "evaluate", run / "checkpoints" / "last.ckpt", "--json"], empty_folder)
    assert json.loads(evaluated.stdout)["val/loss"] == pytest.approx(summary_in(empty_folder)["val/loss"], abs=1e-6)


@pytest.mark.parametrize("page", PAGES)
def test_what_readme_and_docs_tell_to_type_works(
    page: str, bin_folder: Path, empty_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stand_ins = make_stand_ins(tmp_path_factory.mktemp("hub"))
    write_texts(empty_folder)

    def run(words: list[str]) -> None:
        done = call([bin_folder / "mlm", *words], empty_folder, MLM_CACHE=str(empty_folder / "cache"), OMP_NUM_THREADS="1")
        assert done.returncode == 0, f"mlm {' '.join(words)}\n{done.stderr}"

    follow(page, empty_folder, run, stand_ins)


OWN_PACKAGE = '''
"""Rows that count upwards from a random start, and a model that looks at its neighbours."""

import torch
from torch import nn

from mlm_lightning.batch import Vocab
from mlm_lightning.data.source import Source


class CountingRows:
    def __init__(self, modulus, length, size, offset):
        self.modulus, self.length, self.size, self.offset = modulus, length, size, offset

    def __len__(self):
        return self.size

    def __getitem__(self, index_B):
        return ((index_B[:, None] * 7 + self.offset) + torch.arange(self.length)) % self.modulus


class Counting(Source):
    def __init__(self, *, modulus: int, length: int = 8, val_size: int = 64):
        self.modulus, self.length, self.val_size = modulus, length, val_size

    @property
    def vocab(self):
        return Vocab(size=self.modulus + 1, mask_id=self.modulus)

    @property
    def seq_len(self):
        return self.length

    def rows(self, split):
        size, offset = (1000, 0) if split == "train" else (self.val_size, 1)
        return CountingRows(self.modulus, self.length, size, offset)


class Neighbours(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int, width: int = 16):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids_BL, attention_mask_BL=None, positions_BK=None):
        x_BLD = self.mix(self.embedding(input_ids_BL).mT).relu().mT
        if positions_BK is not None:
            x_BLD = x_BLD.gather(1, positions_BK.unsqueeze(-1).expand(-1, -1, x_BLD.shape[-1]))
        return self.head(x_BLD)
'''


@pytest.fixture
def own_project(empty_folder: Path) -> Path:
    """A user's folder: a package of their own and a config folder, and nothing of ours."""
    data = "_target_: counting.Counting\nmodulus: 5\nlength: 8\nval_size: 64\nbatch_size: 8\n"
    model = "_target_: counting.Neighbours\nwidth: 16\n"
    files = {"counting/__init__.py": OWN_PACKAGE, "conf/data/mine.yaml": data, "conf/model/mine.yaml": model}
    for name, text in files.items():
        (empty_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (empty_folder / name).write_text(text)
    return empty_folder


OWN = ("--config-dir", "conf", "data=mine", "model=mine", "trainer=smoke", "trainer.accelerator=cpu")


@pytest.mark.parametrize("where", ["this folder", "PYTHONPATH"])
def test_a_users_own_dataset_and_model_train(bin_folder: Path, own_project: Path, where: str) -> None:
    environment = {}
    if where == "PYTHONPATH":
        (own_project / "elsewhere").mkdir()
        (own_project / "counting").rename(own_project / "elsewhere" / "counting")
        environment = {"PYTHONPATH": str(own_project / "elsewhere")}
    done = call([bin_folder / "mlm", "train", *OWN, "optim.lr=0.01"], own_project, **environment)
    assert done.returncode == 0, done.stderr
    summary = summary_in(own_project)
    assert summary["steps"] == 20
    assert "val/oracle_loss" not in summary

    (run,) = own_project.glob("outputs/*/*/")
    refused = call([bin_folder / "mlm", "predict", run, "0 1 _ 3 4 0 1 2"], own_project, **environment)
    assert refused.returncode == 2
    assert "counting.Neighbours" in refused.stderr
    assert "--trust" in refused.stderr
    predict = [bin_folder / "mlm", "predict", run, "0 1 _ 3 4 0 1 2", "--trust", "--json"]
    done = call(predict, own_project, **environment)
    assert done.returncode == 0, done.stderr
    ((mask,),) = json.loads(done.stdout)
    assert mask["position"] == 2
    evaluated = call([bin_folder / "mlm", "evaluate", run, "--trust", "--json"], own_project, **environment)
    assert json.loads(evaluated.stdout)["val/loss"] == pytest.approx(summary["best/val/loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("data.modulsu=7", ["data.modulsu", "Counting", "did you mean 'modulus'"]),
        ("model.widht=7", ["model.widht", "Neighbours", "did you mean 'width'"]),
        ("data.modulus=seven", ["data.modulus='seven'", "a whole number"]),
    ],
)
def test_a_mistyped_key_of_a_users_class_is_named(bin_folder: Path, own_project: Path, override: str, names: list[str]) -> None:
    done = call([bin_folder / "mlm", "train", *OWN, override], own_project)
    assert done.returncode == 2
    assert [name for name in names if name not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr
    assert not (own_project / "outputs").exists()


def test_a_users_own_data_is_prepared(bin_folder: Path, own_project: Path) -> None:
    done = call([bin_folder / "mlm", "prepare", "--config-dir", "conf", "data=mine"], own_project)
    assert done.returncode == 0, done.stderr
    assert "Counting makes its rows as they are asked for" in done.stdout

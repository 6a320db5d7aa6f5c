"""A command finds its run whatever its folder is called, and never a copy of it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import settings_of

from mlm_lightning.config.compose import config_yaml
from mlm_lightning.config.settings import Settings
from mlm_lightning.runs.checkpoint import FORMAT, STATE, write_checkpoint
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import sibling_hash
from mlm_lightning.runs.resume import longest_sibling

Toy = Callable[..., dict[str, Any]]


def begun(settings: Settings, **manifest: Any) -> Path:
    """The folder of a run that was begun a minute ago, by a version that noted `manifest`."""
    folder = Run.find(settings).folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes(config_yaml(settings.composed))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    written = time.time() - 60
    os.utime(folder / "config.yaml", (written, written))
    return folder


def copied(folder: Path, name: str, keeps_times: bool = False) -> Path:
    copy = Path(shutil.copytree(folder, folder.with_name(name)))  # which keeps times
    if not keeps_times:
        os.utime(copy / "config.yaml")
    return copy


@pytest.mark.parametrize("keeps_times", [False, True])
def test_of_copies_the_oldest_is_the_run_else_the_one_with_the_shorter_name(
    toy: Toy, keeps_times: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = settings_of(toy())
    folder = begun(settings)
    copied(folder, f"a-{folder.name}", keeps_times)
    copied(folder, f"{folder.name}.bak", keeps_times)
    assert Run.find(settings).folder == folder
    assert Run.find(settings).folder == folder
    assert caplog.text.count(f"{folder} is taken for this run; beside it are copies") == 1  # however often it is asked for
    assert f"a-{folder.name}" in caplog.text


def test_of_copies_the_one_that_its_manifest_names_is_the_run(toy: Toy) -> None:
    settings = settings_of(toy())
    folder = begun(settings)
    named = copied(folder, f"a-{folder.name}")
    for each in (folder, named):
        Run(each).write_json("manifest.json", {"folder": named.name})
    assert Run.find(settings).folder == named


def test_a_parent_is_offered_by_the_original_and_no_copy_of_the_run_itself(toy: Toy) -> None:
    settings, longer = settings_of(toy()), settings_of(toy("trainer.max_steps=16"))
    folder = begun(settings, kinship=sibling_hash(settings))
    checkpoint = {"state_dict": {}, "global_step": 3, STATE: {"record": {"format": FORMAT}}}
    write_checkpoint(folder / "checkpoints" / "last.ckpt", checkpoint)
    copied(folder, f"{folder.name}.bak")
    assert longest_sibling(Run.find(settings), settings, below=8) is None
    parent = longest_sibling(Run.find(longer), longer, below=16)
    assert parent is not None
    assert parent.path == folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("name", ["best_run", "best-20261201", "run.bak"])
def test_a_folder_that_was_renamed_is_found(toy: Toy, name: str) -> None:
    settings, other = settings_of(toy()), settings_of(toy("seed=1"))
    folder = begun(settings, folder=Run.find(settings).folder.name)
    renamed = folder.rename(folder.with_name(name))
    assert Run.find(settings).folder == renamed
    assert Run.find(other).folder not in (folder, renamed)


def test_a_folder_is_of_as_many_processes_as_its_manifest_says(toy: Toy) -> None:
    one, two = settings_of(toy()), settings_of(toy("trainer.devices=2"))
    folder = begun(two, processes=2)
    folder.rename(folder.with_name("best_run"))
    assert Run.find(two).folder.name == "best_run"
    assert Run.find(one).folder.name != "best_run"


def test_a_damaged_config_is_no_run_s(toy: Toy) -> None:
    settings = settings_of(toy())
    folder = begun(settings)
    folder = folder.rename(folder.with_name("best_run"))
    assert Run.find(settings).folder == folder
    (folder / "config.yaml").write_text("a: [")
    assert Run.find(settings).folder != folder


def test_what_is_called_like_another_run_is_not_read(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep asks for thousands of runs, each in a folder with the others."""
    settings = [settings_of(toy(f"seed={seed}")) for seed in range(4)]
    for each in settings[:2]:
        begun(each)
    begun(settings[2]).rename(Run.find(settings[2]).folder.with_name("best_run"))
    read: list[Path] = []
    monkeypatch.setattr("mlm_lightning.runs.folder.processes_of", lambda manifest, config: read.append(config["seed"]) or 1)
    for _ in range(3):
        Run.find(settings[3])
    assert read in ([2], [])  # once a process

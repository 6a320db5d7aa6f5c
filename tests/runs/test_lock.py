"""A run's folder is one process's, for as long as that process lives."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from helpers import train

from mlm_lightning.errors import BusyError, UserError
from mlm_lightning.files import DiskError
from mlm_lightning.runs.folder import Run

HOLDS = """
import os, sys, time
from pathlib import Path
from mlm_lightning.runs.folder import Run
with Run(Path(sys.argv[1])).locked():
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(120)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "name" / "run"


@pytest.fixture
def holder(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock, and has forked a worker."""
    return subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)


def test_another_process_is_told_who_holds_it(folder: Path, holder: "subprocess.Popen[str]") -> None:
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        assert Run(folder).is_locked
        with pytest.raises(BusyError, match=rf"process {holder.pid} is working in this run; wait for it"), Run(folder).locked():
            pass
        assert Run(folder).is_locked
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.wait()


def test_a_killed_process_s_lock_is_free_while_its_forked_worker_lives(folder: Path, holder: "subprocess.Popen[str]") -> None:
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        os.kill(worker, 0)
        assert not Run(folder).is_locked
        with Run(folder).locked():
            assert (folder / ".lock").read_text() == str(os.getpid())
        os.kill(worker, 0)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_ends_leaves_its_parent_s_lock(folder: Path) -> None:
    with Run(folder).locked():
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert Run(folder).is_locked
        with pytest.raises(BusyError, match=f"process {os.getpid()} "), Run(folder).locked():
            pass


def test_looking_creates_nothing(folder: Path) -> None:
    assert not Run(folder).is_locked
    assert not folder.exists()
    folder.mkdir(parents=True)
    assert not Run(folder).is_locked
    assert list(folder.iterdir()) == []


def test_nothing_is_left_of_a_run_that_never_started(folder: Path, tmp_path: Path) -> None:
    with Run(folder).locked():
        assert Run(folder).is_locked
    assert list(tmp_path.iterdir()) == []
    with Run(folder).locked():
        (folder / "config.yaml").touch()
    assert {path.name for path in folder.iterdir()} == {".lock", "config.yaml"}
    assert not Run(folder).is_locked
    with Run(folder.with_name("other")).locked():
        pass
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_a_folder_that_is_moved_aside_under_its_lock_stays_as_it_is(folder: Path) -> None:
    with Run(folder).locked():
        folder.rename(folder.with_name("old"))
    assert not folder.exists()
    assert (folder.with_name("old") / ".lock").exists()
    with Run(folder).locked():
        assert Run(folder).is_locked


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with (
        pytest.raises(UserError, match=r"output_dir=.*outputs: .* cannot be made there: "),
        Run(tmp_path / "outputs/a/b").locked(),
    ):
        pass


def test_a_complete_run_shows_its_result_without_its_lock(
    toy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk may be read-only."""
    config = toy()
    expected = train(config)

    def read_only(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", read_only)
    monkeypatch.setattr(os, "replace", read_only)
    assert train(config) == expected
    with pytest.raises(DiskError, match="Read-only file system"):
        train(toy("seed=1"))


def test_a_full_disk_is_named_before_anything_is_trained(
    toy: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy()

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match=r"config\.yaml: No space left on device\. The checkpoints in .* are whole"):
            train(config)
    assert train(config)["steps"] == 8

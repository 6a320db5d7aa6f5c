"""The power fails: what was not synced is lost, what was renamed may be there already; the same command gives the same run.

A run's calls of fsync, replace, link and unlink are recorded in a child process. Of each moment two states are possible: names
as they were when the disk last had to commit them, or as they are by now. Bytes of a file are those of its last fsync; of one
that was never synced, none.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import TOY
from helpers import assert_equal_results, run_of, train

pytestmark = pytest.mark.slow

STEPS = (
    "trainer.max_steps=12",
    "trainer.val_check_interval=5",
    "callbacks.checkpoint.every_n_train_steps=3",
    "trainer.log_every_n_steps=1",
)


class State(NamedTuple):
    """Before an event: the inode of each path, by now and when names were last committed, and the synced bytes of inodes."""

    event: str
    now: dict[str, int]
    committed: dict[str, int]
    bytes: dict[int, bytes]


def record(folder: Path, file: Path, arguments: list[str]) -> None:
    """In a child process: trains, and writes the states to a file."""
    states: list[State] = []
    contents: dict[int, bytes] = {}
    committed: dict[str, int] = {}

    def names() -> dict[str, int]:
        return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any, **more: Any) -> Any:
            nonlocal committed
            before = names()
            for gone in set(contents) - set(before.values()):
                del contents[gone]  # its number may be another file's soon
            target = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[-1])
            states.append(State(f"{name} {Path(target).name}", before, committed, dict(contents)))
            result = call(*arguments, **more)
            if name == "fsync":
                committed = names()
                if os.path.isfile(target):
                    contents[os.stat(target).st_ino] = Path(target).read_bytes()
            return result

        return watching

    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, watched(name, getattr(os, name)))
    from mlm_lightning.__main__ import main

    assert main(["train", *arguments]) == 0
    file.write_bytes(pickle.dumps(states))


def rebuilt(folder: Path, names: dict[str, int], contents: dict[int, bytes]) -> None:
    """Files that share an inode become one file with several names."""
    first: dict[int, Path] = {}
    for name, inode in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if inode in first:
            os.link(first[inode], path)
        else:
            path.write_bytes(contents.get(inode, b""))
            first[inode] = path


def test_whatever_a_power_cut_leaves_the_same_command_gives_the_same_run(
    toy: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    uninterrupted = toy(*STEPS, f"output_dir={tmp_path / 'whole'}")
    train(uninterrupted)
    whole = run_of(uninterrupted)
    outputs, file = tmp_path / "recorded", tmp_path / "states"
    outputs.mkdir()
    arguments = [*TOY, *STEPS, f"output_dir={outputs}"]
    code = f"from test_power_cuts import record, Path; record(Path({str(outputs)!r}), Path({str(file)!r}), {arguments!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    states: list[State] = pickle.loads(file.read_bytes())

    # a checkpoint is written, and the log before it; then it is renamed, and the disk told to keep the name
    saves = [number for number, state in enumerate(states) if state.event == "replace last.ckpt"]
    assert len(saves) >= 4
    between = [number for save in saves[1:4] for number in range(save - 3, save + 2)]
    chosen = sorted({*between, *range(0, len(states), max(1, len(states) // 12))})
    assert len(chosen) >= 12
    for number in chosen:
        state = states[number]
        for kind, names in (("committed", state.committed), ("now", state.now)):
            folder = tmp_path / f"{kind}_{number}"
            rebuilt(folder, names, state.bytes)
            config = toy(*STEPS, f"output_dir={folder}")
            train(config)
            try:
                assert_equal_results(run_of(config), whole)
            except AssertionError as error:
                raise AssertionError(f"{kind} names, before {state.event} ({number} of {len(states)})") from error

"""Kills and signals at any moment, from the first one on: all processes end with the right status, and the same command goes on
to the run that was never interrupted."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TOY
from helpers import assert_equal_results

from mlm_lightning.errors import CTRL_C, FAILURE, STOPPED
from mlm_lightning.runs.folder import Run

pytestmark = pytest.mark.slow

STEPS = ("trainer.max_steps=400", "trainer.val_check_interval=90", "callbacks.checkpoint.every_n_train_steps=20")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
LONGEST = 90.0
"""Seconds until all have ended: a start on a busy machine, and half a minute of patience with whoever is stuck."""


class Machines:
    """One run on `nodes` machines, all of them this one, each with `devices` ranks."""

    def __init__(self, folder: Path, devices: int, nodes: int = 1, strategy: str = "ddp") -> None:
        self.arguments = [*TOY, *STEPS, f"output_dir={folder}", f"trainer.devices={devices}", f"trainer.num_nodes={nodes}"]
        self.arguments += [f"trainer.strategy={strategy}", "data.batch_size=4", "model.dropout=0.1"]
        self.folder, self.nodes, self.processes = folder, nodes, list[subprocess.Popen[str]]()
        self.stopped: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mlm_lightning", "train", *self.arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=os.environ | variables | ({"NODE_RANK": str(node)} if self.nodes > 1 else {}),
            )
            for node in range(self.nodes)
        ]

    def ranks(self) -> list[int]:
        """The process ids of all ranks that run."""
        found = []
        for process in self.processes:
            for child in _read(f"/proc/{process.pid}/task/{process.pid}/children").split():
                if "LOCAL_RANK=" in _read(f"/proc/{child}/environ"):
                    found.append(int(child))
        return found

    def wait(self, stop_who_waits: bool = False) -> list[tuple[int, str]]:
        """The status and the messages of each machine. One that is without ranks for half a minute, since another one never
        called it, is stopped."""
        deadline, patience = time.monotonic() + LONGEST, time.monotonic() + 30
        ranks = set(self.ranks())
        while running := [process for process in self.processes if process.poll() is None]:
            ranks |= set(now := self.ranks())
            assert time.monotonic() < deadline, f"{[process.poll() for process in self.processes]} {self.arguments}"
            if stop_who_waits and not now and len(running) < self.nodes and time.monotonic() > patience:
                self.stopped = running
                for process in running:
                    process.send_signal(signal.SIGTERM)
                stop_who_waits = False
            time.sleep(0.1)
        time.sleep(1)
        orphans = [rank for rank in ranks if _read(f"/proc/{rank}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])]
        assert orphans == []
        return [(process.returncode, process.stderr.read()) for process in self.processes if process.stderr]

    def finish(self) -> Run:
        self.start()
        ended = self.wait()
        assert [status for status, _ in ended] == [0] * self.nodes, ended
        (folder,) = (self.folder / "default").iterdir()
        return Run(folder)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def strike(machines: Machines, moments: random.Random, kills: bool) -> None:
    """Starts the run, and ends it in one way or another."""
    machines.start()
    began = time.monotonic()
    time.sleep(moments.uniform(0.3, 16.0))
    ranks = machines.ranks()
    process = moments.choice(machines.processes)
    hit = moments.choice([*ranks, process.pid]) if ranks and moments.random() < 0.6 else process.pid
    signum = signal.SIGKILL if kills else moments.choice(SIGNALS)
    was_running = [each.poll() is None for each in machines.processes]
    try:
        os.kill(hit, signum)
    except ProcessLookupError:
        return
    what = f"{signum.name} to {'a rank' if hit in ranks else 'mlm train'} after {time.monotonic() - began:.1f} s"
    for machine, (status, messages) in enumerate(machines.wait(stop_who_waits=True)):
        where = f"{what}, machine {machine}: {status}\n{messages}"
        if not was_running[machine] or status == 0:
            continue  # it was complete, or is so all the same
        own = machines.processes[machine].pid == hit
        if machines.processes[machine] in machines.stopped:
            assert status == STOPPED, where
            assert "waiting" in messages, where
        elif kills:
            assert status == (-signal.SIGKILL if own else FAILURE), where
            assert "Traceback" not in messages, where
        elif own and status == -signum:
            assert messages == "", where  # Python itself was starting
        else:
            assert status == (CTRL_C if signum == signal.SIGINT else STOPPED), where
            assert "Traceback" not in messages, where
    for path in machines.folder.glob("default/*/error.json"):
        assert kills, what
        path.unlink()


@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (3, 1), (4, 1), (1, 2)])
def test_ranks_that_are_killed_or_stopped_at_any_moment(tmp_path: Path, devices: int, nodes: int) -> None:
    whole = Machines(tmp_path / "whole", devices, nodes).finish()
    moments = random.Random(10 * devices + nodes)
    strategies = ["ddp", "ddp_find_unused_parameters_true"]
    for number in range(10):
        strike(Machines(tmp_path / "struck", devices, nodes, strategies[number % 2]), moments, kills=number % 2 == 0)
    assert_equal_results(Machines(tmp_path / "struck", devices, nodes).finish(), whole)

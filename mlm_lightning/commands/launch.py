"""A run over several processes: `mlm train` starts one a device, and on several machines its first one tells the others.

    machine 0:  mlm train ─► decides: folder, checkpoint ─► rank 0, rank 1
                    │ a store at MASTER_ADDR:MASTER_PORT
    machine 1:  mlm train ─► hears of it                 ─► rank 2, rank 3

Every rank is a child process that starts from the run's own saved config: never from this command line, which would start a
sweep again in each of them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from mlm_lightning.config import TrainerSettings
from mlm_lightning.errors import Interrupted, UserError, say
from mlm_lightning.runs import Position, Run, identity

_PATIENCE = timedelta(minutes=30)  # of the other machines: the first may be preparing its data


def node_rank() -> int:
    """Which of the run's machines this is."""
    return int(os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", 0)))


def check_environment(settings: TrainerSettings) -> None:
    """Raises UserError where something else has started several processes, or where the other machines can't be found."""
    tasks_on_nodes = re.findall(r"\d+(?!\))", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # "1(x2)", "2,1"
    if "LOCAL_RANK" in os.environ or max(map(int, tasks_on_nodes), default=1) > 1:
        raise UserError(
            f"trainer.devices={settings.devices}: mlm train starts a process a device itself; start it once on each machine, "
            "without torchrun, and under SLURM with --ntasks-per-node=1"
        )
    known = "SLURM_JOB_ID" in os.environ or {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if settings.num_nodes > 1 and not known:
        raise UserError(
            f"trainer.num_nodes={settings.num_nodes}: start mlm train on each machine, by SLURM's srun --ntasks-per-node=1 or "
            "with NODE_RANK (0, 1, …), MASTER_ADDR (the first machine's name) and MASTER_PORT (a free port there) set"
        )


# several machines


class Nodes:
    """What the first machine tells the others about a run; with one machine, nothing."""

    def __init__(self, run: Run, settings: TrainerSettings) -> None:
        self._key, self._several = identity(run.config), settings.num_nodes > 1
        self._told = False
        self._store: Any = None

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On the first machine: whatever ends the run before its ranks start, the others hear of it."""
        if self._several:
            from torch.distributed import TCPStore

            _, port = _rendezvous()
            self._store = TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)
        try:
            yield
        except BaseException as error:
            self.tell({"end": f"the first machine: {error}"})
            raise
        finally:
            self.tell({"end": "the first machine had nothing to train"})

    def tell(self, message: dict[str, Any]) -> None:
        if self._store is not None and not self._told:
            self._store.set(self._key, json.dumps(message))
            self._told = True

    def hear(self) -> dict[str, Any]:
        """On another machine: what the first one says, once it does."""
        from torch.distributed import DistError, TCPStore

        address, port = _rendezvous()
        deadline = time.monotonic() + _PATIENCE.total_seconds()
        while time.monotonic() < deadline:
            with contextlib.suppress(DistError):  # not there yet, or the store of the run before
                store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
                while time.monotonic() < deadline:
                    with contextlib.suppress(DistError):
                        store.wait([self._key], timedelta(seconds=5))
                        return json.loads(store.get(self._key))
                    store.num_keys()  # raises where the store is gone
        raise UserError(f"trainer.num_nodes: no word from the first machine at {address}:{port} in {_PATIENCE}")


def _rendezvous() -> tuple[str, int]:
    """The first machine's address, and a port there for the store: as the environment says, else as SLURM's job says."""
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None:
        address = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_JOB_NODELIST"])
    return address, int(port) if port is not None else 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000


# the ranks of this machine


def lead(run: Run, position: Position | None, nodes: Nodes) -> dict[str, Any]:
    """Trains on all devices of all machines, from the first of them; returns the summary."""
    settings = TrainerSettings(**run.config["trainer"])
    run.start()
    address = _rendezvous()[0] if settings.num_nodes > 1 else "127.0.0.1"
    message = {
        "folder": str(run.folder.absolute()),
        "checkpoint": str(position.path.absolute()) if position else None,
        "address": address,
        "port": _free_port(),
    }
    nodes.tell(message)
    _train_ranks(settings, message)
    return run.summary or {}


def follow(settings: TrainerSettings, nodes: Nodes) -> dict[str, Any]:
    """Trains on the devices of this machine, which is not the first; returns nothing, as the first one has the summary."""
    message = nodes.hear()
    if "end" in message:
        say(message["end"])
    else:
        _train_ranks(settings, message)
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _train_ranks(settings: TrainerSettings, message: dict[str, Any]) -> None:
    """Starts this machine's ranks and waits for them; raises what ended them."""
    count = settings.num_processes()
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {"MASTER_ADDR": message["address"], "MASTER_PORT": str(message["port"]), "NODE_RANK": str(node_rank())}
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
    command = [sys.executable, "-m", "mlm_lightning.commands.rank", str(os.getpid()), message["folder"]]
    command += [message["checkpoint"]] if message["checkpoint"] else []
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        received.append(signum)
        _send(ranks, signum)

    handlers = {each: signal.signal(each, forward) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        for rank in range(count):
            # out of the terminal's group: of one Ctrl-C they would hear twice, which means "at once"
            environment = os.environ | shared | {"LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=environment, process_group=0))
        statuses = _wait(ranks)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for process in ranks:
            process.kill()
    _raise_what_ended(statuses, received, Path(message["folder"]))


def _send(ranks: list["subprocess.Popen[bytes]"], signum: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signum)


def _wait(ranks: list["subprocess.Popen[bytes]"]) -> list[int]:
    """Waits for all ranks; where one fails, the others wait for it forever and are ended."""
    while any(rank.poll() is None for rank in ranks):
        statuses = [rank.poll() for rank in ranks]
        if any(status not in (None, 0, 75, 130) for status in statuses):
            time.sleep(5)
            _send(ranks, signal.SIGKILL)
        time.sleep(0.05)
    # the rank that failed first says why; the killed ones only that they were killed
    return sorted((rank.returncode for rank in ranks), key=lambda status: status < 0)


def _raise_what_ended(statuses: list[int], received: list[int], folder: Path) -> None:
    failed = next((status for status in statuses if status), 0)
    if failed in (75, 130):
        position = Run(folder, {}).last_checkpoint()
        signum = received[-1] if received else signal.SIGINT if failed == 130 else signal.SIGTERM
        raise Interrupted(signum, position.step if position else None)
    if failed:
        error = folder / "error.json"
        reason = json.loads(error.read_text()) if error.exists() else {}
        if failed == 2:
            error.unlink(missing_ok=True)
            raise UserError(reason.get("message", "a rank refused"))
        raise RankError(reason.get("message", f"a rank ended with status {failed}"))


class RankError(RuntimeError):
    """A rank failed; its message is this one's."""

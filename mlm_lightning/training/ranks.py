"""A run over several processes: `mlm train` starts one a device, and on several machines its first one tells the others.

    machine 0:  mlm train ─► decides: folder, checkpoint ─► rank 0, rank 1
                    │ MASTER_ADDR:MASTER_PORT
    machine 1:  mlm train ─► hears of it                 ─► rank 2, rank 3

Every rank is a child process that starts from the run's own saved config: never from this command line, which would start a
sweep again in each of them. What the machines say to each other:

    machine 0:  leading() ─► tell({"folder": …}), or tell({"end": why}); waits until all others have heard it
                    ▲   at MASTER_ADDR:MASTER_PORT
    machine 1:  hear(): sends the run's identity ─► the message; of another run: nothing, and it asks again

The jobs of a sweep use one port, one after the other. (`torch.distributed.TCPStore` delivers as reliably, but prints a C++
stack trace where a machine asks while the job before closes the port, and no signal interrupts a wait in it.)
"""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import CTRL_C, MISTAKE, STOPPED, ConfigError, Interrupted, UserError, handle, restore
from mlm_lightning.processes import python
from mlm_lightning.runs.checkpoint import Position
from mlm_lightning.runs.folder import Run
from mlm_lightning.runs.identity import identity

log = logging.getLogger(__name__)

_PATIENCE = 1800.0  # seconds that the other machines wait: the first may be preparing its data


def check_environment(settings: TrainerSettings) -> None:
    """Raises UserError where something else has started several processes, or where the other machines can't be found."""
    tasks_on_nodes = re.findall(r"\d+(?!\))", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # "1(x2)", "2,1"
    if "LOCAL_RANK" in os.environ or max(map(int, tasks_on_nodes), default=1) > 1:
        remedy = "start it once on each machine, without torchrun, and under SLURM with --ntasks-per-node=1"
        raise ConfigError("trainer.devices", settings.devices, "mlm train starts a process a device itself", remedy)
    known = "SLURM_JOB_ID" in os.environ or {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    if settings.num_nodes > 1 and not known:
        problem = (
            "start mlm train on each machine, by SLURM's srun --ntasks-per-node=1 or "
            "with NODE_RANK (0, 1, …), MASTER_ADDR (the first machine's name) and MASTER_PORT (a free port there) set"
        )
        raise ConfigError("trainer.num_nodes", settings.num_nodes, problem)


def node_rank() -> int:
    """Which of the run's machines this is."""
    return int(os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", 0)))


def rendezvous_address() -> tuple[str, int]:
    """The first machine's address, and a port there: as the environment says, else as SLURM's job says."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None:
        from lightning.pytorch.plugins.environments import SLURMEnvironment

        address = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_JOB_NODELIST"])
    return address, int(port) if port is not None else 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000


class Nodes:
    """What the first machine tells the others about a run; with one machine, nothing."""

    def __init__(self, settings: Settings) -> None:
        self._key = identity(settings.composed.config, settings.trainer.world_size()).encode()
        self._others = settings.trainer.num_nodes - 1
        self._message: Future[bytes] = Future()
        self._heard = Semaphore(0)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """On the first machine: whatever ends the run before its ranks start, the others hear of it."""
        if self._others == 0:
            yield
            return
        with socket.create_server(("", rendezvous_address()[1])) as server:
            Thread(target=self._serve, args=(server,), daemon=True).start()
            try:
                yield
            except BaseException as error:
                self.tell({"end": f"the first machine: {error}"})
                raise
            finally:
                self.tell({"end": "the first machine has nothing to train: the run is complete"})
                deadline = time.monotonic() + 60
                for _ in range(self._others):
                    self._heard.acquire(timeout=max(0.0, deadline - time.monotonic()))
                with contextlib.suppress(OSError):  # not every system can
                    server.shutdown(socket.SHUT_RDWR)  # else a thread that accepts keeps the port, also of a closed server

    def tell(self, message: dict[str, Any]) -> None:
        """The first message counts."""
        if not self._message.done():
            self._message.set_result(json.dumps(message).encode())

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                Thread(target=self._answer, args=(server.accept()[0],), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if client.recv(len(self._key), socket.MSG_WAITALL) == self._key:  # not of another job of a sweep
                client.sendall(self._message.result())
                self._heard.release()

    def hear(self) -> dict[str, Any]:
        """On another machine: what the first one says, once it does."""
        host, port = rendezvous_address()
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=10) as server:
                server.settimeout(max(1.0, deadline - time.monotonic()))
                server.sendall(self._key)
                if message := b"".join(iter(partial(server.recv, 4096), b"")):
                    return json.loads(message)
            time.sleep(0.2)  # it isn't there yet, or is still at the job before
        raise UserError(f"trainer.num_nodes: no word from the first machine, {host}:{port}, in {_PATIENCE / 60:.0f} minutes")


def lead(run: Run, settings: Settings, position: Position | None, nodes: Nodes) -> dict[str, Any]:
    """Trains on all devices of all machines, from the first of them; returns the summary."""
    run.open(settings)
    address = rendezvous_address()[0] if settings.trainer.num_nodes > 1 else "127.0.0.1"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    checkpoint = str(position.path.absolute()) if position else None
    message = {"folder": str(run.folder.absolute()), "checkpoint": checkpoint, "address": address, "port": port}
    nodes.tell(message)
    _train_ranks(settings.trainer, message)
    return run.summary or {}


def follow(settings: TrainerSettings, nodes: Nodes) -> dict[str, Any]:
    """Trains on the devices of this machine, which is not the first; returns nothing, as the first one has the summary."""
    message = nodes.hear()
    if "end" in message:
        log.info("%s", message["end"])
    else:
        _train_ranks(settings, message)
    return {}


def _train_ranks(settings: TrainerSettings, message: dict[str, Any]) -> None:
    """Starts this machine's ranks and waits for them; raises what ended them."""
    count = settings.num_processes()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    shared = {"MASTER_ADDR": message["address"], "MASTER_PORT": str(message["port"]), "OMP_NUM_THREADS": threads}
    shared["NODE_RANK"] = str(node_rank() if settings.num_nodes > 1 else 0)
    command = [*python("from mlm_lightning.training.rank import start; start()"), str(os.getpid()), message["folder"]]
    command += [message["checkpoint"]] if message["checkpoint"] else []
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        received.append(signum)
        _send(ranks, signum)

    handlers = handle(forward)
    try:
        for rank in range(count):
            # out of the terminal's group: of one Ctrl-C they would hear twice, which means "at once"
            environment = os.environ | shared | {"LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=environment, process_group=0))
        statuses = _wait(ranks)
    finally:
        restore(handlers)
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
        if any(status not in (None, 0, STOPPED, CTRL_C) for status in statuses):
            time.sleep(5)
            _send(ranks, signal.SIGKILL)
        time.sleep(0.05)
    # the rank that failed first says why; the killed ones only that they were killed
    return sorted((rank.returncode for rank in ranks), key=lambda status: status < 0)


def _raise_what_ended(statuses: list[int], received: list[int], folder: Path) -> None:
    failed = next((status for status in statuses if status), 0)
    if failed in (STOPPED, CTRL_C):
        position = Run(folder).last_checkpoint()
        signum = received[-1] if received else signal.SIGINT if failed == CTRL_C else signal.SIGTERM
        raise Interrupted(signum, position.step if position else None)
    if failed:
        error = folder / "error.json"
        reason = json.loads(error.read_text()) if error.exists() else {}
        if failed == MISTAKE:
            error.unlink(missing_ok=True)
            raise UserError(reason.get("message", "a rank refused"))
        raise RankError(reason.get("message", f"a rank ended with status {failed}"))


class RankError(RuntimeError):
    """A rank failed; its message is this one's."""

"""The machines of a run: the first one tells the others what it has decided.

    machine 0:  leading() ─► tell({"folder": …}), or tell({"end": why}); waits until all others have heard it
                    ▲   at MASTER_ADDR:MASTER_PORT
    machine 1:  hear(): sends the run's identity ─► the message; of another run: nothing, and it asks again

The jobs of a sweep use one port, one after the other. (`torch.distributed.TCPStore` delivers as reliably, but prints a C++
stack trace where a machine asks while the job before closes the port, and no signal interrupts a wait in it.)
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from threading import Semaphore, Thread
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.errors import UserError
from mlm_lightning.runs.identity import identity

_PATIENCE = 1800.0  # seconds that the other machines wait: the first may be preparing its data


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
        self._key, self._others = identity(settings.composed.config).encode(), settings.trainer.num_nodes - 1
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

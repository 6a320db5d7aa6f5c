"""What the machines of one run say to each other: JSON, a line each, over a connection that lasts as long as they train.

    machine 1:  its identity and settings ─►  machine 0, at MASTER_ADDR:MASTER_PORT
    machine 0:  {"folder": …}, once it is decided      the ranks of both start
                {"differences": […]}                   it is at another run: an earlier job of the same sweep, or a mistake
                {"status": 0, "message": …}            it has ended, without a start
    both:       {"status": 75, "message": …}           how it ended; one that was killed says nothing, but the line is cut

The jobs of a sweep use one port, one after the other. (`torch.distributed.TCPStore` delivers as reliably, but prints a C++
stack trace where a machine asks while the job before closes the port, and no signal interrupts a wait in it.)
"""

import contextlib
import errno
import json
import logging
import os
import re
import select
import signal
import socket
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from threading import Lock, Semaphore, Thread
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import FAILURE, MISTAKE, SIGNALS, ConfigError, Interrupted, UserError
from mlm_lightning.runs.checkpoint import differences
from mlm_lightning.runs.identity import deciding, identity

log = logging.getLogger(__name__)

_PATIENCE = 1800.0  # seconds that the other machines wait: the first may be preparing its data
_SHORT_PATIENCE = 30.0  # for what is wrong rather than late: a port in use, a name without an address
_SAY_AGAIN = 60.0
_LARGEST_PORT = 65_535


class MachineError(RuntimeError):
    """Another machine of this run has failed, or is gone."""


def check_environment(settings: TrainerSettings) -> None:
    """Raises UserError where something else has started several processes, or where the other machines can't be found."""
    tasks_on_nodes = re.findall(r"\d+(?!\))", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # "1(x2)", "2,1"
    if "LOCAL_RANK" in os.environ or max(map(int, tasks_on_nodes), default=1) > 1:
        remedy = "start it once on each machine, without torchrun, and under SLURM with --ntasks-per-node=1"
        raise ConfigError("trainer.devices", settings.devices, "mlm train starts a process a device itself", remedy)
    if settings.num_nodes == 1:
        return
    if "SLURM_JOB_ID" not in os.environ and not {"NODE_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        problem = (
            "start mlm train on each machine, by SLURM's srun --ntasks-per-node=1 or "
            "with NODE_RANK (0, 1, …), MASTER_ADDR (the first machine's name) and MASTER_PORT (a free port there) set"
        )
        raise ConfigError("trainer.num_nodes", settings.num_nodes, problem)
    for name, least, most in (("NODE_RANK", 0, settings.num_nodes - 1), ("MASTER_PORT", 1, _LARGEST_PORT)):
        value = os.environ.get(name, str(least))
        if not (value.isdecimal() and least <= int(value) <= most):
            raise ConfigError(name, value, f"must be a whole number from {least} to {most:,}", "set it in the environment")


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
    """This machine among those of a run; with one machine it says nothing. `swept` are the keys in which the jobs of a sweep
    differ."""

    def __init__(self, settings: Settings, swept: Collection[str] = ()) -> None:
        processes = settings.trainer.world_size()
        self._identity = identity(settings.composed.config, processes)
        self._settings = deciding(settings.composed.config, processes)
        self._swept = tuple(f"{key}{end}" for key in swept for end in ".:")
        self._missing = settings.trainer.num_nodes - 1
        self._message: Future[dict[str, Any]] = Future()
        self._heard = Semaphore(0)
        self._lines: list[socket.socket] = []
        self._end: dict[str, Any] | None = None
        self._lock = Lock()  # a machine that is told the start as this one ends hears of the end, too

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """On the first machine: the others hear how the run ends, before its ranks start or after."""
        if not self._missing:
            yield
            return
        with _server() as server:
            Thread(target=self._serve, args=(server,), daemon=True).start()
            patience = 60.0
            try:
                with self._saying_how_it_ends():
                    yield
            except (Interrupted, KeyboardInterrupt):
                patience = 5.0  # whoever sends signals waits half a minute, mostly
                raise
            finally:
                self._wait_for_calls(patience)
                with contextlib.suppress(OSError):  # not every system can
                    server.shutdown(socket.SHUT_RDWR)  # else a thread that accepts keeps the port, also of a closed server

    def start(self, message: dict[str, Any]) -> None:
        """On the first machine: tells the others, and waits until all have heard it."""
        self.tell(message)
        self._wait_for_calls(_PATIENCE)
        if self._missing:
            problem = f"{self._missing} machine(s) have not called this one in {_PATIENCE / 60:.0f} minutes"
            raise UserError(f"trainer.num_nodes: {problem}; start the same command there")

    def _wait_for_calls(self, patience: float) -> None:
        deadline, pause = time.monotonic() + patience, 1.0
        while self._missing and (left := deadline - time.monotonic()) > 0:
            if self._heard.acquire(timeout=min(pause, left)):
                self._missing -= 1
            elif left > pause:
                log.info("%-12s for %d machine(s) to call %s:%s", "waiting", self._missing, *rendezvous_address())
                pause = _SAY_AGAIN

    @contextlib.contextmanager
    def following(self) -> Iterator[dict[str, Any]]:
        """On another machine: what the first one says; and it hears how this one ends. Raises what has ended the run there."""
        with self._saying_how_it_ends():
            message = self._hear()
            if message.get("status"):
                raise error_of(message["status"], message["message"])
            yield message

    @contextlib.contextmanager
    def _saying_how_it_ends(self) -> Iterator[None]:
        end = {"status": 0, "message": "the first machine has nothing to train: the run is complete"}
        try:
            yield
        except BaseException as error:
            end = {"status": status_of(error), "message": f"machine {node_rank()}: {error}"}
            raise
        finally:
            with self._lock:
                self._end = end
                for line in self._lines:
                    with contextlib.suppress(OSError):
                        _say(line, end)
                    line.close()
            self.tell(end)

    def tell(self, message: dict[str, Any]) -> None:
        """The first message counts."""
        if not self._message.done():
            self._message.set_result(message)

    def ended(self) -> Iterator[tuple[int, str]]:
        """How other machines have ended since this was last asked: the status, and why."""
        for line in select.select(self._lines, [], [], 0)[0]:
            self._lines.remove(line)
            end = _heard_from(line) or {"status": FAILURE, "message": "another machine is gone"}
            yield end["status"], end["message"]

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                Thread(target=self._answer, args=(server.accept()[0],), daemon=True).start()

    def _answer(self, line: socket.socket) -> None:
        asked = _heard_from(line)
        with contextlib.suppress(OSError):  # it is gone
            if asked.get("identity") == self._identity:
                message = self._message.result()
                with self._lock:
                    _say(line, message)
                    if self._end is not None:
                        _say(line, self._end)
                    self._lines.append(line)
                self._heard.release()
                return
            _say(line, {"differences": differences(self._settings, asked.get("settings", {}))})
        line.close()

    def _hear(self) -> dict[str, Any]:
        """What the first machine says, once it does; that it is waited for is said at once and every minute."""
        host, port = rendezvous_address()
        began, say_at = time.monotonic(), 0.0
        while (waited := time.monotonic() - began) < _PATIENCE:
            if waited >= say_at:
                log.info("%-12s for the first machine, %s:%s", "waiting", host, port)
                say_at += _SAY_AGAIN
            if not self._lines and not self._called(host, port, waited):
                time.sleep(0.2)
                continue
            for line in select.select(self._lines, [], [], 1.0)[0]:
                message = _heard_from(line)
                if message and "differences" not in message:
                    return message
                self._lines.remove(line)
                others = [each for each in message.get("differences", ()) if not each.startswith(self._swept)]
                if others and "experiment." not in self._swept:
                    listed = "".join(f"\n  {each}" for each in others)
                    raise UserError(f"the first machine, {host}:{port}, trains something else (there → here):{listed}")
                time.sleep(0.2)  # it is still at a job before
        raise UserError(f"trainer.num_nodes: no word from the first machine, {host}:{port}, in {_PATIENCE / 60:.0f} minutes")

    def _called(self, host: str, port: int, waited: float) -> bool:
        """Asks the first machine, if it is there yet."""
        try:
            line = socket.create_connection((host, port), timeout=10)
            _say(line, {"identity": self._identity, "settings": self._settings})
        except socket.gaierror as error:
            if waited > _SHORT_PATIENCE:
                problem = f"has no address ({error.strerror})"
                raise ConfigError("MASTER_ADDR", host, problem, "give the first machine's name or address") from error
            return False
        except OSError:
            return False
        self._lines.append(line)
        return True


def _server() -> socket.socket:
    """Where the other machines ask."""
    port, deadline = rendezvous_address()[1], time.monotonic() + _SHORT_PATIENCE
    while True:
        try:
            return socket.create_server(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                problem = f"can't be opened here ({error.strerror})"
                raise ConfigError("MASTER_PORT", port, problem, "give a free port, the same on all machines") from error
        time.sleep(0.5)


def _say(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(json.dumps(message).encode() + b"\n")


def _heard_from(line: socket.socket) -> dict[str, Any]:
    """The next message; empty where the line is cut, or nobody of ours speaks."""
    line.settimeout(_SHORT_PATIENCE)
    text = b""
    with contextlib.suppress(OSError, ValueError):
        while byte := line.recv(1):
            text += byte
            if byte == b"\n":
                return json.loads(text)
    return {}


def status_of(error: BaseException) -> int:
    """How a process or machine says to others what has ended it: of a signal 128 and its number."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return 128 + getattr(error, "signum", signal.SIGINT)
    return MISTAKE if isinstance(error, UserError) else FAILURE


def signal_of(status: int) -> signal.Signals | None:
    """The one that has stopped a process with this status, by itself or by Python's default."""
    number = -status if status < 0 else status - 128
    return signal.Signals(number) if number in SIGNALS else None


def error_of(status: int, message: str) -> BaseException:
    if signum := signal_of(status):
        return Interrupted(signum)
    return UserError(message) if status == MISTAKE else MachineError(message)

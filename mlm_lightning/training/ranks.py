"""A run over several processes: `mlm train` starts one a device, and on several machines its first one tells the others.

    machine 0:  mlm train ─► decides: folder, checkpoint ─► rank 0, rank 1
                    │ MASTER_ADDR:MASTER_PORT
    machine 1:  mlm train ─► hears of it                 ─► rank 2, rank 3

Every rank is a child process that starts from the run's own saved config: never from this command line, which would start a
sweep again in each of them.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from mlm_lightning.config.settings import Settings
from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import MISTAKE, SIGNALS, Interrupted, handle, restore
from mlm_lightning.processes import python
from mlm_lightning.runs.checkpoint import Position
from mlm_lightning.runs.folder import Run, read_note
from mlm_lightning.training.nodes import MachineError, Nodes, error_of, node_rank, rendezvous_address, signal_of

log = logging.getLogger(__name__)

_PATIENCE = {True: 30.0, False: 5.0}
"""Seconds for the others to end after one was stopped, and may be saving (True), or has failed."""


def lead(run: Run, settings: Settings, position: Position | None, nodes: Nodes) -> dict[str, Any]:
    """Trains on all devices of all machines, from the first of them; returns the summary."""
    run.open(settings)
    address = rendezvous_address()[0] if settings.trainer.num_nodes > 1 else "127.0.0.1"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    checkpoint = str(position.path.absolute()) if position else None
    message = {"folder": str(run.folder.absolute()), "checkpoint": checkpoint, "address": address, "port": port}
    nodes.start(message)
    _train_ranks(settings.trainer, message, nodes)
    return run.summary or {}


def follow(settings: TrainerSettings, nodes: Nodes) -> dict[str, Any]:
    """Trains on the devices of this machine, which is not the first; returns nothing, as the first one has the summary."""
    with nodes.following() as message:
        if "folder" in message:
            _train_ranks(settings, message, nodes)
        else:
            log.info("%s", message["message"])
    return {}


def _train_ranks(settings: TrainerSettings, message: dict[str, Any], nodes: Nodes) -> None:
    """Starts this machine's ranks and waits for them; raises what ended them."""
    count = settings.num_processes()
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    shared = {"MASTER_ADDR": message["address"], "MASTER_PORT": str(message["port"]), "OMP_NUM_THREADS": threads}
    shared["NODE_RANK"] = str(node_rank() if settings.num_nodes > 1 else 0)
    # until it trains, a signal ends a rank at once, also where a library waits for the other ranks
    hears = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); signal.pthread_sigmask(signal.SIG_SETMASK, [])"
    command = [*python(f"{hears}; from mlm_lightning.training.rank import start; start()"), str(os.getpid()), message["folder"]]
    command += [message["checkpoint"]] if message["checkpoint"] else []
    ranks: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def forward(signum: int, frame: Any) -> None:
        received.append(signum)
        _send(ranks, signum)

    handlers = handle(forward)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until all are there; a rank is born with it
    try:
        for rank in range(count):
            # out of the terminal's group: of one Ctrl-C they would hear twice, which means "at once"
            environment = os.environ | shared | {"LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=environment, process_group=0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ended = _wait(ranks, received, nodes)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        restore(handlers)
        for process in ranks:
            process.kill()
    _raise_what_ended(ended, received, Path(message["folder"]))


def _send(ranks: list["subprocess.Popen[bytes]"], signum: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signum)


def _wait(ranks: list["subprocess.Popen[bytes]"], received: list[int], nodes: Nodes) -> list[tuple[int, str]]:
    """Waits for all ranks, and returns how they and other machines have ended, in order, with the reason where it is known.
    Where one has not ended well, the others wait for it forever: they are told to stop, and then killed. A second Ctrl-C kills
    them, too, if they don't hear."""
    ended: list[tuple[int, str]] = []
    running, deadline = list(ranks), math.inf
    while running and time.monotonic() < deadline:
        ended += [(rank.returncode, "") for rank in running if rank.poll() is not None]
        running = [rank for rank in running if rank.returncode is None]
        ended += nodes.ended()
        statuses = [status for status, _ in ended if status]
        is_urgent = received.count(signal.SIGINT) > 1
        if deadline == math.inf and (statuses or is_urgent):
            is_stop = is_urgent or signal_of(statuses[0]) is not None
            deadline = time.monotonic() + _PATIENCE[is_stop]
            if is_stop:
                _send(running, signal.SIGTERM)
        time.sleep(0.05)
    return ended


def _raise_what_ended(ended: list[tuple[int, str]], received: list[int], folder: Path) -> None:
    statuses = [status for status, _ in ended if status]
    if not statuses and not received.count(signal.SIGINT) > 1:
        return
    run, stops = Run(folder), [*received, *filter(None, map(signal_of, statuses))]
    if stops:
        (folder / "error.json").unlink(missing_ok=True)  # of a rank that missed the one that was stopped
        position = run.last_checkpoint()
        raise Interrupted(stops[0], position.step if position else None)
    if killed := [-status for status in statuses if status < 0]:
        by = signal.Signals(killed[0])
        how = "killed; is there too little memory?" if by == signal.SIGKILL else f"ended by {by.name}"
        raise MachineError(f"a rank was {how}")
    why = "; ".join(why for status, why in ended if status and why)
    reason = read_note(run.folder / "error.json").get("message") or why
    if statuses[0] == MISTAKE:
        (folder / "error.json").unlink(missing_ok=True)
    raise error_of(statuses[0], reason or f"a rank ended with status {statuses[0]}; it may have lost the others")

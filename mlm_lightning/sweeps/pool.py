"""Runs of a sweep on this machine, several at a time, each in a process of its own that starts at once.

    mlm train -m ─► fork server: torch, Lightning and we are imported once
                        ├ fork ─► a run ─► ends, and all its memory with it
                        ├ fork ─► a run ✗ killed: its folder says so, the next one starts
                        └ fork ─► …

A fresh process for every run keeps it free of what the run before did; a fork from a server that has imported everything costs
some milliseconds in place of seconds. The cores are divided among the runs that go on at the same time.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from mlm_lightning.config.trainer import TrainerSettings
from mlm_lightning.errors import SIGNALS, BusyError, Interrupted, PrunedError, interruptible
from mlm_lightning.messages import report
from mlm_lightning.processes import num_cores, safe_path
from mlm_lightning.sweeps.jobs import Job, JobSource
from mlm_lightning.training.train import train

log = logging.getLogger(__name__)

_PRELOADED = ("mlm_lightning.training.fit", "mlm_lightning.sweeps.pool")


@dataclass
class Slot:
    """A place for one run at a time: with its share of the cores, and its accelerator."""

    threads: int | None
    visible_devices: str | None


def slots(at_once: int, trainer: TrainerSettings) -> list[Slot]:
    """With several runs at once: an equal share of the cores each, and one of the GPUs each in turn. A single run at a time has
    what `mlm train` has."""
    if at_once == 1:
        return [Slot(None, None)]
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, num_cores() // at_once)
    devices: list[str] = []
    if trainer.accelerator != "cpu" and trainer.devices == 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return [Slot(threads, devices[number % len(devices)] if devices else None) for number in range(at_once)]


def run_all(
    source: JobSource,
    free: list[Slot],
    started: Callable[[Job], None],
    ended: Callable[[Job], None],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Runs what `source` hands out until nothing is left, and calls `tick` once a second. On a signal all runs save and end,
    and Interrupted is raised; a second Ctrl-C ends them at once."""
    server = _started_server()
    alone, running = len(free) == 1, dict[Any, tuple[BaseProcess, Job, Slot]]()
    try:
        while True:
            while free and (job := source.next()) is not None:
                slot = free.pop(0)
                # with one run at a time its messages are what the user wants to see
                output = None if alone else job.run.folder.parent / ".logs" / f"{job.run.folder.name}.txt"
                process: BaseProcess = server.Process(target=_work, args=(job, slot, output))
                started(job)
                process.start()
                running[process.sentinel] = (process, job, slot)
            if not running:
                return
            tick()
            for sentinel in wait(list(running), timeout=1.0):
                process, job, slot = running.pop(sentinel)
                process.join()
                free.append(slot)
                # a run whose process was killed could not say so itself
                if (code := process.exitcode or 0) < 0 and job.run.status not in ("complete", "pruned"):
                    hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
                    job.run.fail(RuntimeError(f"its process was ended by {signal.Signals(-code).name}{hint}"))
                source.ended(job)
                ended(job)
    except (Interrupted, KeyboardInterrupt) as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        _stop([process for process, _, _ in running.values()], signum)
        raise Interrupted(signum) from error
    finally:
        for left, _, _ in running.values():
            left.kill()


def _started_server() -> Any:
    """The fork server. A signal to the whole group, such as that of a window that is closed, doesn't end it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(_PRELOADED))
    try:
        with safe_path():
            for start in (resource_tracker.ensure_running, forkserver.ensure_running):
                signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which the first one lifts
                start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return server


def _stop(processes: list[BaseProcess], signum: int) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signum)
    with contextlib.suppress(KeyboardInterrupt, Interrupted):  # again: at once
        for process in processes:
            process.join()


def _work(job: Job, slot: Slot, output: Path | None) -> None:
    """In the child process."""
    Thread(target=_die_with_sweep, daemon=True).start()
    os.environ.pop("PYTHONSAFEPATH", None)  # the server's
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the sweep, which hands it on once
    if slot.visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.visible_devices
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
    if slot.threads is not None:
        torch.set_num_threads(slot.threads)
        os.environ["OMP_NUM_THREADS"] = str(slot.threads)  # of its ranks and workers
    with interruptible():
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the server has them blocked
            status = attempt(job)
        except (Interrupted, KeyboardInterrupt) as error:
            status = report(error)
    sys.stdout.flush()
    sys.exit(status)


def _die_with_sweep() -> None:
    """A run that outlived its sweep would keep the same command from continuing it."""
    sweep = multiprocessing.parent_process()  # not the fork server
    assert sweep is not None
    wait([sweep.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(job: Job) -> int:
    """One job of a sweep: its result, or why there is none, is in its folder afterwards. Returns an exit status."""
    try:
        train(job.settings, job.naming)
    except BusyError as error:  # another command is at it
        log.warning("%s", error)
    except PrunedError as error:
        job.run.write_json("pruned.json", {"message": str(error)})
        log.info("%s", error)
    except Exception as error:
        job.run.fail(error)
        return report(error)
    return 0

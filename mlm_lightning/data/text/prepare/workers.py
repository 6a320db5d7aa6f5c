"""Where the shards of a text are worked on: on this machine's cores (`Local`), or on a Ray cluster (`Ray`).

    run(function, work, tasks)   calls function(work, task) for every task, and yields the tasks in the order in which they end

A worker of `Local` is a fresh interpreter: no fork of a process that has threads, nothing of the caller's main module runs
again, and it ends with the caller, whose pipe it reads, however that ends.
"""

import logging
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from multiprocessing.pool import ThreadPool
from typing import Annotated, Any

from annotated_types import Ge

from mlm_lightning.data.text.prepare.shards import Function, Task, Work
from mlm_lightning.packages import need
from mlm_lightning.processes import Workers, num_cores, python
from mlm_lightning.values import checked

NumWorkers = Annotated[int, Ge(1), "null is one a core"] | None

_FEW_BYTES = 16_000_000
"""Less than this is done here, before workers would have started."""


class Local(Workers):
    """`num_workers` processes on this machine; null: one a core."""

    @checked("prepare")
    def __init__(self, num_workers: NumWorkers = None) -> None:
        self.num_workers = num_workers or num_cores()

    def run(self, function: Function, work: Work, tasks: Sequence[Task]) -> Iterator[Task]:
        num_workers = min(self.num_workers, len(tasks))
        if num_workers <= 1 or sum(work.documents[task.origin].size(task.shard) for task in tasks) < _FEW_BYTES:
            for task in tasks:
                function(work, task)
                yield task
        else:
            yield from _run_in_processes(num_workers, function, work, tasks)


class Ray(Workers):
    """The machines of a Ray cluster, by Ray Data; `address` as in `ray.init` (null: the cluster that RAY_ADDRESS names, else
    this machine). All of them must see the files and `data.cache_dir`. `num_workers` tasks at a time; null: one a core of the
    cluster.
    """

    @checked("prepare")
    def __init__(self, address: str | None = None, num_workers: NumWorkers = None) -> None:
        need("prepare=ray", "ray")
        self.address, self.num_workers = address, num_workers

    def run(self, function: Function, work: Work, tasks: Sequence[Task]) -> Iterator[Task]:
        if not tasks:  # Ray refuses a dataset without rows
            return
        import ray
        import ray.data

        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        shared = ray.put(pickle.dumps((function, work)))  # once, and fetched once by each process
        rows = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        size = self.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        ended = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            partial(_attempt_on_ray, shared), compute=ray.data.TaskPoolStrategy(size=min(size, len(rows)))
        )
        for row in ended.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield tasks[row["number"]]


def _attempt_on_ray(shared: Any, row: dict[str, Any]) -> dict[str, Any]:
    os.environ.update(_ONE_THREAD)
    error = _attempt(*_fetched(shared), pickle.loads(row["task"]))
    return {"number": row["number"], "error": b"" if error is None else pickle.dumps(error)}


@lru_cache(maxsize=1)
def _fetched(shared: Any) -> tuple[Function, Work]:
    import ray

    return pickle.loads(ray.get(shared))


# -- processes on this machine -----------------------------------------------------------------------------------------------

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def _run_in_processes(num_workers: int, function: Function, work: Work, tasks: Sequence[Task]) -> Iterator[Task]:
    shared = pickle.dumps((function, work))
    workers = [_Worker(shared) for _ in range(num_workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def attempt(task: Task) -> Task:
        worker = idle.get()
        try:
            worker.attempt(task)
        finally:
            idle.put(worker)
        return task

    threads = ThreadPool(num_workers)
    try:
        yield from threads.imap_unordered(attempt, tasks)
    finally:
        for worker in workers:
            worker.process.kill()
        threads.terminate()
        threads.join()
        for worker in workers:
            with suppress(BrokenPipeError), worker.process:  # closes its pipes; a killed worker did not read all of it
                pass


class _Worker:
    """A process that does one task after the other."""

    def __init__(self, shared: bytes) -> None:
        self._unsent = shared
        self.process = subprocess.Popen(
            python(f"from {__name__} import _serve; _serve()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            process_group=0,  # Ctrl-C is for the caller, which stops its workers
        )

    def attempt(self, task: Task) -> None:
        """Raises what the task raises, and a RuntimeError where the process ends."""
        to_worker, from_worker = self.process.stdin, self.process.stdout
        assert to_worker is not None
        assert from_worker is not None
        try:
            to_worker.write(self._unsent + pickle.dumps(task))
            to_worker.flush()
            self._unsent = b""
            error = pickle.load(from_worker)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            status = self.process.wait()
            error = RuntimeError(
                f"a process that prepares text ended unexpectedly (status {status}); is there too little memory?"
            )
        if error is not None:
            raise error


def _serve() -> None:
    """The life of a worker: reads what all tasks share, then one task after the other; answers each with None or an error."""
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not run into the answers
    with suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):  # the caller has ended, perhaps while it wrote
        function, work = pickle.load(tasks)
        while True:
            pickle.dump(_attempt(function, work, pickle.load(tasks)), answers)
            answers.flush()


def _attempt(function: Function, work: Work, task: Task) -> Exception | None:
    try:
        function(work, task)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a library's class that does not travel
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
    return None

"""Pools: where tasks run: in this process, in processes beside it, or on a Dask cluster.

Every pool is a function that takes tasks and yields each with its results once, as it is done.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any

from tidesim.errors import RunError, SettingError
from tidesim.processes import processes
from tidesim.sweep.jobs import Task
from tidesim.sweep.rows import Row
from tidesim.sweep.work import compute, failed

Done = tuple[Task, list[Row]]
Pool = Callable[[Sequence[Task]], Generator[Done, None, None]]

CONNECT_S = 10.0  # to wait for a Dask scheduler
_DIED = "the worker died at this point, perhaps for want of memory"


def here(tasks: Sequence[Task]) -> Generator[Done, None, None]:
    """Run tasks one after another in this process."""
    for task in tasks:
        yield task, compute(task)


def in_processes(tasks: Sequence[Task], *, workers: int) -> Generator[Done, None, None]:
    """Run tasks in processes, each with one thread of its own.

    Should one die, what the processes were at is done again point by point, each in a process of
    its own, so that only the point that kills it fails.
    """
    left = iter(tasks)
    while lost := (yield from _until_broken(left, workers=workers)):
        for job in (job for task in lost for job in task):
            if (yield from _until_broken(iter([(job,)]), workers=1)):
                yield (job,), [failed(job, _DIED)]


def _until_broken(tasks: Iterator[Task], *, workers: int) -> Generator[Done, None, list[Task]]:
    """Run tasks until none is left or a process dies; return those that it left undone."""
    running: dict[Future[list[Row]], Task] = {}
    with processes(workers) as pool:
        while True:
            broken = False
            for task in islice(tasks, 2 * workers - len(running)):
                try:
                    running[pool.submit(compute, task)] = task
                except BrokenProcessPool:
                    running[Future()] = task
                    broken = True
            if not running:
                return []
            done = [] if broken else wait(running, return_when=FIRST_COMPLETED).done
            for future in done:
                try:
                    rows = future.result()
                except BrokenProcessPool:
                    broken = True
                else:
                    yield running.pop(future), rows
            if broken:
                return list(running.values())


def on_cluster(tasks: Sequence[Task], *, address: str) -> Generator[Done, None, None]:
    """Run tasks on the workers of a Dask scheduler.

    Dask gives the tasks of a worker that dies to the others. Workers find traces by the same names
    and paths as this process, or say so in the points' errors.

    Raises
    ------
    SettingError
        Dask is not installed, or no scheduler answers at the address.
    RunError
        The scheduler went away.
    """
    if not tasks:
        return
    with _client(address) as client:
        from distributed import as_completed  # noqa: PLC0415 (heavy, and optional)

        futures = {client.submit(compute, task, pure=False): task for task in tasks}
        for future in as_completed(list(futures)):
            task = futures.pop(future)
            yield task, _gathered(future, task, address)


def _gathered(future: Any, task: Task, address: str) -> list[Row]:
    """Return the results of a future; those of a task that no worker survived are errors."""
    try:
        rows: list[Row] = future.result()
    except Exception as error:  # noqa: BLE001 - the worker's, whatever it was
        if future.cancelled():
            raise RunError(
                f"{address}: the Dask scheduler is gone; start it again and go on with --resume"
            ) from None
        return [failed(job, f"{type(error).__name__}: {error}") for job in task]
    return rows


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client  # noqa: PLC0415 (heavy, and optional)
    except ImportError:
        raise SettingError("--dask needs the package distributed; install tidesim[dask]") from None
    try:
        client = Client(address, timeout=CONNECT_S)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        raise SettingError(
            f"--dask {address}: no Dask scheduler answers there ({error}); "
            "start one with dask scheduler and give its address, such as tcp://host:8786"
        ) from None
    log = logging.getLogger("distributed.client")
    log.disabled = True  # what it says with a traceback is one sentence here
    try:
        with client:
            yield client
    finally:
        log.disabled = False

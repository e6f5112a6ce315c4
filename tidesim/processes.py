"""Processes: workers beside this process, which end with it however it ends."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from tidesim.errors import SettingError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def count_workers(asked: int | None, *, tasks: int) -> int:
    """Return how many processes to use for some tasks: as asked, all cores by default, never idle.

    Raises
    ------
    SettingError
        Fewer than one were asked for.
    """
    if asked is not None and asked < 1:
        raise SettingError(f"workers is {asked} but must be at least 1")
    return max(1, min(len(os.sched_getaffinity(0)) if asked is None else asked, tasks))


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes, each with one thread for its libraries, that end with the block."""
    context = get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(reader,))
    with _one_thread_each():
        try:
            yield pool
        except BaseException:
            writer.close()  # nobody waits for what nobody wants
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            writer.close()
            reader.close()


def _begin(parent: Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it closes its end of a pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Connection) -> None:
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let libraries in new processes use one thread, unless the environment says otherwise."""
    absent = [name for name in _THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(absent, "1"))
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)

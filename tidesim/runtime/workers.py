"""Workers: threads that work through queued tasks, and latches that tell when one is done.

PyTorch releases the interpreter's lock inside every operator, so that workers compute and copy at
the same time.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue

import torch

from tidesim.errors import RunError

LOOK_S = 0.5  # how often somebody who waits looks whether the workers still live
JOIN_S = 5.0

Task = Callable[[], None]


class Latch:
    """Opens once, when work is done or has failed; one thread waits for it.

    Attributes
    ----------
    opened : bool
        Whether the waiting thread has seen it open.
    """

    __slots__ = ("_error", "_lock", "_workers", "opened")

    def __init__(self, workers: "Sequence[Worker]") -> None:
        self.opened = False
        self._workers = workers
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self, error: BaseException | None = None) -> None:
        """Let whoever waits go on; what comes after the first time changes nothing."""
        if self._error is None:
            self._error = error
        with suppress(RuntimeError):  # open already
            self._lock.release()

    def is_open(self) -> bool:
        """Whether it has opened.

        Raises
        ------
        RunError
            The work failed.
        """
        self.opened = self.opened or self._lock.acquire(blocking=False)
        if self.opened:
            self._check_error()
        return self.opened

    def wait(self) -> None:
        """Wait until it opens.

        Raises
        ------
        RunError
            The work failed, or a worker it depends on has died.
        """
        while not self.opened:
            self.opened = self._lock.acquire(timeout=LOOK_S)
            if not self.opened:
                self._check_workers()
        self._check_error()

    def _check_error(self) -> None:
        if self._error is not None:
            reason = str(self._error) or type(self._error).__name__
            raise RunError(
                f"an operation of the run failed ({reason.splitlines()[0]}); nothing of it is kept"
            ) from self._error

    def _check_workers(self) -> None:
        for worker in self._workers:
            if not worker.is_alive():
                raise RunError(
                    f"the {worker.name} thread has died, so its work will not end; start the run again"
                )


class Worker(threading.Thread):
    """Thread that works through tasks in order; background ones only when no other waits.

    Parameters
    ----------
    name : str
    core : int or None
        The core to stay on, where the system allows it.
    threads : int
        Threads PyTorch may use inside one operator.
    """

    def __init__(self, name: str, *, core: int | None = None, threads: int = 1) -> None:
        super().__init__(name=name, daemon=True)
        self._core, self._threads = core, threads
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._urgent: deque[tuple[Task, Latch]] = deque()
        self._background: deque[tuple[Task, Latch]] = deque()
        self.start()

    def submit(self, task: Task, latch: Latch, *, background: bool = False) -> None:
        """Queue a task; `latch` opens if it fails. What comes of success is the task's to tell."""
        (self._background if background else self._urgent).append((task, latch))
        self._wake.put(True)

    def stop(self) -> None:
        """End the thread after the task in progress; queued ones are dropped."""
        self._urgent.clear()
        self._background.clear()
        self._wake.put(False)
        if self.is_alive():
            self.join(JOIN_S)

    def run(self) -> None:
        """Work until told to stop."""
        stay_on(self._core)
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._wake.get():
                self._work()

    def _work(self) -> None:
        for queue in (self._urgent, self._background):
            if queue:
                task, latch = queue.popleft()
                try:
                    task()
                except BaseException as error:  # noqa: BLE001 - told to whoever waits
                    latch.open(error)
                return


def available_cores() -> list[int]:
    """Return the cores this process may use, in order; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def stay_on(core: int | None) -> None:
    """Keep the calling thread on a core, where the system allows it."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(threading.get_native_id(), {core})

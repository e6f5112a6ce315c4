"""Misses of a layer on the CPU workers: what every backend does alike."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

from tidesim.records import Resource
from tidesim.runtime.backends.base import Misses, Recorder
from tidesim.runtime.products import expert_products
from tidesim.runtime.workers import Latch, Worker


class MissRun(ABC):
    """One layer's misses on their way: to the host, through the CPU workers, and back.

    A backend starts `_share` on any thread, and says when hidden states have arrived (`_arrive`)
    and how the products return (`_return`).

    Parameters
    ----------
    misses : Misses
    layer : int
    recorder : Recorder
    workers : sequence of Worker
    latch : Latch
        Opens when the result is on its way back, or when anything has failed.
    """

    def __init__(
        self,
        misses: Misses,
        layer: int,
        recorder: Recorder,
        workers: Sequence[Worker],
        latch: Latch,
    ) -> None:
        self.latch = latch
        self._misses, self._layer = misses, layer
        self._recorder, self._key = recorder, recorder.key
        self._workers = workers
        self._spans: list[tuple[float, float]] = []
        self._done = count(1)

    def _share(self, hidden: Tensor, products: Tensor) -> None:
        """Give every worker its experts; `hidden` [T, H] and `products` [n, H] are on the host."""
        self._hidden, self._products = hidden, products
        self._shares = shares(self._misses, len(self._workers))
        for worker, share in zip(self._workers, self._shares, strict=False):
            worker.submit(lambda share=share: self._compute(share), self.latch)  # type: ignore[misc]

    @abstractmethod
    def _arrive(self) -> None:
        """Wait until `hidden` holds the hidden states; called by every worker."""

    @abstractmethod
    def _return(self) -> None:
        """Start the products' way back; called by the worker that ends last."""

    def _compute(self, share: tuple[int, int]) -> None:
        self._arrive()
        start_s, misses = time.perf_counter(), self._misses
        low, high = share
        first = int(misses.ends[low - 1]) if low else 0
        last = int(misses.ends[high - 1])
        rows = torch.from_numpy(misses.rows[first:last])
        ends = torch.from_numpy(misses.ends[low:high] - np.int32(first))
        weights = misses.gate_up[low:high], misses.down[low:high]
        self._products[first:last] = expert_products(self._hidden[rows], *weights, ends)
        self._spans.append((start_s, time.perf_counter()))
        if next(self._done) == len(self._shares):  # the last share
            self._record()
            self._return()

    def _record(self) -> None:
        starts, ends = zip(*self._spans, strict=True)
        number = self._misses.experts
        self._recorder.add(
            Resource.CPU,
            (min(starts), max(ends)),
            f"experts cpu ({number})",
            self._layer,
            experts=number,
            key=self._key,
        )


def shares(misses: Misses, workers: int) -> list[tuple[int, int]]:
    """Cut the experts into at most `workers` runs of ids with about as many distinct experts each.

    Returns
    -------
    list of (first expert, expert after the last)
    """
    active = np.flatnonzero(np.diff(misses.ends, prepend=0))
    parts = [part for part in np.array_split(active, workers) if len(part)]
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]

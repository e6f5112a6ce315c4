"""Accounts: what the seconds of a run were spent on, the same for both methods.

Two views, and both add up to the makespan. *Waits* are what the thread that drives the GPU waits
for, in its order: first the GPU, then copies, then missed experts. The *critical path* is followed
back from the end of every layer: to the operation that ended last, to what that one had waited
for, and so on. Copies that began in an earlier layer, in the background, count from the layer's
placement on.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tidesim.placement import FloatArray
from tidesim.simulate.operations import (
    COPIES,
    CPU_EXPERTS,
    GPU_EXPERTS,
    HIDDEN,
    IDS,
    RESULT,
    SHARED,
    WRITE_BACKS,
    Critical,
    Wait,
)
from tidesim.simulate.prices import PassPrices
from tidesim.simulate.work import Work


class Moments(NamedTuple):
    """When things happened in layers, in seconds since their experts were placed; arrays.

    Attributes
    ----------
    shared, gpu, gpu_end
        End of the shared experts, seconds of the GPU's experts, and their end.
    blocked, written, landed
        End of what the host had to copy before it could start copies, of the write-backs, and of
        the copies that the GPU's experts wait for.
    sent, served, returning, returned
        End of hidden states and of CPU experts, start and end of the result.
    freed
        When the copies that hold the result up began: 0, or the end of the GPU's experts where they
        started only then.
    """

    shared: FloatArray
    gpu: FloatArray
    gpu_end: FloatArray
    blocked: FloatArray
    written: FloatArray
    landed: FloatArray
    sent: FloatArray
    served: FloatArray
    returning: FloatArray
    returned: FloatArray
    freed: FloatArray

    @property
    def end(self) -> FloatArray:
        """When the layers were done."""
        return np.maximum(self.gpu_end, self.returned)


class Accounts:
    """Seconds so far, by what the run waited for and by place on the critical path."""

    def __init__(self) -> None:
        self.waited_s = dict.fromkeys(Wait, 0.0)
        self.critical_s: dict[Critical, float] = {}

    def add_fixed(self, passes: Iterable[PassPrices]) -> None:
        """Add what no placement changes, of every pass."""
        alike: dict[int, list[PassPrices]] = {}
        for prices in passes:
            alike.setdefault(id(prices), []).append(prices)
        for same in alike.values():
            prices, times = same[0], len(same)
            self.waited_s[Wait.GPU] += times * prices.gpu_s
            self.waited_s[Wait.HOST] += times * (prices.ids_s + prices.host_s)
            self._add(prices.critical_s, times=times)

    def add_delay(self, seconds: float) -> None:
        """Add the time that copies of expert ids took beyond their own, slowed by others."""
        self.waited_s[Wait.HOST] += seconds
        self._add({IDS: seconds})

    def add_drain(self, seconds: float) -> None:
        """Add the wait for copies that are still under way after the last pass."""
        self.waited_s[Wait.LINK] += seconds
        self._add({COPIES: seconds})

    def add_layers(self, at: Moments) -> None:
        """Add layers whose operations ran beside one another."""
        late = np.maximum(at.landed - np.maximum(at.shared, at.blocked), 0.0)
        missed = at.end - at.gpu_end + np.maximum(at.blocked - at.shared, 0.0)
        link_s, cpu_s = float(late.sum()), float(missed.sum())
        self.waited_s[Wait.LINK] += link_s
        self.waited_s[Wait.CPU] += cpu_s
        self.waited_s[Wait.GPU] += float(at.end.sum()) - link_s - cpu_s
        self._add({key: float(seconds.sum()) for key, seconds in layer_path(at).items()})

    def add_serial(self, work: Work) -> None:
        """Add layers whose operations ran one after another."""
        seconds = {
            SHARED: work.shared,
            GPU_EXPERTS: work.gpu,
            WRITE_BACKS: work.write_backs,
            COPIES: work.copies,
            HIDDEN: work.hidden,
            CPU_EXPERTS: work.cpu,
            RESULT: work.result,
        }
        sums = {key: float(each.sum()) for key, each in seconds.items()}
        for key, total in sums.items():
            self.waited_s[_SERIAL_WAITS[key]] += total
        self._add(sums)

    def _add(self, seconds: Mapping[Critical, float], *, times: int = 1) -> None:
        for key, value in seconds.items():
            if value:
                self.critical_s[key] = self.critical_s.get(key, 0.0) + times * value


_SERIAL_WAITS = {
    SHARED: Wait.GPU,
    GPU_EXPERTS: Wait.GPU,
    WRITE_BACKS: Wait.LINK,
    COPIES: Wait.LINK,
    HIDDEN: Wait.CPU,
    CPU_EXPERTS: Wait.CPU,
    RESULT: Wait.CPU,
}


def layer_path(at: Moments) -> dict[Critical, FloatArray]:
    """Return the seconds on the critical path by operation; they add up to the layers' ends."""
    by_cpu = at.returned > at.gpu_end
    behind = by_cpu & (at.returning > at.served)  # the result waited for copies
    fresh = behind & (at.freed > 0)  # which had waited for the GPU's experts
    by_gpu = ~by_cpu | fresh
    waited = by_gpu & (at.landed > at.shared)  # the GPU's experts waited for copies
    link, misses = waited | (behind & ~fresh), by_cpu & ~behind
    linked = np.where(waited, at.landed, at.returning) - at.written
    first = np.where(at.blocked > 0, 0.0, at.written)  # what hidden states waited for
    return {
        SHARED: np.where(by_gpu & ~waited, at.shared, 0.0),
        GPU_EXPERTS: np.where(by_gpu, at.gpu, 0.0),
        WRITE_BACKS: np.where(link, at.written - at.blocked, 0.0) + np.where(misses, first, 0.0),
        COPIES: np.where(link, linked, 0.0) + np.where(fresh, at.returning - at.freed, 0.0),
        HIDDEN: np.where(link, at.blocked, 0.0) + np.where(misses, at.sent - first, 0.0),
        CPU_EXPERTS: np.where(misses, at.served - at.sent, 0.0),
        RESULT: np.where(by_cpu, at.returned - at.returning, 0.0),
    }

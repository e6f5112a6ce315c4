"""Backlog: copies in the background, carried from layer to layer; part of the closed method.

Where the link still works on earlier promotions, a layer does not start with idle lanes. Then it is
stepped through, from one end of an operation to the next, at the rates of `lanes.HostMemory`. All
other layers are `fast.overlapped`, on whole arrays. All times are seconds.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tidesim.simulate.lanes import JUST_STARTED, Factors

_NEVER = float("inf")
_ROUNDING = 1 + 1e-12  # ends that differ by less are one end


class Copy(NamedTuple):
    """A promotion under way: which expert of which mixture layer."""

    layer: int
    expert: int


class Layer(NamedTuple):
    """What a layer does, in seconds at full rate, and its promotions in the background.

    `copies` are streamed experts. `needed` are promotions of before that the GPU's experts use,
    `promoted` those that begin once the GPU's experts have run.
    """

    shared: float
    gpu: float
    copies: float
    hidden: float
    cpu: float
    result: float
    needed: frozenset[Copy]
    promoted: tuple[Copy, ...]


@dataclass(slots=True)
class Backlog:
    """Promotions that wait for the link or are on it, first come first served.

    Attributes
    ----------
    copy_s : float
        Seconds of one promotion at full rate.
    factors : Factors
        Shares of rate of CPU, h2d and d2h.
    queue : deque of Copy
        The first is on the link, with `left_s` of its work left.
    busy_s : float
        Seconds the link has worked on promotions.
    """

    copy_s: float
    factors: Factors
    queue: deque[Copy] = field(default_factory=deque)
    left_s: float = 0.0
    busy_s: float = 0.0

    def add(self, copies: Iterable[Copy]) -> None:
        """Queue promotions."""
        if not self.queue:
            self.left_s = self.copy_s
        self.queue.extend(copies)

    @property
    def gives_way(self) -> bool:
        """Whether the first copy has only just begun."""
        return self.left_s >= self.copy_s * (1 - JUST_STARTED)

    def work(self, seconds: float, rate: float = 1.0) -> None:
        """Let the link work on promotions for some time, at a share of its rate."""
        while self.queue and seconds > 0:
            end_s = self.left_s / rate
            taken_s = min(seconds, end_s)
            seconds -= taken_s
            self.busy_s += taken_s
            self.left_s -= taken_s * rate
            if end_s <= taken_s * _ROUNDING:
                self.pop()

    def pop(self) -> None:
        """Let the first copy be in."""
        self.queue.popleft()
        self.left_s = self.copy_s

    def beside_ids(self, ids_s: float) -> float:
        """Copy expert ids to the host meanwhile; return how long that takes."""
        _, h2d, d2h = self.factors[False, True, True]
        left_s = ids_s
        took_s = 0.0
        while self.queue and left_s > 0:
            step_s = min(left_s / d2h, self.left_s / h2d)
            self.work(step_s, h2d)
            left_s = max(0.0, left_s - step_s * d2h)
            took_s += step_s
        return took_s + left_s

    def drain(self) -> float:
        """Copy everything that is left; return how long that takes."""
        seconds = self.left_s + (len(self.queue) - 1) * self.copy_s if self.queue else 0.0
        self.work(2 * seconds)
        return seconds


class LayerClock:
    """One layer beside a backlog, from the placement of its experts to its end.

    Parameters
    ----------
    layer : Layer
    backlog : Backlog
        Worked on meanwhile.

    Attributes
    ----------
    now : float
        Seconds since the placement.
    landed, gpu_end, sent, served, returning, returned, freed : float
        As in `accounts.Moments`; 0 where nothing of the kind happens.
    busy_h2d_s, busy_cpu_s, busy_d2h_s : float
        Seconds the lanes worked, on promotions apart.
    """

    def __init__(self, layer: Layer, backlog: Backlog) -> None:
        self.now = self.landed = self.gpu_end = self.freed = 0.0
        self.sent = self.served = self.returning = self.returned = 0.0
        self.busy_cpu_s = self.busy_h2d_s = self.busy_d2h_s = 0.0
        self._layer, self._backlog = layer, backlog
        self._hidden_s = self._cpu_s = self._link_s = 0.0  # left of what is on each lane
        self._on_link = ""  # "promotion", "copies", "result" or nothing
        self._waiting: list[str] = []  # for the link, before promotions
        self._gpu_s, self._gpu_stage = layer.shared, "shared"

    def run(self) -> None:
        """Go on to the end of the layer."""
        layer = self._layer
        if self._backlog.queue:
            self._on_link, self._link_s = "promotion", self._backlog.left_s
        if layer.copies:
            self._want_link("copies")
        self._hidden_s = layer.hidden
        if not layer.hidden:
            self._end_hidden()
        self._turn_gpu()
        while self._hidden_s or self._cpu_s or self._gpu_stage != "done" or self._result_due:
            self._advance()
        if self._on_link == "promotion":
            self._backlog.left_s = self._link_s

    @property
    def _result_due(self) -> bool:
        return self._on_link == "result" or "result" in self._waiting

    def _advance(self) -> None:
        """Go to the next end of an operation, and do what follows from it."""
        cpu, h2d, d2h = self._backlog.factors[
            self._cpu_s > 0, bool(self._on_link), self._hidden_s > 0
        ]
        ends = [
            self._hidden_s / d2h if self._hidden_s else _NEVER,
            self._cpu_s / cpu if self._cpu_s else _NEVER,
            self._link_s / h2d if self._on_link else _NEVER,
            self._gpu_s if self._gpu_stage in {"shared", "experts"} else _NEVER,
        ]
        step_s = min(ends)
        self.now += step_s
        hidden, served, linked, computed = (end <= step_s * _ROUNDING for end in ends)
        self._hidden_s = self._work(self._hidden_s, step_s * d2h, ended=hidden)
        self._cpu_s = self._work(self._cpu_s, step_s * cpu, ended=served)
        self._gpu_s = self._work(self._gpu_s, step_s, ended=computed)
        self._use_link(step_s, h2d, ended=linked)
        if hidden:
            self._end_hidden()
        if served:
            self._end_cpu()
        if linked:
            self._end_link()
        if computed or linked:
            self._turn_gpu()

    @staticmethod
    def _work(left_s: float, done_s: float, *, ended: bool) -> float:
        return 0.0 if ended or not left_s else left_s - done_s

    def _use_link(self, step_s: float, rate: float, *, ended: bool) -> None:
        if self._on_link == "promotion":
            self._backlog.busy_s += step_s
        elif self._on_link:
            self.busy_h2d_s += step_s
        self._link_s = self._work(self._link_s, step_s * rate, ended=ended)

    def _end_hidden(self) -> None:
        self.sent = self.busy_d2h_s = self.now
        self._cpu_s = self._layer.cpu
        if not self._cpu_s:
            self._end_cpu()

    def _end_cpu(self) -> None:
        self.served, self.busy_cpu_s = self.now, self.now - self.sent
        if self._layer.result:
            self._want_link("result")
        else:
            self.returning = self.returned = self.now

    def _want_link(self, what: str) -> None:
        """Queue for the link, before every promotion that has not truly begun."""
        backlog = self._backlog
        if self._on_link == "promotion":
            backlog.left_s = self._link_s
            if backlog.gives_way:
                self._on_link = ""
        self._waiting.append(what)
        if not self._on_link:
            self._next_on_link()

    def _end_link(self) -> None:
        if self._on_link == "promotion":
            self._backlog.pop()
        elif self._on_link == "result":
            self.returned = self.now
        self._next_on_link()

    def _next_on_link(self) -> None:
        self._on_link = ""
        if self._waiting:
            self._on_link = self._waiting.pop(0)
            self._link_s = getattr(self._layer, self._on_link)
            if self._on_link == "result":
                self.returning = self.now
        elif self._backlog.queue:
            self._on_link, self._link_s = "promotion", self._backlog.left_s

    def _turn_gpu(self) -> None:
        """Start the GPU's experts once their copies are in; then the layer's promotions."""
        if self._gpu_s:
            return
        if self._gpu_stage == "shared":
            self._gpu_stage = "waits"
        if self._gpu_stage == "waits" and not self._awaited():
            self.landed = self.now if self.now > self._layer.shared else 0.0
            self._gpu_stage, self._gpu_s = "experts", self._layer.gpu
        if self._gpu_stage == "experts" and not self._gpu_s:
            self._gpu_stage, self.gpu_end = "done", self.now
            self._promote()

    def _awaited(self) -> bool:
        streams = self._on_link == "copies" or "copies" in self._waiting
        return streams or not self._layer.needed.isdisjoint(self._backlog.queue)

    def _promote(self) -> None:
        if not self._layer.promoted:
            return
        if not self._on_link:
            self.freed = self.now
        self._backlog.add(self._layer.promoted)
        if not self._on_link:
            self._next_on_link()

"""The closed method: the seconds of a pass as a short recurrence on arrays; no clock, no records.

With blocking promotion a layer starts when every lane is idle, so layers add up. Beside the GPU two
chains run: expert copies, and the misses (hidden states down, CPU experts, results up). Each slows
the other while both run, at the rates of `lanes.HostMemory`; two jobs that start together end after
at most two changes of rate, which is arithmetic. Equal to `des` to rounding.

Letters: P passes, L mixture layers, E experts. Prices come from `prices.Prices`, as in `des`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidesim.errors import SettingError
from tidesim.latency import Direction
from tidesim.placement import Decision, FloatArray, PassPlacement
from tidesim.records import Resource
from tidesim.simulate.case import Case
from tidesim.simulate.operations import Operation, Timing, Wait
from tidesim.simulate.prices import Prices
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.run import run
from tidesim.trace.passes import WindowedPass

Tokens = npt.NDArray[np.integer]
CHUNK = 256  # passes timed together


class Work(NamedTuple):
    """What a layer does once its experts are placed: seconds at full rate, arrays that broadcast.

    `hidden`, `cpu` and `result` are the misses' way to the CPU, through it and back.
    """

    shared: FloatArray
    gpu: FloatArray
    write_backs: FloatArray
    copies: FloatArray
    hidden: FloatArray
    cpu: FloatArray
    result: FloatArray


class Timed(NamedTuple):
    """When a layer's work is done, counted from its placement, and what it waited for; seconds."""

    end: FloatArray
    waited_link: FloatArray
    waited_cpu: FloatArray
    busy_h2d: FloatArray
    busy_d2h: FloatArray
    busy_cpu: FloatArray


class FastPrices:
    """Prices of many layers at once; every number is one that `Prices` or `Latency` gives.

    Parameters
    ----------
    prices : Prices
    """

    def __init__(self, prices: Prices) -> None:
        self.prices, self.engine = prices, prices.engine
        one = Decision(promote=(0,), evict=(0,))
        self.promotion_s = prices.promotions(one, 0).seconds
        self.write_back_s = prices.write_backs(one, 0).seconds
        self._gpu_expert_s = _by_tokens(prices.gpu_expert_s)
        self._cpu_expert_s = _by_tokens(prices.cpu_expert_s)
        self._down_s = _by_tokens(lambda rows: prices.hidden_s(rows, Direction.D2H))
        self._up_s = _by_tokens(lambda rows: prices.hidden_s(rows, Direction.H2D))
        self._gpu_call_s = cache(prices.latency.gpu_call_s)
        self._cpu_call_s = _Memo(self._alike_s)

    @cached_property
    def _rates(self) -> tuple[float, ...]:
        contention, duplex = self.prices.latency.contention, self.prices.latency.duplex
        return (duplex.h2d_factor, duplex.d2h_factor, contention.h2d_factor, contention.cpu_factor)

    def work(
        self,
        gpu_tokens: Tokens,
        cpu_tokens: Tokens,
        *,
        tokens: Tokens,
        shared_s: FloatArray,
        copied: Tokens | int = 0,
        written: Tokens | int = 0,
    ) -> Work:
        """Price layers.

        Parameters
        ----------
        gpu_tokens, cpu_tokens : [..., E] int
            Tokens computed on either side.
        tokens : [...] int
            Tokens of the pass.
        shared_s : [...] float64
            Seconds of the shared experts.
        copied, written : [...] int
            Experts copied to the GPU, and evicted ones.
        """
        hidden, cpu, result = self._cpu_side(cpu_tokens, tokens)
        return Work(
            shared=shared_s,
            gpu=self._gpu_side(gpu_tokens),
            write_backs=np.asarray(written * self.write_back_s),
            copies=np.asarray(copied * self.promotion_s),
            hidden=hidden,
            cpu=cpu,
            result=result,
        )

    def time(self, work: Work) -> Timed:
        """Run priced layers, beside one another or one operation after the other."""
        return overlapped(work, *self._rates) if self.engine.overlap else serial(work)

    def _gpu_side(self, tokens: Tokens) -> FloatArray:
        if self.engine.looped:
            return np.asarray(self._gpu_expert_s(tokens).sum(axis=-1))
        experts, pairs = np.count_nonzero(tokens, axis=-1), tokens.sum(axis=-1)
        base = int(pairs.max(initial=0)) + 1
        codes, where = np.unique(experts * base + pairs, return_inverse=True)
        calls = [self._gpu_call_s(*divmod(code, base)) for code in codes.tolist()]
        return np.array(calls, dtype=np.float64)[where.reshape(experts.shape)]

    def _cpu_side(self, cpu_tokens: Tokens, tokens: Tokens) -> tuple[FloatArray, ...]:
        pairs = cpu_tokens.sum(axis=-1)
        together = np.where(pairs > 0, self._down_s(tokens), 0.0), self._up_s(pairs)
        if not self.engine.looped:
            return together[0], self._cpu_together(cpu_tokens), together[1]
        cpu = self._cpu_expert_s(cpu_tokens).sum(axis=-1)
        if self.engine.overlap:
            return together[0], cpu, together[1]
        down, up = self._down_s(cpu_tokens), self._up_s(cpu_tokens)
        return down.sum(axis=-1), cpu, up.sum(axis=-1)

    def _cpu_together(self, tokens: Tokens) -> FloatArray:
        """Price one call: the mean over its experts of a call whose experts all have as many."""
        experts = np.count_nonzero(tokens, axis=-1)
        alike = self._cpu_call_s(experts[..., None], tokens).sum(axis=-1)
        return np.asarray(alike / np.maximum(experts, 1))

    def _alike_s(self, experts: int, tokens: int) -> float:
        return self.prices.latency.cpu_experts_s(np.full(experts, tokens))


def serial(work: Work) -> Timed:
    """Run layers one operation after another."""
    link, cpu = work.write_backs + work.copies, work.hidden + work.cpu + work.result
    return Timed(
        end=work.shared + work.gpu + link + cpu,
        waited_link=link,
        waited_cpu=cpu,
        busy_h2d=work.copies + work.result,
        busy_d2h=work.write_backs + work.hidden,
        busy_cpu=work.cpu,
    )


def overlapped(
    work: Work, h2d_duplex: float, d2h_duplex: float, h2d_contended: float, cpu_contended: float
) -> Timed:
    """Run layers on CPU, GPU and link at the same time.

    Write-backs go first and alone. Then copies run beside the hidden states (duplex rates), what is
    left of them beside the CPU experts (contended rates), and results follow the last copy.
    """
    first, hidden, copies = _beside(work.hidden, work.copies, d2h_duplex, h2d_duplex)
    sent = first + hidden
    second, cpu, copies = _beside(work.cpu, copies, cpu_contended, h2d_contended)
    copied = first + second + copies
    landed = work.write_backs + copied
    served = work.write_backs + np.maximum(sent + second + cpu, copied) + work.result
    gpu = np.maximum(work.shared, landed) + work.gpu
    end = np.maximum(gpu, served)
    return Timed(
        end=end,
        waited_link=np.maximum(0.0, landed - work.shared),
        waited_cpu=end - gpu,
        busy_h2d=copied + work.result,
        busy_d2h=work.write_backs + sent,
        busy_cpu=second + cpu,
    )


def time_passes(
    placements: Iterable[PassPlacement], prices: Prices, *, keep_records: bool = False
) -> Timing:
    """Time placed passes, one after another; the same call as `des.time_passes`.

    Raises
    ------
    SettingError
        Records are asked for: only `des` has a clock to take them from.
    """
    if keep_records:
        raise SettingError("method fast keeps no records of operations; use method des for them")
    fast, parts = FastPrices(prices), [_Sums.of([])]
    remaining = iter(placements)
    while chunk := list(islice(remaining, CHUNK)):
        parts.append(_time_chunk(chunk, fast))
    busy_s = {name: sum(part.busy_s[name] for part in parts) for name in Resource}
    waited_s = {name: sum(part.waited_s[name] for part in parts) for name in Wait}
    pass_s = np.concatenate([part.pass_s for part in parts])
    return Timing(
        pass_s=pass_s,
        seconds=float(pass_s.sum()),
        busy_s=busy_s,
        waited_s=waited_s,
        records=None,
    )


def run_fast(case: Case) -> SimulationResult:
    """Simulate a case as `run.run` does, by this method.

    Raises
    ------
    SettingError
        The trace holds no denoise pass.
    """
    return run(case, method=time_passes)


def fixed_s(pass_: WindowedPass, prices: Prices) -> tuple[float, float, float]:
    """Return the seconds of a pass that no placement changes, by resource: GPU, d2h, host."""
    own = prices.of_pass(pass_)
    ids_s = _seconds(own.ids) if prices.engine.overlap else 0.0
    return (
        _seconds(own.fronts) + own.tail.seconds,
        ids_s,
        _seconds(prices.host) + prices.sync.seconds,
    )


class _Sums(NamedTuple):
    """Times of some passes: [P] seconds, and sums by resource and by purpose."""

    pass_s: FloatArray
    busy_s: dict[Resource, float]
    waited_s: dict[Wait, float]

    @classmethod
    def of(cls, pass_s: list[float]) -> "_Sums":
        return cls(np.array(pass_s), dict.fromkeys(Resource, 0.0), dict.fromkeys(Wait, 0.0))


def _time_chunk(chunk: list[PassPlacement], fast: FastPrices) -> _Sums:
    work = _work_of(chunk, fast)
    timed = fast.time(work)
    fixed = np.array([fixed_s(placement.pass_, fast.prices) for placement in chunk])
    gpu_s, ids_s, host_s = fixed.sum(axis=0).tolist()
    computed_s = gpu_s + float((work.shared + work.gpu).sum())
    return _Sums(
        pass_s=fixed.sum(axis=1) + timed.end.sum(axis=1),
        busy_s={
            Resource.GPU: computed_s,
            Resource.H2D: float(timed.busy_h2d.sum()),
            Resource.D2H: ids_s + float(timed.busy_d2h.sum()),
            Resource.CPU: float(timed.busy_cpu.sum()),
            Resource.HOST: host_s,
        },
        waited_s={
            Wait.GPU: computed_s,
            Wait.LINK: float(timed.waited_link.sum()),
            Wait.CPU: float(timed.waited_cpu.sum()),
            Wait.HOST: ids_s + host_s,
        },
    )


def _work_of(chunk: list[PassPlacement], fast: FastPrices) -> Work:
    return fast.work(
        np.stack([placement.gpu_tokens for placement in chunk]),
        np.stack([placement.cpu_tokens for placement in chunk]),
        tokens=np.array([[placement.pass_.tokens] for placement in chunk]),
        shared_s=np.array([_shared_s(placement, fast.prices) for placement in chunk]),
        copied=np.array([list(_copied(placement)) for placement in chunk]),
        written=np.array([[len(d.evict) for d in placement.decisions] for placement in chunk]),
    )


def _shared_s(placement: PassPlacement, prices: Prices) -> list[float]:
    return [work.seconds for work in prices.of_pass(placement.pass_).shared]


def _copied(placement: PassPlacement) -> Iterator[int]:
    return (len(decision.promote) + len(decision.stream) for decision in placement.decisions)


def _seconds(operations: Iterable[Operation]) -> float:
    return sum(each.seconds for each in operations)


def _beside(
    a: FloatArray, b: FloatArray, a_rate: float, b_rate: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Run two jobs that start together: seconds until the first ends, and what is left of each."""
    both = np.minimum(a / a_rate, b / b_rate)
    return both, np.maximum(0.0, a - both * a_rate), np.maximum(0.0, b - both * b_rate)


def _by_tokens(price: Callable[[int], float]) -> Callable[[Tokens], FloatArray]:
    """Return a price by one whole number, for arrays."""
    memo, one = _Memo(lambda _, number: price(number)), np.array(1)
    return lambda numbers: memo(one, numbers)


class _Memo:
    """A price by two whole numbers, for arrays; nothing costs nothing, others are priced once."""

    def __init__(self, price: Callable[[int, int], float]) -> None:
        self._price = price
        self._known = np.zeros((1, 1))

    def __call__(self, first: Tokens, second: Tokens) -> FloatArray:
        self._grow(int(first.max(initial=0)), int(second.max(initial=0)))
        found = self._known[first, second]
        if np.isnan(found).any():
            wide = np.broadcast_to(first, found.shape), np.broadcast_to(second, found.shape)
            unknown = np.stack([each[np.isnan(found)] for each in wide])
            for a, b in np.unique(unknown, axis=1).T.tolist():
                self._known[a, b] = self._price(a, b)
            found = self._known[first, second]
        return np.asarray(found)

    def _grow(self, first: int, second: int) -> None:
        rows, columns = self._known.shape
        if first >= rows or second >= columns:
            known = np.full((max(rows, first + 1), max(columns, second + 1)), np.nan)
            known[:rows, :columns] = self._known
            known[0], known[:, 0] = 0.0, 0.0
            self._known = known

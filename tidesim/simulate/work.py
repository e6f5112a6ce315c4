"""Work: seconds at full rate of what every layer does once its experts are placed. No clock.

Both methods start from it; they differ in how they let the operations run beside one another.
Letters: P passes, L mixture layers, E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidesim.engines import Promotion
from tidesim.latency import Direction
from tidesim.placement import FloatArray
from tidesim.simulate.chunks import Chunk
from tidesim.simulate.prices import Prices

Tokens = npt.NDArray[np.integer]


class Work(NamedTuple):
    """What a layer does once its experts are placed: seconds at full rate, arrays that broadcast.

    `write_backs` and `copies` (promotions and streamed experts) are those the pass waits for.
    `hidden`, `cpu` and `result` are the misses' way to the CPU, through it and back. `background`
    are promotions that no operation of the layer waits for.
    """

    shared: FloatArray
    gpu: FloatArray
    write_backs: FloatArray
    copies: FloatArray
    hidden: FloatArray
    cpu: FloatArray
    result: FloatArray
    background: FloatArray


class WorkPrices:
    """Prices of many layers at once; every number is one that `Prices` or `Latency` gives.

    Parameters
    ----------
    prices : Prices
    """

    def __init__(self, prices: Prices) -> None:
        self.prices, self.engine = prices, prices.engine
        self._gpu_expert_s = _by_number(prices.gpu_expert_s)
        self._cpu_expert_s = _by_number(prices.cpu_expert_s)
        self._down_s = _by_number(lambda rows: prices.hidden_s(rows, Direction.D2H))
        self._up_s = _by_number(lambda rows: prices.hidden_s(rows, Direction.H2D))
        self._gpu_call_s = _Memo(prices.latency.gpu_call_s)
        self._alike_s = _Memo(self._call_of_alike_s)

    def of_chunk(self, chunk: Chunk, *, promotion: Promotion) -> Work:
        """Price every layer of some passes, [P, L]."""
        passes = [placement.pass_ for placement in chunk.placements]
        blocking = promotion is Promotion.BLOCKING or not self.engine.overlap
        return self.work(
            chunk.gpu_tokens,
            chunk.cpu_tokens,
            tokens=np.array([[pass_.tokens] for pass_ in passes]),
            shared_s=np.array([self.prices.of_pass(pass_).shared_s for pass_ in passes]),
            copied=chunk.streamed + chunk.promoted * blocking,
            written=chunk.evicted,
            background=chunk.promoted * (not blocking),
        )

    def work(
        self,
        gpu_tokens: Tokens,
        cpu_tokens: Tokens,
        *,
        tokens: Tokens,
        shared_s: FloatArray,
        copied: Tokens | int = 0,
        written: Tokens | int = 0,
        background: Tokens | int = 0,
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
        copied, written, background : [...] int
            Experts copied to the GPU, evicted ones, and those copied in the background.
        """
        hidden, cpu, result = self._cpu_side(cpu_tokens, tokens)
        return Work(
            shared=shared_s,
            gpu=self._gpu_side(gpu_tokens),
            write_backs=np.asarray(written * (self.prices.to_host_s * self.engine.write_back)),
            copies=np.asarray(copied * self.prices.to_gpu_s),
            hidden=hidden,
            cpu=cpu,
            result=result,
            background=np.asarray(background * self.prices.to_gpu_s),
        )

    def _gpu_side(self, tokens: Tokens) -> FloatArray:
        if self.engine.looped:
            return np.asarray(self._gpu_expert_s(tokens).sum(axis=-1))
        return self._gpu_call_s(np.count_nonzero(tokens, axis=-1), tokens.sum(axis=-1))

    def _cpu_side(self, cpu_tokens: Tokens, tokens: Tokens) -> tuple[FloatArray, ...]:
        pairs = cpu_tokens.sum(axis=-1)
        down, up = np.where(pairs > 0, self._down_s(tokens), 0.0), self._up_s(pairs)
        if not self.engine.looped:
            return down, self._cpu_together(cpu_tokens), up
        cpu = self._cpu_expert_s(cpu_tokens).sum(axis=-1)
        if self.engine.overlap:
            return down, cpu, up
        one_by_one = self._down_s(cpu_tokens), self._up_s(cpu_tokens)
        return one_by_one[0].sum(axis=-1), cpu, one_by_one[1].sum(axis=-1)

    def _cpu_together(self, tokens: Tokens) -> FloatArray:
        """Price one call of the CPU workers per layer, from the experts that have tokens.

        It takes the mean, over its experts, of a call whose experts all have as many; or, with
        several workers, as long as one of them on its largest expert (`Latency.cpu_experts_s`).
        """
        shape, experts = tokens.shape[:-1], np.count_nonzero(tokens, axis=-1).ravel()
        where = np.flatnonzero(tokens)
        rows = where // tokens.shape[-1]
        alike = self._alike_s(experts[rows], tokens.ravel()[where])
        seconds = np.bincount(rows, weights=alike, minlength=len(experts)) / np.maximum(experts, 1)
        workers, call_s = self.prices.latency.cpu_workers, self.prices.latency.cpu_call_s
        if workers > 1:
            largest = self._alike_s(experts, tokens.max(axis=-1).ravel())
            on_one = (largest - call_s) * (workers / np.maximum(experts, workers))
            seconds = np.maximum(seconds, (call_s + on_one) * (experts > 0))
        return np.asarray(seconds.reshape(shape))

    def _call_of_alike_s(self, experts: int, tokens: int) -> float:
        return self.prices.latency.cpu_experts_s(np.full(experts, tokens))


def _by_number(price: Callable[[int], float]) -> Callable[[Tokens], FloatArray]:
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

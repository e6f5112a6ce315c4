"""Work: seconds at full rate of what every layer does once its experts are placed. No clock.

Both methods start from it; they differ in how they let the operations run beside one another.
Letters: P passes, L mixture layers, E experts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidesim.engines import Promotion
from tidesim.latency import Direction
from tidesim.placement import FloatArray
from tidesim.simulate.chunks import Chunk, Loads
from tidesim.simulate.prices import PassPrices, Prices

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
    """Prices of many layers at once.

    Parameters
    ----------
    prices : Prices
    """

    def __init__(self, prices: Prices) -> None:
        self.prices, self.engine = prices, prices.engine

    def of_chunk(self, chunk: Chunk, own: Sequence[PassPrices], *, promotion: Promotion) -> Work:
        """Price every layer of some passes, [P, L]; `own` are the prices of each pass."""
        blocking = promotion is Promotion.BLOCKING or not self.engine.overlap
        return self.work(
            chunk.gpu,
            chunk.cpu,
            tokens=chunk.tokens[:, None],
            shared_s=np.array([prices.shared_s for prices in own]),
            copied=chunk.streamed + chunk.promoted * blocking,
            written=chunk.evicted,
            background=chunk.promoted * (not blocking),
        )

    def work(
        self,
        gpu: Loads,
        cpu: Loads,
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
        gpu, cpu : Loads
            What either side computes, of [...].
        tokens : [...] int
            Tokens of the pass.
        shared_s : [...] float64
            Seconds of the shared experts.
        copied, written, background : [...] int
            Experts copied to the GPU, evicted ones, and those copied in the background.
        """
        prices = self.prices
        hidden, computed, result = self._cpu_side(cpu, tokens)
        return Work(
            shared=shared_s,
            gpu=self._gpu_side(gpu),
            write_backs=np.asarray(written * (prices.to_host_s * self.engine.write_back)),
            copies=np.asarray(copied * prices.to_gpu_s),
            hidden=hidden,
            cpu=computed,
            result=result,
            background=np.asarray(background * prices.to_gpu_s),
        )

    def _gpu_side(self, load: Loads) -> FloatArray:
        latency = self.prices.latency
        if self.engine.looped:
            return load.sums(np.asarray(latency.gpu_expert_s(load.tokens)))
        return np.asarray(latency.gpu_call_s(load.experts, load.pairs))

    def _cpu_side(self, load: Loads, tokens: Tokens) -> tuple[FloatArray, ...]:
        down, up = self._sent_s(tokens, _DOWN), self._sent_s(load.pairs, _UP)
        down, up = down * (load.pairs > 0), up * (load.pairs > 0)
        if not self.engine.looped:
            return down, self._cpu_together(load), up
        computed = load.sums(np.asarray(self.prices.latency.cpu_expert_s(load.tokens)))
        if self.engine.overlap:
            return down, computed, up
        one_by_one = (self._sent_s(load.tokens, direction) for direction in (_DOWN, _UP))
        down, up = (load.sums(seconds) for seconds in one_by_one)
        return down, computed, up

    def _cpu_together(self, load: Loads) -> FloatArray:
        """Price one call of the CPU workers per layer, from the experts that have tokens.

        It takes the mean, over its experts, of a call whose experts all have as many; or, with
        several workers, as long as one of them on its largest expert (`Latency.cpu_experts_s`).
        """
        latency, experts = self.prices.latency, load.experts
        beside = experts.reshape(-1)[load.layers]  # experts of the same call
        alike = latency.cpu_alike_s(beside, load.tokens)
        seconds = load.sums(alike) / np.maximum(experts, 1)
        if latency.cpu_workers == 1:
            return np.asarray(seconds)
        share = latency.cpu_workers / beside
        largest = np.zeros(experts.size)
        on_one = latency.cpu_call_s + (alike - latency.cpu_call_s) * share
        np.maximum.at(largest, load.layers, on_one)
        return np.maximum(seconds, largest.reshape(experts.shape))

    def _sent_s(self, rows: Tokens, direction: Direction) -> FloatArray:
        return np.asarray(self.prices.hidden_s(rows, direction))


_DOWN, _UP = Direction.D2H, Direction.H2D

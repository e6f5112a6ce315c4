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
from tidesim.simulate.chunks import Chunk, EachSeconds, Load
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
        gpu: Load,
        cpu: Load,
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
        gpu, cpu : Load
            What either side computes, of [...].
        tokens : [...] int
            Tokens of the pass.
        shared_s : [...] float64
            Seconds of the shared experts.
        copied, written, background : [...] int
            Experts copied to the GPU, evicted ones, and those copied in the background.
        """
        hidden, computed, result = self._cpu_side(cpu, tokens)
        none = np.zeros(())
        stays = Work(
            shared=shared_s,
            gpu=self._gpu_side(gpu),
            write_backs=none,
            copies=none,
            hidden=hidden,
            cpu=computed,
            result=result,
            background=np.asarray(background * self.prices.to_gpu_s),
        )
        return self.moving(stays, copied=copied, written=written)

    def moving(self, work: Work, *, copied: Tokens | int, written: Tokens | int) -> Work:
        """Let layers also copy experts to the GPU, and evicted ones back if the engine does."""
        prices = self.prices
        return work._replace(
            write_backs=np.asarray(written * (prices.to_host_s * self.engine.write_back)),
            copies=np.asarray(copied * prices.to_gpu_s),
        )

    @property
    def each_s(self) -> tuple[EachSeconds, ...]:
        """What gives the seconds of experts that are computed or sent one by one."""
        if not self.engine.looped:
            return ()
        latency = self.prices.latency
        one_by_one = () if self.engine.overlap else (self._down_s, self._up_s)
        return (latency.gpu_expert_s, latency.cpu_expert_s, *one_by_one)

    def _gpu_side(self, load: Load) -> FloatArray:
        latency = self.prices.latency
        if self.engine.looped:
            return load.sums(latency.gpu_expert_s)
        return np.asarray(latency.gpu_call_s(load.experts, load.pairs))

    def _cpu_side(self, load: Load, tokens: Tokens) -> tuple[FloatArray, ...]:
        down, up = self._down_s(tokens), self._up_s(load.pairs)
        down, up = down * (load.pairs > 0), up * (load.pairs > 0)
        if not self.engine.looped:
            return down, self._cpu_together(load), up
        computed = load.sums(self.prices.latency.cpu_expert_s)
        if self.engine.overlap:
            return down, computed, up
        return load.sums(self._down_s), computed, load.sums(self._up_s)

    def _cpu_together(self, load: Load) -> FloatArray:
        """Price one call of the CPU workers per layer, from the experts that have tokens.

        It takes the mean, over its experts, of a call whose experts all have as many; or, with
        several workers, as long as one of them on its largest expert (`Latency.cpu_experts_s`).
        """
        latency = self.prices.latency
        seconds = load.sums_beside(latency.cpu_alike_s) / np.maximum(load.experts, 1)
        if latency.cpu_workers == 1:
            return np.asarray(seconds)
        return np.maximum(seconds, load.largest_beside(self._on_one_s))

    def _on_one_s(self, experts: Tokens, tokens: Tokens) -> FloatArray:
        """Time calls in which one of the workers has one of the experts to itself."""
        latency = self.prices.latency
        share = latency.cpu_workers / experts
        alike = latency.cpu_alike_s(experts, tokens)
        return np.asarray(latency.cpu_call_s + (alike - latency.cpu_call_s) * share)

    def _down_s(self, rows: Tokens) -> FloatArray:
        return np.asarray(self.prices.hidden_s(rows, Direction.D2H))

    def _up_s(self, rows: Tokens) -> FloatArray:
        return np.asarray(self.prices.hidden_s(rows, Direction.H2D))

"""Chunk: placed passes as arrays, so that counting and pricing are a few calls for many of them.

It follows from the placement alone, so that one may be timed on many machines.

Letters: P passes, L mixture layers, E experts.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from tidesim.latency import Seconds
from tidesim.placement import KEEP, Decision, FloatArray, IntArray, PassPlacement
from tidesim.trace.passes import Counts

SIZE = 256  # passes taken together

EachSeconds = Callable[[Any], Seconds]  # of the tokens of experts
BesideSeconds = Callable[[Any, Any], Seconds]  # of the experts in the same call, and the tokens


class Load(Protocol):
    """What one side computes in some layers [...], as far as prices depend on it."""

    @property
    def experts(self) -> IntArray:
        """Distinct experts, [...]."""
        ...

    @property
    def pairs(self) -> IntArray:
        """Token-expert pairs, [...]."""
        ...

    def sums(self, each_s: EachSeconds) -> FloatArray:
        """Add the seconds of every expert up by layer, [...]."""
        ...

    def sums_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Add up, by layer [...], seconds that depend on how many experts the layer has, too."""
        ...

    def largest_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Return the largest of these seconds by layer, [...]; 0 without experts."""
        ...


class Loads(NamedTuple):
    """What one side computes in some layers [...], expert by expert.

    Attributes
    ----------
    experts, pairs : [...] int64
        Distinct experts, and token-expert pairs.
    layers, tokens : [N] int64
        Every distinct expert by itself: the flat index of its layer, and its tokens.
    """

    experts: IntArray
    pairs: IntArray
    layers: IntArray
    tokens: IntArray

    @classmethod
    def of(cls, tokens: Counts) -> Self:
        """Sum up tokens per expert, [..., E]."""
        active = np.flatnonzero(tokens)
        layers = active // tokens.shape[-1]
        shape = tokens.shape[:-1]
        experts = np.bincount(layers, minlength=math.prod(shape)).reshape(shape)
        return cls(experts, tokens.sum(axis=-1), layers, tokens.reshape(-1)[active])

    def sums(self, each_s: EachSeconds) -> FloatArray:
        """Add the seconds of every expert up by layer, [...]."""
        return self._sums(each_s(self.tokens))

    def sums_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Add up, by layer [...], seconds that depend on how many experts the layer has, too."""
        return self._sums(beside_s(self._beside, self.tokens))

    def largest_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Return the largest of these seconds by layer, [...]; 0 without experts."""
        largest = np.zeros(self.experts.size)
        np.maximum.at(largest, self.layers, beside_s(self._beside, self.tokens))
        return largest.reshape(self.experts.shape)

    @property
    def _beside(self) -> IntArray:
        """Experts of the same call, [N]."""
        return np.asarray(self.experts.reshape(-1)[self.layers])

    def _sums(self, seconds: FloatArray) -> FloatArray:
        total = np.bincount(self.layers, weights=seconds, minlength=self.experts.size)
        return np.asarray(total, dtype=np.float64).reshape(self.experts.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some placed passes, in order.

    Attributes
    ----------
    placements : list of PassPlacement
    hits : int
        Token-expert pairs served by residents.
    gpu, cpu : Loads
        Of [P, L]; the GPU also computes streamed misses.
    tokens : [P] int64
        Of every pass.
    promoted, evicted, streamed : [P, L] int64
        Experts that move; none where a limit moves them for nothing.
    """

    placements: list[PassPlacement]
    hits: int
    gpu: Loads
    cpu: Loads
    tokens: IntArray
    promoted: IntArray
    evicted: IntArray
    streamed: IntArray

    @classmethod
    def of(cls, placements: list[PassPlacement]) -> Self:
        """Collect placed passes."""
        counts = np.stack([placement.pass_.counts for placement in placements])
        hits = counts * np.stack([placement.resident for placement in placements])
        on_cpu = counts - hits
        moved = np.zeros((3, *counts.shape[:2]), dtype=np.int64)
        for number, placement in enumerate(placements):
            for layer, decision in enumerate(placement.decisions):
                if decision is not KEEP:
                    moved[:, number, layer] = _moved(decision)
                    if decision.stream:
                        on_cpu[number, layer, list(decision.stream)] = 0
        return cls(
            placements=placements,
            hits=int(hits.sum()),
            gpu=Loads.of(counts - on_cpu if moved[2].any() else hits),
            cpu=Loads.of(on_cpu),
            tokens=np.array([placement.pass_.tokens for placement in placements]),
            promoted=moved[0],
            evicted=moved[1],
            streamed=moved[2],
        )


def chunked(placements: Iterable[PassPlacement]) -> Iterator[Chunk]:
    """Take placed passes `SIZE` at a time; they are read only as they are needed."""
    remaining = iter(placements)
    while chunk := list(islice(remaining, SIZE)):
        yield Chunk.of(chunk)


def _moved(decision: Decision) -> tuple[int, int, int]:
    if decision.free:
        return 0, 0, 0
    return len(decision.promote), len(decision.evict), len(decision.stream)

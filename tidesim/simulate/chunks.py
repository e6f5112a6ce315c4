"""Chunk: placed passes as arrays, so that counting and pricing are a few calls for many of them.

Letters: P passes, L mixture layers, E experts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from tidesim.placement import KEEP, Decision, IntArray, PassPlacement
from tidesim.trace.passes import Counts

SIZE = 256  # passes taken together


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some placed passes, in order.

    Attributes
    ----------
    placements : list of PassPlacement
    hits : [P, L, E] int64
        Tokens served by residents.
    gpu_tokens, cpu_tokens : [P, L, E] int64
        Tokens computed on either side; the GPU also computes streamed misses.
    cpu_pairs : [P, L] int64
        Token-expert pairs computed on the CPU.
    promoted, evicted, streamed : [P, L] int64
        Experts that move; none where a limit moves them for nothing.
    """

    placements: list[PassPlacement]
    hits: Counts
    gpu_tokens: Counts
    cpu_tokens: Counts
    cpu_pairs: IntArray
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
            hits=hits,
            gpu_tokens=counts - on_cpu if moved[2].any() else hits,
            cpu_tokens=on_cpu,
            cpu_pairs=on_cpu.sum(axis=-1),
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

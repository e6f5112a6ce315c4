"""Slots: expert weights on the device, and which token-expert pairs they serve."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tidesim.runtime.backends.base import Ids
from tidesim.runtime.products import Experts

NOWHERE = -1


class Slots:
    """Expert weights on the device, and which expert has which slot.

    Parameters
    ----------
    weights : [B, 3 * I * H]
    experts : Experts
        The layer's, for the layout of a blob.
    num_experts : int
    stale : callable
        Called with the weights of a slot that has been freed.

    Attributes
    ----------
    slot_of : [E] int64
        `NOWHERE` for experts without.
    gate_up, down : views of `weights`, [B, 2I, H] and [B, H, I]
    """

    def __init__(
        self,
        weights: Tensor,
        experts: Experts,
        *,
        num_experts: int,
        stale: Callable[[Tensor], None] = lambda _: None,
    ) -> None:
        self.weights = weights
        self.gate_up, self.down = experts.views(weights)
        self.slot_of = np.full(num_experts, NOWHERE, dtype=np.int64)
        self._free = list(reversed(range(len(weights))))
        self._stale = stale

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, expert: int) -> Tensor:
        """Give an expert a free slot; return the slot's weights, to be copied into."""
        slot = self._free.pop()
        self.slot_of[expert] = slot
        return self.weights[slot]

    def release(self, expert: int) -> Tensor:
        """Free the slot of an expert; return its weights."""
        slot = int(self.slot_of[expert])
        self.slot_of[expert] = NOWHERE
        self._free.append(slot)
        self._stale(self.weights[slot])
        return self.weights[slot]

    def release_all(self) -> None:
        """Free every slot."""
        for expert in np.flatnonzero(self.slot_of != NOWHERE).tolist():
            self.release(expert)


class Sorted(NamedTuple):
    """The token-expert pairs of a layer by who computes them: hits, streamed, misses.

    Attributes
    ----------
    order : [T * K] int64
        Pairs sorted by slot, then scratch slot, then id of missed expert.
    rows : [T * K] int64
        The token of each.
    hits, on_gpu : int
        How many of them are hits, and hits or streamed.
    slot_ends, scratch_ends, miss_ends : int32
        Where the pairs of each slot, scratch slot and expert end within their own part.
    """

    order: Ids
    rows: Ids
    hits: int
    on_gpu: int
    slot_ends: npt.NDArray[np.int32]
    scratch_ends: npt.NDArray[np.int32]
    miss_ends: npt.NDArray[np.int32]

    @property
    def distinct(self) -> int:
        """Distinct experts that the device computes."""
        ends = (self.slot_ends, self.scratch_ends)
        return sum(int(np.count_nonzero(np.diff(each, prepend=0))) for each in ends)


def sort_pairs(flat: Ids, top_k: int, slots: Slots, scratch: Slots) -> Sorted:
    """Sort pairs by who computes them; `flat` holds their experts, [T * K]."""
    first, second = len(slots), len(slots) + len(scratch)
    experts = len(slots.slot_of)
    where = np.arange(second, second + experts)
    for base, part in ((0, slots), (first, scratch)):
        held = part.slot_of != NOWHERE
        where[held] = base + part.slot_of[held]
    keys = where[flat]
    order = np.argsort(keys, kind="stable")
    ends = np.searchsorted(keys[order], np.arange(second + experts), side="right")
    hits = int(ends[first - 1]) if first else 0
    on_gpu = int(ends[second - 1]) if second else 0
    return Sorted(
        order=order,
        rows=order // top_k,
        hits=hits,
        on_gpu=on_gpu,
        slot_ends=ends[:first].astype(np.int32),
        scratch_ends=(ends[first:second] - hits).astype(np.int32),
        miss_ends=(ends[second:] - on_gpu).astype(np.int32),
    )

"""dali: misses go where they are done earlier; high workloads stay (after DALI)."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import Decision, LayerView, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.cache import exchange, missed_by_tokens, room
from tidesim.policies.costs import ExpertCosts, Finish


class Dali(PolicyBase):
    """Give each miss, busiest first, to the side that would be done with it earlier.

    The GPU's time is the copy and the computation, the CPU's the computation; ties go to the CPU,
    and so does what finds no slot. What is copied stays; of the residents without tokens the one
    with the fewest tokens in the last `window` passes, this one included, leaves. A long prefill
    thus weighs on that many passes. Prefetching is left out. Blocking only: the rule is about this
    pass's copies.

    Raises
    ------
    SettingError
        The machine's costs are unknown.
    """

    name = "dali"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BLOCKING,)
    window: ClassVar[int] = 4  # passes

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._costs = ExpertCosts(self.name, setup)
        self._recent = np.zeros((setup.layers, self.window, setup.num_experts), dtype=np.int64)
        self._passes = 0

    def decide(self, view: LayerView) -> Decision:
        """Return the copies of the misses that the GPU takes."""
        self._passes += view.layer == 0
        recent = self._recent[view.layer]
        recent[self._passes % self.window] = view.counts
        missed = missed_by_tokens(view)
        taken = self._taken(view, view.counts[missed].tolist())
        return exchange(view, missed[taken], recent.sum(axis=0))

    def _taken(self, view: LayerView, misses: list[int]) -> list[int]:
        """Return which of the misses, given by their tokens, the GPU takes."""
        finish = Finish(costs=self._costs, gpu_s=self._costs.gpu_s(view.counts[view.resident]))
        taken: list[int] = []
        most = room(view)
        for index, tokens in enumerate(misses):
            if len(taken) < most and finish.if_copied(tokens) < finish.if_on_cpu(tokens):
                finish.copy(tokens)
                taken.append(index)
            else:
                finish.compute_on_cpu(tokens)
        return taken

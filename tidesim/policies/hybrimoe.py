"""hybrimoe: CPU and GPU meet in the middle of the missed experts (arXiv 2504.05897)."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import Decision, LayerView, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.cache import blend, exchange, missed_by_tokens, room
from tidesim.policies.costs import ExpertCosts, Finish


class HybriMoe(PolicyBase):
    """Copy the busiest misses, compute the lightest on the CPU, whichever side is done earlier.

    Two pointers run over the misses by tokens: each time the side that would finish earlier takes
    its next, ties go to the CPU. Residents run on the GPU while copies are under way. What is
    copied stays; of the residents without tokens the lowest average leaves. Averages are
    exponential, of the share of a pass's tokens that an expert gets: traces hold no router scores.

    Left out: prefetching the next layer's top averages, because a decision moves experts of its
    own layer; and residents that run on the CPU, because a resident is a hit. Blocking only: the
    rule is about this pass's copies.

    Raises
    ------
    SettingError
        The machine's costs are unknown.
    """

    name = "hybrimoe"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BLOCKING,)
    alpha: ClassVar[float] = 0.5  # weight of the newest shares

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._costs = ExpertCosts(self.name, setup)
        self._average = np.zeros((setup.layers, setup.num_experts))

    def decide(self, view: LayerView) -> Decision:
        """Return the copies of the misses that the GPU takes."""
        average = self._average[view.layer]
        blend(average, view.counts, self.alpha)
        missed = missed_by_tokens(view)
        taken = self._taken(view, view.counts[missed].tolist())
        return exchange(view, missed[:taken], average)

    def _taken(self, view: LayerView, tokens: list[int]) -> int:
        """Return how many of the misses, given by their tokens, the GPU takes."""
        finish = Finish(costs=self._costs, gpu_s=self._costs.gpu_s(view.counts[view.resident]))
        copied, left, most = 0, len(tokens), room(view)
        while copied < min(left, most):
            if finish.if_copied(tokens[copied]) < finish.if_on_cpu(tokens[left - 1]):
                finish.copy(tokens[copied])
                copied += 1
            else:
                left -= 1
                finish.compute_on_cpu(tokens[left])
        return copied

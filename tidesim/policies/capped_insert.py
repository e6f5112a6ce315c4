"""capped-insert: a few insertions a step, made in the background (llama.cpp, ONNX Runtime)."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import KEEP, Decision, LayerView, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.cache import blend


class CappedInsert(PolicyBase):
    """Let the highest averages replace the lowest, at most `most` per layer and pass.

    Averages are exponential, of the share of a pass's tokens that an expert gets. An expert
    replaces a resident only if its average is over `margin` times the resident's, so that equals
    do not change places; free slots go to any average above 0. Passes of every kind count and
    insert. Ties go to the lower id. Background only: what a pass inserts serves from the next on.
    """

    name = "capped-insert"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BACKGROUND,)
    most: ClassVar[int] = 2  # promotions
    alpha: ClassVar[float] = 0.25  # weight of the newest shares
    margin: ClassVar[float] = 1.25

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._average = np.zeros((setup.layers, setup.num_experts))

    def decide(self, view: LayerView) -> Decision:
        """Return the few exchanges that pay."""
        average = self._average[view.layer]
        blend(average, view.counts, self.alpha)
        free = min(self.most, view.budget - int(np.count_nonzero(view.resident)))
        outside = np.where(view.resident, 0.0, average)
        inside = np.where(view.resident, average, np.inf)
        best = np.argsort(-outside, kind="stable")[: self.most]
        leaving = np.argsort(inside, kind="stable")[: self.most - free]
        bars = np.concatenate([np.zeros(free), self.margin * inside[leaving]])[: best.size]
        count = int(np.count_nonzero(outside[best] > bars))  # bars rise, averages fall
        if not count:
            return KEEP
        evict = leaving[: max(0, count - free)]
        return Decision(promote=tuple(best[:count].tolist()), evict=tuple(evict.tolist()))

"""full-knowledge: the busiest cells of every pass are resident at no cost; a limit."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import BoolArray, Decision, IntArray, LayerView, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.future import known_now, passes_to_come, place_of
from tidesim.policies.tide import busiest


class FullKnowledge(PolicyBase):
    """Hold the ``layers * budget`` busiest (layer, expert) cells of the pass about to run.

    No policy with as many slots serves more tokens of any pass from residents. Copies are free. A
    layer may hold all its experts, but a pass never finds more than ``layers * budget`` cells
    resident in all; cells without tokens are not held. Ties go to the lower layer, then the lower
    id. Blocking only: what it holds is for this very pass.

    Raises
    ------
    SettingError
        The setup has no future, or not the passes that are replayed.
    """

    name = "full-knowledge"
    is_bound = True
    knows_future = True
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BLOCKING,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._slots = setup.layers * setup.budget
        self._coming = ((place_of(one), one.counts) for one in passes_to_come(self.name, setup))
        self._target: BoolArray = self.initial(setup)

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]: any of its experts may be resident."""
        return np.full(setup.layers, setup.num_experts, dtype=np.int64)

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents before the first pass, [L, E]: none, the first pass chooses."""
        return np.zeros((setup.layers, setup.num_experts), dtype=np.bool_)

    def decide(self, view: LayerView) -> Decision:
        """Return the exchange that leaves this pass's busiest cells of the layer."""
        if view.layer == 0:
            counts = known_now(self._coming, view)
            self._target = busiest(counts.ravel(), self._slots).reshape(counts.shape)
        target = self._target[view.layer]
        promote = np.flatnonzero(target & ~view.resident).tolist()
        evict = np.flatnonzero(view.resident & ~target).tolist()
        return Decision(promote=tuple(promote), evict=tuple(evict), free=True)

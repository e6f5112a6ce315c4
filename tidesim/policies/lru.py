"""lru: a cache per layer that evicts the least recently used expert."""

import numpy as np

from tidesim.placement import IntArray, LayerView, Setup
from tidesim.policies.cache import Cache, table


class Lru(Cache):
    """Insert every miss in place of the resident whose last use is longest ago.

    Experts not used so far count as oldest; ties leave in ascending id order.
    """

    name = "lru"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._clock = 0
        self.last_use = table(setup)

    def note(self, view: LayerView) -> None:
        """Stamp the experts that have tokens."""
        self._clock += 1
        np.copyto(self.last_use[view.layer], self._clock, where=view.counts > 0)

    def keep_score(self, view: LayerView) -> IntArray:
        """Return when each expert was last used, [E]; 0 is never."""
        last_use: IntArray = self.last_use[view.layer]
        return last_use

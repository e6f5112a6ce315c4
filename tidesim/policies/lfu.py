"""lfu: a cache per layer that evicts the least frequently used expert."""

from tidesim.placement import IntArray, LayerView, Setup
from tidesim.policies.cache import Cache, table


class Lfu(Cache):
    """Insert every miss in place of the resident with the fewest uses since the start.

    A use is a pass in which the expert has tokens, however many; a prefill is one use. Nothing is
    forgotten. Ties leave in ascending id order.
    """

    name = "lfu"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._uses = table(setup)

    def note(self, view: LayerView) -> None:
        """Count a use for the experts that have tokens."""
        self._uses[view.layer] += view.counts > 0

    def keep_score(self, view: LayerView) -> IntArray:
        """Return the uses of each expert so far, [E]."""
        uses: IntArray = self._uses[view.layer]
        return uses

"""belady: the cache that evicts what is needed latest, knowing the future (IBM Systems J. 5(2))."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from tidesim.engines import Promotion
from tidesim.placement import Decision, IntArray, LayerView, Setup
from tidesim.policies.cache import Cache
from tidesim.policies.future import Place, known_now, passes_to_come, place_of
from tidesim.policies.tide import refresh_to
from tidesim.trace.passes import WindowedPass

NextUses = npt.NDArray[np.int32]
NEVER = np.iinfo(np.int32).max


class Belady(Cache):
    """Keep what is needed soonest; a limit on what any cache can know.

    A missed expert is inserted if it is needed sooner than a resident that leaves for it, counted
    from the first pass it can serve: under blocking promotion that is this very pass, so every
    miss that finds room is inserted; in the background it is the next, so many are not. It looks
    ahead to the end of the request: what comes later counts as never needed.

    Within one request, from equal residents and slots, counting pairs of a pass and an expert:

    - in the background no policy that promotes only experts with tokens has more hits. A hit is
      an interval between two uses through which the expert keeps its slot, and dropping the
      interval that ends last wherever too many overlap keeps the most intervals;
    - blocking, every policy that inserts its misses has the same hits, slots or active experts,
      whichever are fewer; where the active experts always fit, none needs fewer promotions.

    Raises
    ------
    SettingError
        The setup has no future, or not the passes that are replayed.
    """

    name = "belady"
    knows_future = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._coming = next_uses(passes_to_come(self.name, setup))
        self._next_use = np.empty((0, 0), dtype=np.int32)

    def note(self, view: LayerView) -> None:
        """Look up the next uses at the first layer of every pass."""
        if view.layer == 0:
            self._next_use = known_now(self._coming, view)

    def keep_score(self, view: LayerView) -> IntArray:
        """Return the next uses, [E], the soonest highest."""
        score: IntArray = -self._next_use[view.layer].astype(np.int64)
        return score

    def decide(self, view: LayerView) -> Decision:
        """Return the insertions that pay."""
        if self.promotion is Promotion.BLOCKING:
            return super().decide(view)
        self.note(view)
        next_use = self._next_use[view.layer]
        held = np.flatnonzero(view.resident | (view.counts > 0))
        order = np.lexsort((~view.resident[held], next_use[held]))  # ties stay, then lower id
        target = np.zeros_like(view.resident)
        target[held[order[: view.budget]]] = True
        return replace(refresh_to(target & (next_use < NEVER), view), refresh=False)


def next_uses(passes: Iterator[WindowedPass]) -> Iterator[tuple[Place, NextUses]]:
    """Yield for every pass which later pass of its request next uses each expert.

    Holds one request at a time.

    Yields
    ------
    place : tuple
    [L, E] int32
        Passes counted from the request's first; `NEVER` where none of the request does.
    """
    for _, group in groupby(passes, key=lambda pass_: pass_.request):
        places, active = zip(*((place_of(one), one.counts > 0) for one in group), strict=True)
        found = np.full((len(active), *active[0].shape), NEVER, dtype=np.int32)
        for index in range(len(active) - 1, 0, -1):
            found[index - 1] = np.where(active[index], index, found[index])
        yield from zip(places, found, strict=True)

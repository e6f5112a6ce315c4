"""belady: the cache that evicts what is needed latest, knowing the future (IBM Systems J. 5(2))."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import Decision, IntArray, LayerView, Setup
from tidesim.policies.cache import Cache
from tidesim.policies.future import Place, known_now, passes_to_come, place_of
from tidesim.policies.tide import refresh_to
from tidesim.trace.passes import WindowedPass

NEVER = np.iinfo(np.int64).max
PASS = 2**32  # above any number of tokens


class Belady(Cache):
    """Keep what is needed soonest; a limit on what any cache can know.

    A missed expert is inserted if it is needed sooner than a resident that leaves for it, counted
    from the first pass it can serve: under blocking promotion that is this very pass, so every
    miss that finds room is inserted; in the background it is the next, so many are not. Of two
    needed in the same pass the one with more tokens then counts as sooner. It looks ahead to the
    end of the request, or of the batch: what comes later counts as never needed.

    Within one request, from equal residents and slots, counting pairs of a pass and an expert,
    not tokens (for those `FullKnowledge` is the limit):

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
        self._coming = when_due(passes_to_come(self.name, setup))
        self._due = np.empty((0, 0), dtype=np.int64)

    def note(self, view: LayerView) -> None:
        """Look up the next uses at the first layer of every pass."""
        if view.layer == 0:
            self._due = known_now(self._coming, view)

    def keep_score(self, view: LayerView) -> IntArray:
        """Return how soon each expert is needed, [E], the soonest highest."""
        score: IntArray = -self._due[view.layer]
        return score

    def decide(self, view: LayerView) -> Decision:
        """Return the insertions that pay."""
        if self.promotion is Promotion.BLOCKING:
            return super().decide(view)
        self.note(view)
        due = self._due[view.layer]
        held = np.flatnonzero(view.resident | (view.counts > 0))
        order = np.lexsort((~view.resident[held], due[held]))  # ties stay, then lower id
        target = np.zeros_like(view.resident)
        target[held[order[: view.budget]]] = True
        return replace(refresh_to(target & (due < NEVER), view), refresh=False)


def when_due(passes: Iterator[WindowedPass]) -> Iterator[tuple[Place, IntArray]]:
    """Yield for every pass when later passes of its request, or batch, need each expert.

    Holds one request, or batch, at a time.

    Yields
    ------
    place : tuple
    [L, E] int64
        `PASS` times the next pass that uses the expert, counted from the first held, less its
        tokens there; `NEVER` where none does.
    """
    for held in _together(passes):
        found = np.full((len(held), *held[0].counts.shape), NEVER, dtype=np.int64)
        for index in range(len(held) - 1, 0, -1):
            counts = held[index].counts
            found[index - 1] = np.where(counts > 0, PASS * index - counts, found[index])
        yield from ((place_of(one), needed) for one, needed in zip(held, found, strict=True))


def _together(passes: Iterator[WindowedPass]) -> Iterator[list[WindowedPass]]:
    """Yield the passes of a request, or of requests decoded in step, as long as blocks follow."""
    held: list[WindowedPass] = []
    for pass_ in passes:
        if held and held[-1].request != pass_.request:
            before = held[-1].generated_block
            if 0 <= before >= pass_.generated_block:  # blocks start anew
                yield held
                held = []
        held.append(pass_)
    if held:
        yield held

"""q-split: an LRU pool that fetches as many misses as link and CPU finish together (FreeToken)."""

import math
from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import Decision, IntArray, LayerView, Setup
from tidesim.policies.cache import exchange, missed_by_tokens
from tidesim.policies.costs import ExpertCosts
from tidesim.policies.lru import Lru


class QSplit(Lru):
    """Of m misses fetch ``m * B_link / (B_link + B_cpu)``, most recently active first.

    Rates are experts per second while both work: ``B_link`` from the seconds of a copy, ``B_cpu``
    from the seconds of these very misses on the CPU, each times the share that the side keeps.
    The number is rounded, a half to the CPU; the rest of the misses and what finds no slot run on
    the CPU. The least recently used leave. Blocking only: the split is of this pass's misses.

    Raises
    ------
    SettingError
        The machine's costs are unknown.
    """

    name = "q-split"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BLOCKING,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._costs = ExpertCosts(self.name, setup)
        shares = self._costs.latency.contention
        self._copy_s = self._costs.copy_s / shares.h2d_factor
        self._cpu_factor = shares.cpu_factor

    def decide(self, view: LayerView) -> Decision:
        """Return the fetches."""
        missed = missed_by_tokens(view)
        last_use = self.last_use[view.layer, missed]  # before this pass
        self.note(view)
        recent = missed[np.argsort(-last_use, kind="stable")]
        fetched = recent[: self._fetched(view.counts[missed])]
        return exchange(view, fetched, self.keep_score(view))

    def _fetched(self, tokens: IntArray) -> int:
        """Return how many misses to fetch, so that link and CPU finish together."""
        if not tokens.size:
            return 0
        cpu_s = self._costs.cpu_s(tokens) / self._cpu_factor
        copies_s = tokens.size * self._copy_s
        return math.ceil(tokens.size * cpu_s / (cpu_s + copies_s) - 0.5)

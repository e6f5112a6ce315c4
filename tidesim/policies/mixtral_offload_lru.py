"""mixtral-offload-lru: an LRU cache whose misses all run on the GPU (arXiv 2312.17238)."""

from dataclasses import replace
from typing import ClassVar

from tidesim.engines import Promotion
from tidesim.placement import Decision, LayerView, Setup
from tidesim.policies.cache import missed_by_tokens
from tidesim.policies.lru import Lru


class MixtralOffloadLru(Lru):
    """Insert misses as `Lru` does; stream those that find no slot, so that the CPU computes none.

    Blocking only: in the background a missed expert would have to run on the CPU. The original's
    speculative loading of the next layer's experts is left out: a decision moves experts of its
    own layer.
    """

    name = "mixtral-offload-lru"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BLOCKING,)

    def scratch_slots(self, setup: Setup) -> int:
        """Return the slots of streamed experts: a long prefill may stream every non-resident."""
        return setup.num_experts - setup.budget

    def decide(self, view: LayerView) -> Decision:
        """Return insertions, and streams of the rest."""
        decision = super().decide(view)
        left = missed_by_tokens(view)[len(decision.promote) :]
        return replace(decision, stream=tuple(left.tolist())) if left.size else decision

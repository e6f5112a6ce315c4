"""fiddler: popular experts stay; a miss runs wherever it is cheaper (arXiv 2402.07033)."""

import numpy as np

from tidesim.errors import SettingError
from tidesim.latency import Direction, Latency
from tidesim.placement import KEEP, BoolArray, Decision, LayerView, Setup
from tidesim.policies.base import PolicyBase, most_popular, need_popularity


class Fiddler(PolicyBase):
    """Keep the most popular experts; compute a miss on the CPU or copy it for this pass.

    Each missed expert is weighed alone: its time on the CPU against its copy and its time on the
    GPU. Ties stay on the CPU.

    Raises
    ------
    SettingError
        Popularity or the machine's costs are unknown.
    """

    name = "fiddler"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        need_popularity(self.name, setup)
        if setup.latency is None:
            raise SettingError("policy fiddler weighs costs; give a hardware profile")
        self._latency: Latency = setup.latency
        self._looped = setup.engine.looped
        self._copy_s = setup.latency.expert_copy_s(
            setup.engine.copies_per_expert, Direction.H2D, pinned=setup.engine.pinned
        )
        self._cheaper_streamed: dict[int, bool] = {}

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents, [L, E]: the most popular experts of every layer."""
        return most_popular(setup.popularity, self.budgets(setup))

    def scratch_slots(self, setup: Setup) -> int:
        """Return the slots of streamed experts: a long prefill may stream every non-resident."""
        return setup.num_experts - setup.budget

    def decide(self, view: LayerView) -> Decision:
        """Return the misses worth a copy."""
        missed = np.flatnonzero((view.counts > 0) & ~view.resident)
        stream = tuple(
            expert
            for expert, tokens in zip(missed.tolist(), view.counts[missed].tolist(), strict=True)
            if self._streams(tokens)
        )
        return Decision(stream=stream) if stream else KEEP

    def _streams(self, tokens: int) -> bool:
        if tokens not in self._cheaper_streamed:
            one = np.array([tokens], dtype=np.int64)
            gpu_s, cpu_s = (
                (self._latency.gpu_expert_s(tokens), self._latency.cpu_expert_s(tokens))
                if self._looped
                else (self._latency.gpu_experts_s(one), self._latency.cpu_experts_s(one))
            )
            self._cheaper_streamed[tokens] = self._copy_s + gpu_s < cpu_s
        return self._cheaper_streamed[tokens]

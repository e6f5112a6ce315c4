"""fiddler: popular experts stay; a miss runs wherever it is cheaper (arXiv 2402.07033)."""

import numpy as np

from tidesim.placement import KEEP, BoolArray, Decision, LayerView, Setup
from tidesim.policies.base import PolicyBase, most_popular, need_popularity
from tidesim.policies.costs import ExpertCosts


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
        self._costs = ExpertCosts(self.name, setup)
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
            gpu_s, cpu_s = self._costs.gpu_s(one), self._costs.cpu_s(one)
            self._cheaper_streamed[tokens] = self._costs.copy_s + gpu_s < cpu_s
        return self._cheaper_streamed[tokens]

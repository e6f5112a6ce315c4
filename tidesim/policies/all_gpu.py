"""all-gpu: every expert is resident, as if the GPU had the memory; a bound."""

import numpy as np

from tidesim.placement import IntArray, Setup
from tidesim.policies.base import PolicyBase


class AllGpu(PolicyBase):
    """Give every layer a slot for each of its experts."""

    name = "all-gpu"
    is_bound = True

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]: one per expert."""
        return np.full(setup.layers, setup.num_experts, dtype=np.int64)

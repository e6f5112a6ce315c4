"""all-cpu: no expert is ever resident; a bound."""

import numpy as np

from tidesim.placement import IntArray, Setup
from tidesim.policies.base import PolicyBase


class AllCpu(PolicyBase):
    """Give no layer a slot; every expert runs on the CPU."""

    name = "all-cpu"
    is_bound = True

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]: none."""
        return np.zeros(setup.layers, dtype=np.int64)

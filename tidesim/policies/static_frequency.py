"""static-frequency: the most used cells of popularity[layer, expert] stay (KTransformers)."""

import numpy as np

from tidesim.placement import BoolArray, IntArray, Setup
from tidesim.policies.base import PolicyBase, need_popularity


class StaticFrequency(PolicyBase):
    """Give ``layers * budget`` slots to the most used experts of all layers; misses run on the CPU.

    Layers get unequal budgets. Ties go to the lower layer, then to the lower id.

    Raises
    ------
    SettingError
        Popularity is unknown.
    """

    name = "static-frequency"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        need_popularity(self.name, setup)

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]: as many as it has residents."""
        budgets: IntArray = self.initial(setup).sum(axis=1, dtype=np.int64)
        return budgets

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents, [L, E]."""
        resident = np.zeros(setup.popularity.size, dtype=np.bool_)
        order = np.argsort(-setup.popularity.ravel(), kind="stable")
        resident[order[: setup.layers * setup.budget]] = True
        return resident.reshape(setup.popularity.shape)

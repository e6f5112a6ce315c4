"""pay: promote in the background what saves more CPU time than its copy costs; tidesim's own."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.placement import (
    KEEP,
    BoolArray,
    Decision,
    FloatArray,
    IntArray,
    LayerView,
    Setup,
)
from tidesim.policies.base import PolicyBase, need_popularity
from tidesim.policies.static_frequency import StaticFrequency
from tidesim.policies.worth import LayerWorth
from tidesim.trace.passes import Kind


class Pay(PolicyBase):
    """Exchange residents where the expected saving pays for the link's time.

    What the next pass will need is predicted from this one, from the passes before it and, between
    blocks, from the first steps of earlier blocks. An expert replaces a resident where::

        (use of the expert - use of the resident) × passes × seconds saved per pass
            > seconds of its copy beside CPU experts × share of the time that it meets some

    Seconds saved and share are averages over the layer's passes, so that nothing moves while the
    GPU is what the layer waits for. Residents start from popularity, in equal numbers per layer.
    Where even tokens that choose experts independently, which takes the most experts, would leave
    the GPU the one to wait for, no promotion can pay: then it does as static-frequency.

    Raises
    ------
    SettingError
        Popularity or the machine's costs are unknown.
    """

    name = "pay"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BACKGROUND,)
    # Chosen by trial on the bundled trace's held-out requests at budgets 8, 16 and 32; its training
    # requests and other budgets, which had no part in that, are in tests/bench/bench_policies.py.
    step_passes: ClassVar[float] = 16.0  # that a promotion within a block serves
    block_passes: ClassVar[float] = 8.0  # that one between blocks serves
    newest: ClassVar[float] = 0.7  # weight of this pass in a block's average
    slow: ClassVar[float] = 0.05  # weight of a pass in the average over blocks,
    slow_share: ClassVar[float] = 0.3  # and that average's weight in the prediction
    first: ClassVar[float] = 0.3  # weight of a block's first step in the average of first steps
    trend: ClassVar[float] = 0.01  # weight of a pass in the averages of saving and share

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        need_popularity(self.name, setup)
        self._worth = LayerWorth(self.name, setup)
        self._static = StaticFrequency(setup)
        self._pays = True
        rows = zip(setup.popularity, self.initial(setup), strict=True)
        expected = [self._worth.expected(*row) for row in rows]
        self._saved_s = [worth.saved_s for worth in expected]
        self._share = [worth.shared for worth in expected]
        self._pays = any(saved_s > 0 for saved_s in self._saved_s)
        shape = (setup.layers, setup.num_experts)
        self._recent, self._first = np.zeros(shape), np.zeros(shape)
        self._usual = setup.popularity / setup.popularity.max(axis=1, keepdims=True)

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]."""
        return super().budgets(setup) if self._pays else self._static.budgets(setup)

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents before the first pass, [L, E]."""
        return super().initial(setup) if self._pays else self._static.initial(setup)

    def decide(self, view: LayerView) -> Decision:
        """Return the exchanges that pay."""
        if not self._pays:
            return KEEP
        use, passes = self._predict(view)
        worth, layer = self._worth.of_view(view), view.layer
        if view.kind is Kind.DENOISE:
            self._saved_s[layer] += self.trend * (worth.saved_s - self._saved_s[layer])
            self._share[layer] += self.trend * (worth.shared - self._share[layer])
        saved_s = passes * self._saved_s[layer]
        if saved_s <= 0 or not view.budget:
            return KEEP
        least = self._worth.copy_s * self._share[layer] / saved_s
        outside = np.flatnonzero(~view.resident)
        residents = np.flatnonzero(view.resident)
        best = outside[np.argsort(-use[outside], kind="stable")]
        worst = residents[np.argsort(use[residents], kind="stable")]
        pairs = min(best.size, worst.size)
        count = int(np.count_nonzero(use[best[:pairs]] - use[worst[:pairs]] > least))
        if not count:
            return KEEP
        return Decision(promote=tuple(best[:count].tolist()), evict=tuple(worst[:count].tolist()))

    def _predict(self, view: LayerView) -> tuple[FloatArray, float]:
        """Return how much each expert will be used, [E], and for how many passes that holds."""
        layer, used = view.layer, 1.0 - 0.5**view.counts  # many tokens: sure to be used again
        if view.kind is not Kind.DENOISE:
            return self._first[layer], self.block_passes
        recent, usual = self._recent[layer], self._usual[layer]
        if view.step == 0:
            recent[:] = used
            self._first[layer] += self.first * (used - self._first[layer])
        else:
            recent += self.newest * (used - recent)
        usual += self.slow * (used - usual)
        return recent + self.slow_share * usual, self.step_passes

"""Worth: what a promotion saves in a layer, and what the link's time for it costs."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tidesim.latency import Direction, Latency
from tidesim.placement import BoolArray, FloatArray, LayerView, Setup
from tidesim.policies.costs import ExpertCosts


class Load(NamedTuple):
    """Experts and token-expert pairs of one side."""

    experts: int
    pairs: int


class Worth(NamedTuple):
    """Of one more resident of a layer.

    Attributes
    ----------
    saved_s : float
        Seconds per pass by which the layer ends sooner; below 0 where the GPU is what it waits for.
    shared : float
        Share of the layer's time, 0 to 1, in which a copy meets CPU experts or their transfers.
    """

    saved_s: float
    shared: float


class LayerWorth:
    """Prices a layer as the engine runs it, from how many experts are where.

    Parameters
    ----------
    policy : str
        Who asks, for the error.
    setup : Setup

    Attributes
    ----------
    copy_s : float
        Seconds of one promotion beside CPU experts.

    Raises
    ------
    SettingError
        The machine's costs are unknown.
    """

    def __init__(self, policy: str, setup: Setup) -> None:
        costs = ExpertCosts(policy, setup)
        self._latency: Latency = costs.latency
        self._engine = setup.engine
        self.copy_s = costs.copy_s / self._latency.contention.h2d_factor
        self._of = lru_cache(maxsize=2**16)(self._price)

    def of_view(self, view: LayerView) -> Worth:
        """Price the layer a policy looks at."""
        hits = view.counts[view.resident]
        experts, pairs = int(np.count_nonzero(view.counts)), int(view.counts.sum())
        served = Load(int(np.count_nonzero(hits)), int(hits.sum()))
        return self._of(served, Load(experts - served.experts, pairs - served.pairs))

    def expected(self, popularity: FloatArray, resident: BoolArray) -> Worth:
        """Price a denoise step of a layer whose tokens choose by popularity, one by one.

        Parameters
        ----------
        popularity : [E] float64
        resident : [E] bool
        """
        spec = self._latency.spec
        pairs = spec.block_length * spec.num_experts_per_tok * popularity / popularity.sum()
        active = 1.0 - np.exp(-pairs)  # an expert's tokens are about Poisson
        served, missed = (
            Load(round(float(active[mine].sum())), round(float(pairs[mine].sum())))
            for mine in (resident, ~resident)
        )
        return self._of(served, missed)

    def _price(self, served: Load, missed: Load) -> Worth:
        """Take the better of moving one missed expert and of moving all, per expert."""
        latency, overlap = self._latency, self._engine.overlap
        tokens = max(1, (served.pairs + missed.pairs) // latency.spec.num_experts_per_tok)
        shared_s = latency.shared_s(tokens)
        gpu_s = shared_s + self._gpu_s(served)
        all_gpu_s = shared_s + self._gpu_s(
            Load(served.experts + missed.experts, served.pairs + missed.pairs)
        )
        cpu_s, one_s = self._cpu_s(missed, tokens)
        ends_s = max(gpu_s, cpu_s) if overlap else gpu_s + cpu_s
        added_s = (all_gpu_s - gpu_s) / max(1, missed.experts)
        slack_s = max(-added_s, cpu_s - gpu_s) if overlap else one_s - added_s
        all_saved_s = (ends_s - all_gpu_s) / max(1, missed.experts)
        share = min(1.0, cpu_s / (self._front_s(tokens) + ends_s)) if overlap else 1.0
        return Worth(max(min(one_s, slack_s), all_saved_s), share)

    def _gpu_s(self, load: Load) -> float:
        if self._engine.looped:
            each_s = self._latency.gpu_expert_s(load.pairs / max(1, load.experts))
            return load.experts * float(each_s)
        return float(self._latency.gpu_call_s(load.experts, load.pairs))

    def _cpu_s(self, load: Load, tokens: int) -> tuple[float, float]:
        """Return the seconds of missed experts with their transfers, and of one of them."""
        if not load.experts:
            return 0.0, 0.0
        latency, pinned = self._latency, self._engine.pinned
        call_s = float(latency.cpu_alike_s(load.experts, load.pairs / load.experts))
        row_bytes = latency.spec.hidden_size * latency.spec.dtype_bytes
        down_s = latency.copy_s(tokens * row_bytes, Direction.D2H, pinned=pinned)
        up_s = latency.copy_s(load.pairs * row_bytes, Direction.H2D, pinned=pinned)
        one_s = (call_s - latency.cpu_call_s) / load.experts
        return float(down_s + up_s) + call_s, one_s

    def _front_s(self, tokens: int) -> float:
        """Return what leads to a layer's experts, without cached tokens."""
        latency = self._latency
        gpu_s = (
            latency.attention_s(tokens, 0) + latency.router_s(tokens) + latency.combine_s(tokens)
        )
        return gpu_s + latency.sync_s + latency.decide_s

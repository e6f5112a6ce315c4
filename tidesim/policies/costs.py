"""What policies that weigh costs share: seconds of experts, and when CPU and GPU would be done."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from tidesim.errors import SettingError
from tidesim.latency import Direction, Latency
from tidesim.placement import IntArray, Setup


class ExpertCosts:
    """Seconds of copying and computing experts, each side alone on the machine.

    Parameters
    ----------
    policy : str
        Who asks, for the error.
    setup : Setup

    Attributes
    ----------
    latency : Latency
    copy_s : float
        Seconds to copy one expert to the GPU.
    gpu_added_s, cpu_added_s : callable
        Seconds that one more expert with a number of tokens adds to a call; `first` if the call
        is made for it.

    Raises
    ------
    SettingError
        The machine's costs are unknown.
    """

    def __init__(self, policy: str, setup: Setup) -> None:
        if setup.latency is None:
            raise SettingError(f"policy {policy} weighs costs; give a hardware profile")
        self.latency: Latency = setup.latency
        self._looped = setup.engine.looped
        self.copy_s = setup.latency.expert_copy_s(
            setup.engine.copies_per_expert, Direction.H2D, pinned=setup.engine.pinned
        )
        self.gpu_added_s: Callable[[int, bool], float] = cache(_added(self.gpu_s))
        self.cpu_added_s: Callable[[int, bool], float] = cache(_added(self.cpu_s))

    def gpu_s(self, tokens: IntArray) -> float:
        """Time experts with some tokens each on the GPU, as the engine calls them; 0 for none."""
        if self._looped:
            return float(np.sum(self.latency.gpu_expert_s(tokens)))
        return self.latency.gpu_experts_s(tokens)

    def cpu_s(self, tokens: IntArray) -> float:
        """Time experts with some tokens each on the CPU, as the engine calls them; 0 for none."""
        if self._looped:
            return float(np.sum(self.latency.cpu_expert_s(tokens)))
        return self.latency.cpu_experts_s(tokens)


@dataclass(slots=True, kw_only=True)
class Finish:
    """When the GPU, the CPU and the link would be done with what a layer has given them so far.

    The three work side by side, none slows another, and a copied expert runs after its copy.

    Attributes
    ----------
    costs : ExpertCosts
    gpu_s : float
        Starts with the seconds of the residents that have tokens.
    cpu_s, link_s : float
    """

    costs: ExpertCosts
    gpu_s: float
    cpu_s: float = 0.0
    link_s: float = 0.0

    def if_copied(self, tokens: int) -> float:
        """Return when the GPU would be done if it also took a missed expert."""
        landed = self.link_s + self.costs.copy_s
        return max(self.gpu_s, landed) + self.costs.gpu_added_s(tokens, not self.gpu_s)

    def if_on_cpu(self, tokens: int) -> float:
        """Return when the CPU would be done if it also took a missed expert."""
        return self.cpu_s + self.costs.cpu_added_s(tokens, not self.cpu_s)

    def copy(self, tokens: int) -> None:
        """Give the GPU a missed expert."""
        self.gpu_s = self.if_copied(tokens)
        self.link_s += self.costs.copy_s

    def compute_on_cpu(self, tokens: int) -> None:
        """Give the CPU a missed expert."""
        self.cpu_s = self.if_on_cpu(tokens)


def _added(call_s: Callable[[IntArray], float]) -> Callable[[int, bool], float]:
    def added_s(tokens: int, first: bool) -> float:
        alone_s = call_s(np.array([tokens]))
        return alone_s if first else max(0.0, call_s(np.array([tokens, tokens])) - alone_s)

    return added_s

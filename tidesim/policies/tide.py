"""tide: every τ steps each layer keeps the experts with most tokens (arXiv 2605.20179)."""

from typing import ClassVar

import numpy as np

from tidesim.errors import SettingError
from tidesim.placement import KEEP, BoolArray, Decision, IntArray, LayerView, Setup
from tidesim.policies.base import PolicyBase
from tidesim.trace.passes import Kind


class Tide(PolicyBase):
    """Refresh at steps 0, τ, 2τ … of each block from the counts of that very pass.

    The rule is the TIDE authors' code: the target is the B experts with most tokens, none without
    tokens, ties to the lower id; what the target lacks is promoted; where slots are missing, as
    many residents outside the target leave, in ascending id order. Prefill and commit passes
    never refresh.

    Raises
    ------
    SettingError
        The interval is missing or below 1.
    """

    name = "tide"
    takes_interval: ClassVar[bool] = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if setup.interval is None or setup.interval < 1:
            raise SettingError(
                f"policy {self.name} refreshes every interval steps, but interval is "
                f"{setup.interval}; give an interval of 1 or more"
            )
        self.interval = self._interval = setup.interval
        self._first_block = setup.engine.refresh_first_block

    def decide(self, view: LayerView) -> Decision:
        """Return the refresh that is due, or nothing."""
        if view.kind is not Kind.DENOISE:
            return KEEP
        first = self._first_block and view.generated_block == 0
        if not first and view.step % self._interval:
            return KEEP
        return refresh_to(busiest(view.counts, view.budget), view)


def busiest(counts: IntArray, budget: int) -> BoolArray:
    """Mark the `budget` experts with most tokens, none without; ties go to the lower id.

    Parameters
    ----------
    counts : [E] int64
    budget : int

    Returns
    -------
    [E] bool
    """
    num_experts = len(counts)
    rank = counts * num_experts - np.arange(num_experts)  # no two alike
    at = num_experts - budget
    least = np.partition(rank, at)[at] if budget else rank.max() + 1
    marked: BoolArray = (rank >= least) & (counts > 0)
    return marked


def refresh_to(target: BoolArray, view: LayerView, *, most: int | None = None) -> Decision:
    """Return the refresh that makes experts of `target` resident: all, or those with most tokens.

    Without a limit the residents that leave are those outside the target with the lowest ids; with
    one, those with the fewest tokens in this very pass, because then a busy one may well stay.

    Parameters
    ----------
    target : [E] bool
        At most as many as the layer has slots.
    view : LayerView
    most : int or None
        Most experts to promote; None promotes all that are missing. Ties go to the lower id.
    """
    promote = np.flatnonzero(target & ~view.resident)
    others = np.flatnonzero(view.resident & ~target)
    if most is not None:
        busy_first = np.argsort(-view.counts[promote], kind="stable")
        promote = np.sort(promote[busy_first[:most]])
        others = others[np.argsort(view.counts[others], kind="stable")]
    missing_slots = int(np.count_nonzero(view.resident)) + len(promote) - view.budget
    evict = others[: max(0, missing_slots)]
    return Decision(
        promote=tuple(promote.tolist()), evict=tuple(np.sort(evict).tolist()), refresh=True
    )

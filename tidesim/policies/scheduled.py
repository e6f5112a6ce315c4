"""scheduled: tide's refresh at the steps, and with the slots, that a schedule gives each layer."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tidesim.errors import SettingError
from tidesim.placement import KEEP, Decision, IntArray, LayerView, Policy, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.tide import busiest, refresh_to
from tidesim.schedule import LayerSchedule, Schedule
from tidesim.trace.passes import Kind


class Scheduled(PolicyBase):
    """Refresh each layer at its own denoise steps of every block, within its own slots.

    The refresh is `tide`'s. Where the schedule states an interval, steps beyond those it was made
    for refresh as well, at every multiple of it.

    Parameters
    ----------
    setup : Setup
        Its budget is not used; its interval is that of the schedule, if it has one.
    layers : sequence of LayerSchedule
        One per mixture layer.

    Raises
    ------
    SettingError
        The schedule has another number of layers than the model.
    """

    name = "tide"

    def __init__(self, setup: Setup, *, layers: Sequence[LayerSchedule]) -> None:
        super().__init__(setup)
        if len(layers) != setup.layers:
            raise SettingError(
                f"the schedule has {len(layers)} layers but the model {setup.layers}; "
                "solve again for this model"
            )
        self._budgets = [layer.budget for layer in layers]
        self._steps = [frozenset(layer.refresh_steps) for layer in layers]
        self.interval = setup.interval
        self._first_block = setup.engine.refresh_first_block

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]."""
        return np.array(self._budgets, dtype=np.int64)

    def decide(self, view: LayerView) -> Decision:
        """Return the refresh that is due, or nothing."""
        if view.kind is not Kind.DENOISE:
            return KEEP
        first = self._first_block and view.generated_block == 0
        if not first and not self._is_due(view):
            return KEEP
        return refresh_to(busiest(view.counts, view.budget), view)

    def _is_due(self, view: LayerView) -> bool:
        if self.interval is not None:
            return view.step % self.interval == 0
        return view.step in self._steps[view.layer]


def follow(schedule: Schedule) -> Callable[[Setup], Policy]:
    """Return what makes the policy that obeys a schedule.

    Raises
    ------
    SettingError
        The schedule is of a policy that has no refresh steps.
    """
    if schedule.policy != Scheduled.name:
        raise SettingError(
            f"the schedule is of policy {schedule.policy}, which has no refresh steps to follow; "
            f"use one of policy {Scheduled.name}"
        )
    return partial(Scheduled, layers=schedule.layers)

"""scheduled: tide's refresh at the steps, and with the slots, that a schedule gives each layer."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tidesim.errors import SettingError
from tidesim.placement import KEEP, BoolArray, Decision, IntArray, LayerView, Policy, Setup
from tidesim.policies.base import PolicyBase
from tidesim.policies.tide import busiest, refresh_to
from tidesim.schedule import LayerSchedule, Schedule
from tidesim.trace.passes import Kind


class Scheduled(PolicyBase):
    """Refresh each layer at its own denoise steps of every block, within its own slots.

    The refresh is `tide`'s, with the layer's limit on promotions if it has one (`refresh_to`). A
    layer without steps keeps its first residents; those of a layer whose first step is not 0 carry
    over from block to block until then. Where the schedule states an interval, steps beyond those
    it was made for refresh as well, at every multiple of it; without one they do not. Engines that
    refresh at every step of the first generated block do so here, too, in every layer.

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

    Attributes
    ----------
    is_tide : bool
        `tide` itself refreshes alike: at one interval, without limit.
    """

    name = "tide"

    def __init__(self, setup: Setup, *, layers: Sequence[LayerSchedule]) -> None:
        super().__init__(setup)
        if len(layers) != setup.layers:
            raise SettingError(
                f"the schedule has {len(layers)} layers but the model {setup.layers}; "
                "solve again for this model"
            )
        self._layers = tuple(layers)
        self._steps = [frozenset(layer.refresh_steps) for layer in layers]
        self.interval = setup.interval
        self.is_tide = self.interval is not None and all(
            layer.most_promotions is None for layer in layers
        )
        self._first_block = setup.engine.refresh_first_block

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]."""
        return np.array([layer.budget for layer in self._layers], dtype=np.int64)

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents before the first pass, [L, E]: the schedule's where it names them."""
        resident = super().initial(setup)
        for row, layer in zip(resident, self._layers, strict=True):
            if layer.initial is not None:
                row[:] = False
                row[list(layer.initial)] = True
        return resident

    def decide(self, view: LayerView) -> Decision:
        """Return the refresh that is due, or nothing."""
        if view.kind is not Kind.DENOISE:
            return KEEP
        first = self._first_block and view.generated_block == 0
        if not first and not self._is_due(view):
            return KEEP
        most = self._layers[view.layer].most_promotions
        return refresh_to(busiest(view.counts, view.budget), view, most=most)

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

"""What most policies share: equal budgets, usual first residents, no scratch, nothing moves."""

from typing import ClassVar

import numpy as np

from tidesim.engines import Promotion
from tidesim.errors import SettingError
from tidesim.placement import KEEP, BoolArray, Decision, FloatArray, IntArray, LayerView, Setup


class PolicyBase:
    """Base of policies: ``setup.budget`` slots in every layer that never change hands.

    A policy overrides what differs and names itself. Its constructor takes the setup.

    Attributes
    ----------
    promotions : tuple of Promotion
        When its promoted experts may serve; the first unless the setup says otherwise.
    takes_interval : bool
        The setup's interval matters to it.

    Raises
    ------
    SettingError
        The setup asks for a promotion that the policy does not have.
    """

    name: str
    interval: int | None = None
    is_bound: bool = False
    knows_future: bool = False
    promotions: ClassVar[tuple[Promotion, ...]] = tuple(Promotion)
    takes_interval: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        self.promotion = setup.promotion or self.promotions[0]
        if self.promotion not in self.promotions:
            raise SettingError(
                f"policy {self.name} has no {self.promotion} promotion; "
                f"use {' or '.join(self.promotions)}"
            )

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]."""
        return np.full(setup.layers, setup.budget, dtype=np.int64)

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents before the first pass, [L, E]: the engine's choice."""
        scores = setup.popularity if setup.engine.popular_first else 0.0 * setup.popularity
        return most_popular(scores, self.budgets(setup))

    def scratch_slots(self, setup: Setup) -> int:
        """Return the slots that streamed experts may need: none."""
        return 0

    def decide(self, view: LayerView) -> Decision:
        """Return nothing to do."""
        return KEEP


def most_popular(scores: FloatArray, budgets: IntArray) -> BoolArray:
    """Mark the `budgets[l]` best-scored experts of every layer l; ties go to the lower id.

    Parameters
    ----------
    scores : [L, E] float64
    budgets : [L] int64

    Returns
    -------
    [L, E] bool
    """
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    marked: BoolArray = rank < budgets[:, None]
    return marked


def need_popularity(name: str, setup: Setup) -> None:
    """Refuse a setup without popularity.

    Raises
    ------
    SettingError
        Popularity is unknown.
    """
    if not setup.popularity.any():
        raise SettingError(
            f"policy {name} places experts by popularity, but none is known; "
            "give training requests (popularity_from) or use another policy"
        )

"""previous-step: the busiest experts of a step, copied in the background, serve the next."""

from dataclasses import replace
from typing import ClassVar

from tidesim.engines import Promotion
from tidesim.placement import Setup
from tidesim.policies.tide import Tide


class PreviousStep(Tide):
    """Tide in the background: the top B of the step just computed serve from the next pass on.

    Without an interval it refreshes at every step.
    """

    name = "previous-step"
    promotions: ClassVar[tuple[Promotion, ...]] = (Promotion.BACKGROUND,)

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, interval=1) if setup.interval is None else setup)

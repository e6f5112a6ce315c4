"""mixtral-offload: fetch what every step needs, the baseline of the TIDE paper."""

from dataclasses import replace
from typing import ClassVar

from tidesim.placement import Setup
from tidesim.policies.tide import Tide


class MixtralOffload(Tide):
    """Tide at τ = 1, as the paper runs it; the setup's interval is ignored."""

    name = "mixtral-offload"
    takes_interval: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, interval=1))

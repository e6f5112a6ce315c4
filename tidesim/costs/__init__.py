"""Costs for the solver: what each choice of refresh steps takes, from training requests.

``arc_costs`` times every choice around a schedule and returns a ``CostTable``; ``Option`` is what a
layer may choose, ``Measure`` a sum over layers that follows from the choices.
"""

from tidesim.costs.blocks import Block, TrainingBlocks
from tidesim.costs.measures import Measure
from tidesim.costs.ordered import Option, Ordered
from tidesim.costs.table import FIRST_STEPS, CostTable, arc_costs

__all__ = [
    "FIRST_STEPS",
    "Block",
    "CostTable",
    "Measure",
    "Option",
    "Ordered",
    "TrainingBlocks",
    "arc_costs",
]

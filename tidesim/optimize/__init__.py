"""Optimise: costs from training requests, a proved choice, and what it gives on other requests.

==================  ==============================================================
``optimize``        the fastest refresh schedule of a trace on a machine
``judge``           what it is worth: against fixed intervals, and against hindsight
``Optimised``       a schedule, how it was found, and its simulation
``Judgement``       what `judge` found
``Round``           one solution on the way
``in_memory``       a trace whose passes are read once
``splits``          its training and held-out requests
==================  ==============================================================
"""

from tidesim.optimize.answer import Optimised, Round
from tidesim.optimize.job import in_memory, splits
from tidesim.optimize.judge import Judgement, judge
from tidesim.optimize.search import optimize

__all__ = [
    "Judgement",
    "Optimised",
    "Round",
    "in_memory",
    "judge",
    "optimize",
    "splits",
]

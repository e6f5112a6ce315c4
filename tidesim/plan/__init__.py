"""Plan: which machine to get for a model, what each would do and cost, and how sure that is.

==================  ==============================================================
``plan``            every machine and memory budget, solved, priced and compared
``Plan``            its rows, the choice among them, and what could not be assessed
``Row``             one machine with one memory budget
``Goal``            the speed and price asked for
``Method``          how schedules are found and judged
``Assumptions``     what turns a machine's price into a price per token
``assess``          one machine, without prices
==================  ==============================================================
"""

from tidesim.plan.assess import Assessment, Method, Site, assess
from tidesim.plan.band import RUN_ERROR, Band
from tidesim.plan.plan import Plan, plan
from tidesim.plan.prices import Assumptions, Costs
from tidesim.plan.rows import Goal, NotAssessable, Row, TooSmall
from tidesim.plan.upgrades import Upgrade

__all__ = [
    "RUN_ERROR",
    "Assessment",
    "Assumptions",
    "Band",
    "Costs",
    "Goal",
    "Method",
    "NotAssessable",
    "Plan",
    "Row",
    "Site",
    "TooSmall",
    "Upgrade",
    "assess",
    "plan",
]

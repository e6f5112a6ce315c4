"""Plan: which machine to get for a model, what each would do and cost, and how sure that is.

==================  ==============================================================
``plan``            every machine and memory budget, solved, priced and compared
``Plan``            its rows, the choice among them, and what could not be assessed
``Row``             one machine with one memory budget
``Goal``            the speed and price asked for
``Method``          how schedules are found and judged
``Assumptions``     what turns a machine's price into a price per token
``assess``          one machine, without prices
``answers``         what to get and what would help it, in words
``scope``           whose routing at whose sizes, and how many requests
==================  ==============================================================
"""

from tidesim.plan.assess import Assessment, Method, Site, assess
from tidesim.plan.band import RUN_ERROR, Band
from tidesim.plan.plan import Plan, plan
from tidesim.plan.prices import Assumptions, Costs
from tidesim.plan.rows import Goal, LeftOut, NotAssessable, Row
from tidesim.plan.upgrades import Upgrade
from tidesim.plan.words import answers, scope

__all__ = [
    "RUN_ERROR",
    "Assessment",
    "Assumptions",
    "Band",
    "Costs",
    "Goal",
    "LeftOut",
    "Method",
    "NotAssessable",
    "Plan",
    "Row",
    "Site",
    "Upgrade",
    "answers",
    "assess",
    "plan",
    "scope",
]

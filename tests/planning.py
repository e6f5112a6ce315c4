"""What the tests of plans share: a short trace, machines, and a plan made once."""

from dataclasses import replace
from functools import cache

from tidesim.hardware import load_profile
from tidesim.latency import needed_keys
from tidesim.model_spec import load_model_spec
from tidesim.optimize import in_memory
from tidesim.plan import (
    Goal,
    Method,
    plan,
)
from tidesim.plan.rows import row_of
from tidesim.trace.io import load_trace

A100, RTX4090 = "a100-40gb-pcie4-xeon48", "rtx4090-24gb-pcie4-desktop"
SPARK, THOR = "dgx-spark-128gb-unified", "jetson-agx-thor-128gb-unified"
TIGHT = 3_450_000_000
COMMAND = ("plan", "--model", "llada2.0-mini", "--memory", "3.45", "--workers", 1)
MINI = load_model_spec("llada2.0-mini")
METHOD = Method(sizes=MINI, formulation="uniform")
KEYS = needed_keys("tidesim", pinned=True)


@cache
def requests():
    """Two training requests and two held-out ones."""
    whole = load_trace("tide-tiny-mixed")
    numbers = {"train": [], "heldout": []}
    for info in whole.meta.requests:
        numbers[info.split].append(info.request)
    return in_memory(whole.only((*numbers["train"][:2], *numbers["heldout"][:2])))


@cache
def made():
    """Three machines with little memory and with all, one of them in want of numbers."""
    machines = [load_profile(name) for name in (A100, RTX4090, THOR)]
    return plan(requests(), machines, memory_bytes=(TIGHT, None), method=METHOD, workers=1)


def with_goal(found, **goal):
    """Return a plan as it had been with another goal."""
    wanted = Goal(**goal)
    rows = tuple(row_of(row.found, wanted, found.assumed) for row in found.rows)
    return replace(found, rows=rows, goal=wanted)

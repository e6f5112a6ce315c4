"""The discrete-event method: every pass runs on SimPy lanes, as its engine executes it."""

from collections.abc import Iterable

import numpy as np
import simpy

from tidesim.placement import PassPlacement
from tidesim.records import Record, Records, Resource
from tidesim.simulate.execute import Machine, Overlapped, Serial, Steps
from tidesim.simulate.lanes import HostMemory, Lane, SharedLane, SteadyLane
from tidesim.simulate.operations import Timing
from tidesim.simulate.prices import Prices


def time_passes(
    placements: Iterable[PassPlacement], prices: Prices, *, keep_records: bool = False
) -> Timing:
    """Run placed passes one after another and say how long everything took.

    Parameters
    ----------
    placements : iterable of PassPlacement
        Consumed as simulated time goes on.
    prices : Prices
    keep_records : bool
        Also return a record per operation.
    """
    env = simpy.Environment(initial_time=0.0)
    records: list[Record] | None = [] if keep_records else None
    lanes = _overlapping(env, prices, records) if prices.engine.overlap else _steady(env, records)
    machine = Machine(env, lanes)
    pass_s: list[float] = []
    env.run(until=env.process(_run(placements, machine, prices, pass_s)))
    return Timing(
        pass_s=np.array(pass_s, dtype=np.float64),
        seconds=float(env.now),
        busy_s={resource: lane.busy_s for resource, lane in lanes.items()},
        waited_s=machine.waited_s,
        records=None if records is None else Records(records),
    )


def _steady(env: simpy.Environment, records: list[Record] | None) -> dict[Resource, Lane]:
    return {resource: SteadyLane(env, resource, records=records) for resource in Resource}


def _overlapping(
    env: simpy.Environment, prices: Prices, records: list[Record] | None
) -> dict[Resource, Lane]:
    """Return lanes of which CPU experts and copies slow one another down."""
    cpu, h2d, d2h = (
        SharedLane(env, resource, records=records)
        for resource in (Resource.CPU, Resource.H2D, Resource.D2H)
    )
    HostMemory(cpu, h2d, d2h, contention=prices.latency.contention, duplex=prices.latency.duplex)
    return _steady(env, records) | {Resource.CPU: cpu, Resource.H2D: h2d, Resource.D2H: d2h}


def _run(
    placements: Iterable[PassPlacement], machine: Machine, prices: Prices, pass_s: list[float]
) -> Steps:
    execute = Overlapped(machine, prices) if prices.engine.overlap else Serial(machine, prices)
    for placement in placements:
        start_s = machine.env.now
        yield from execute.run(placement)
        pass_s.append(machine.env.now - start_s)

"""What lanes work on, and what comes of a run: operations, waits, timing."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tidesim.placement import FloatArray
from tidesim.records import Counter, Records, Resource


class Part(NamedTuple):
    """A stretch of an operation that gets its own record; `seconds` are those at full rate.

    `experts` are computed or copied by it, `num_bytes` copied.
    """

    label: str
    seconds: float
    layer: int
    experts: int = 0
    num_bytes: int = 0


class Operation(NamedTuple):
    """Parts that one lane works through without a gap, and their seconds in all."""

    parts: tuple[Part, ...]
    seconds: float


def operation(parts: Iterable[Part]) -> Operation:
    """Return the operation of some parts; those that take no time are dropped."""
    lasting = tuple(part for part in parts if part.seconds > 0)
    return Operation(lasting, sum(part.seconds for part in lasting))


def single(
    label: str, seconds: float, layer: int, *, experts: int = 0, num_bytes: int = 0
) -> Operation:
    """Return the operation of one part."""
    return Operation((Part(label, seconds, layer, experts, num_bytes),), seconds)


def unnamed(seconds: float) -> Operation:
    """Return an operation that nobody records."""
    return Operation((), seconds)


class Place(NamedTuple):
    """The pass an operation belongs to."""

    request: int
    block: int
    step: int


class Critical(NamedTuple):
    """A place on the critical path: a resource and what it does there."""

    resource: Resource
    operation: str


# What a layer may spend its time on once its experts are placed.
SHARED = Critical(Resource.GPU, "shared")
GPU_EXPERTS = Critical(Resource.GPU, "experts")
WRITE_BACKS = Critical(Resource.D2H, "write backs")
COPIES = Critical(Resource.H2D, "expert copies")
HIDDEN = Critical(Resource.D2H, "hidden")
CPU_EXPERTS = Critical(Resource.CPU, "experts")
RESULT = Critical(Resource.H2D, "result")
IDS = Critical(Resource.D2H, "ids")


class Wait(StrEnum):
    """What the run waits for, second by second; the shares add up to the makespan.

    ``gpu``: GPU operations. ``link``: promotions, streamed experts and write-backs that nothing
    hides. ``cpu``: missed experts on the CPU with their transfers, beyond what the GPU does
    meanwhile. ``host``: expert ids to the host, syncs and decisions.
    """

    GPU = "gpu"
    LINK = "link"
    CPU = "cpu"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the passes of a run took and what they waited for.

    Attributes
    ----------
    pass_s : [passes] float64
        Seconds of every pass.
    seconds : float
        The makespan.
    busy_s : dict
        Seconds each resource worked.
    waited_s : dict
        Seconds the run waited, by what for.
    critical_s : dict
        Seconds of the critical path by resource and operation; they add up to the makespan.
    records : Records or None
    counters : tuple of Counter
        Hit rate, residents and bytes queued for the link over time, where records are kept.
    """

    pass_s: FloatArray
    seconds: float
    busy_s: dict[Resource, float]
    waited_s: dict[Wait, float]
    critical_s: dict[Critical, float]
    records: Records | None = None
    counters: tuple[Counter, ...] = ()

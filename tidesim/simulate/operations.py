"""What lanes work on, and what comes of a run: operations, waits, timing."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tidesim.placement import FloatArray
from tidesim.records import Records, Resource


class Part(NamedTuple):
    """A stretch of an operation that gets its own record; `seconds` are those at full rate."""

    label: str
    seconds: float
    layer: int


class Operation(NamedTuple):
    """Parts that one lane works through without a gap, and their seconds in all."""

    parts: tuple[Part, ...]
    seconds: float


def operation(parts: Iterable[Part]) -> Operation:
    """Return the operation of some parts; those that take no time are dropped."""
    lasting = tuple(part for part in parts if part.seconds > 0)
    return Operation(lasting, sum(part.seconds for part in lasting))


def single(label: str, seconds: float, layer: int) -> Operation:
    """Return the operation of one part."""
    return Operation((Part(label, seconds, layer),), seconds)


class Place(NamedTuple):
    """The pass an operation belongs to."""

    request: int
    block: int
    step: int


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
    records : Records or None
    """

    pass_s: FloatArray
    seconds: float
    busy_s: dict[Resource, float]
    waited_s: dict[Wait, float]
    records: Records | None

"""Records: what every resource did when, in the schema that simulator and runtime share."""

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    import pandas as pd


class Resource(StrEnum):
    """What an operation occupies; each does one operation at a time."""

    GPU = "gpu"  # one in-order stream
    H2D = "h2d"  # host-to-GPU copies
    D2H = "d2h"  # GPU-to-host copies
    CPU = "cpu"  # the expert workers, together
    HOST = "host"  # the thread that drives the GPU


_ORDER = {resource: place for place, resource in enumerate(Resource)}


class Record(NamedTuple):
    """One operation on one resource.

    `block` and `step` are those of the pass; `layer` is the layer's index in the model, dense
    layers included, and -1 for what happens after the last layer. `experts` counts the experts
    that were computed or copied, `num_bytes` the bytes that were copied; 0 for other operations.
    """

    resource: Resource
    start_s: float
    end_s: float
    label: str
    request: int
    block: int
    step: int
    layer: int
    experts: int = 0
    num_bytes: int = 0


class Counter(NamedTuple):
    """The value of a quantity from a time on: hit rate, residents, bytes queued for the link."""

    name: str
    time_s: float
    value: float


class Records(Sequence[Record]):
    """Operations in order of start; equal starts stand in the order of `Resource`, then of end.

    Parameters
    ----------
    rows : iterable of Record
        In any order; rows that tie in start, resource and end keep theirs.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: Iterable[Record]) -> None:
        self._rows = tuple(
            sorted(rows, key=lambda row: (row.start_s, _ORDER[row.resource], row.end_s))
        )

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        return Records(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        return f"<Records: {len(self)} operations, {makespan_s(self):.6g} s>"

    def to_frame(self) -> "pd.DataFrame":
        """Return the operations as a pandas table, one column per field of `Record`."""
        import pandas as pd  # noqa: PLC0415 - a heavy import, paid only where a table is wanted

        frame = pd.DataFrame(list(self._rows), columns=list(Record._fields))
        frame["resource"] = frame["resource"].astype(str)
        return frame


def operation_of(label: str) -> str:
    """Return what a label says without numbers: ``expert 5 gpu`` becomes ``expert gpu``."""
    return " ".join(word for word in label.split() if not word.strip("()").isdigit())


def makespan_s(records: Records) -> float:
    """Return the seconds from time 0 to the end of the last operation."""
    return max((row.end_s for row in records), default=0.0)


def busy_s(records: Records) -> dict[Resource, float]:
    """Return the seconds each resource worked, every resource present.

    Examples
    --------
    >>> copied = Record(Resource.H2D, 0.0, 2.0, "promote", request=0, block=0, step=0, layer=1)
    >>> busy_s(Records([copied]))[Resource.H2D]
    2.0
    """
    busy = dict.fromkeys(Resource, 0.0)
    for row in records:
        busy[row.resource] += row.end_s - row.start_s
    return busy


def check(records: Records, *, tolerance_s: float = 0.0) -> None:
    """Check that operations are finite, end after they start and never share a resource.

    Parameters
    ----------
    records : Records
    tolerance_s : float
        Seconds two operations of a resource may overlap: 0 for simulated records, the clock's
        resolution for measured ones.

    Raises
    ------
    AssertionError
        An operation breaks a rule; the message names it.
    """
    last: dict[Resource, Record] = {}
    for row in records:
        if not (math.isfinite(row.start_s) and math.isfinite(row.end_s)):
            raise AssertionError(f"{row}: start and end must be finite")
        if row.start_s < 0 or row.end_s < row.start_s:
            raise AssertionError(f"{row}: must start at 0 or later and end after its start")
        before = last.get(row.resource)
        if before is not None and row.start_s < before.end_s - tolerance_s:
            raise AssertionError(f"{row.resource}: {row} starts before {before} has ended")
        last[row.resource] = row

"""The critical path: the chain of operations, each starting when the last ends, that takes longest.

Every operation of a simulated run starts at time 0 or at the very moment another ends, so the
path runs from 0 to the end without a gap and its durations add up to the makespan. To make the run
shorter, something on the path must become shorter.

Where operations end together the records cannot say which of them the next one waited for; the
path then follows the chain that worked longer, and of chains that worked equally long either one.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import networkx as nx

from tidesim.records import Record, Records, Resource, busy_s, makespan_s, operation_of

_ULPS = 4  # an end may be computed in another order than the start that follows it
_SOURCE = -1


def resolution_s(records: Records) -> float:
    """Return the seconds within which two times of a simulated run are the same."""
    return _ULPS * math.ulp(makespan_s(records))


def critical_path(records: Records, *, tolerance_s: float | None = None) -> tuple[Record, ...]:
    """Return the operations of the critical path in order of start.

    A graph has a node per operation and an edge from a to b where b starts when a ends; the path
    is the longest by duration that ends with the run. An operation that starts when none ends, as
    after an idle gap of measured records, follows the one that ended last.

    Parameters
    ----------
    records : Records
        A whole run, or passes that follow one another.
    tolerance_s : float, optional
        Seconds by which an end and a start may differ and still be one moment: for measured
        records the clock's resolution, well below the shortest operation. By default
        `resolution_s`.

    Examples
    --------
    >>> from tidesim.records import Record, Resource
    >>> where = {"request": 0, "block": 0, "step": 0, "layer": 1}
    >>> copied = Record(Resource.H2D, 0.0, 2.0, "promote", **where)
    >>> attended = Record(Resource.GPU, 0.0, 1.0, "attention", **where)
    >>> computed = Record(Resource.GPU, 2.0, 3.0, "experts", **where)
    >>> [row.label for row in critical_path(Records([copied, attended, computed]))]
    ['promote', 'experts']
    """
    tolerance = resolution_s(records) if tolerance_s is None else tolerance_s
    rows = sorted(records, key=lambda row: (row.start_s, row.end_s))
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(
        (before, after, rows[after].end_s - rows[after].start_s)
        for before, after in _edges(rows, tolerance)
    )
    end_s = makespan_s(records)
    ending = [place for place, row in enumerate(rows) if row.end_s >= end_s - tolerance]
    decisive = 1.0 + sum(busy_s(records).values())  # longer than any path that ends too early
    graph.add_weighted_edges_from((place, len(rows), decisive) for place in ending)
    return tuple(rows[node] for node in nx.dag_longest_path(graph)[1:-1])


def _edges(rows: list[Record], tolerance_s: float) -> Iterator[tuple[int, int]]:
    """Yield (operation, operation that follows it) as places in `rows`, which stand by start.

    An edge leads to a later place only, so that there is no circle. The first operations follow
    `_SOURCE`.
    """
    by_end = sorted(range(len(rows)), key=lambda place: rows[place].end_s)
    ends_s = [rows[place].end_s for place in by_end]
    for after, row in enumerate(rows):
        first = bisect_left(ends_s, row.start_s - tolerance_s)
        last = bisect_right(ends_s, row.start_s + tolerance_s)
        together = [before for before in by_end[first:last] if before < after]
        if not together:  # an idle gap, or the start
            together = [by_end[first - 1]] if first else [_SOURCE]
        for before in together:
            yield before, after


def path_seconds(path: Iterable[Record]) -> dict[tuple[Resource, str], float]:
    """Return the seconds of a path by resource and operation, most first.

    Operations are named by `records.operation_of`: all promotions together, for instance.
    """
    seconds: dict[tuple[Resource, str], float] = {}
    for row in path:
        key = (row.resource, operation_of(row.label))
        seconds[key] = seconds.get(key, 0.0) + row.end_s - row.start_s
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))

"""Extract: the passes of a timeline that a page draws, and the critical path among them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from tidesim.critical_path import critical_path, path_seconds, resolution_s
from tidesim.errors import SettingError
from tidesim.records import Counter, Record, Resource
from tidesim.timeline import Timeline

STEPS = 3  # drawn where nobody says which
OPERATIONS = 3000  # about as many bars as a browser draws without delay

Steps = tuple[int, int | None]


class Pass(NamedTuple):
    """Names a pass; a prefill has block -1, a commit the step after the last denoise step."""

    request: int
    block: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Operations of some passes of a block.

    Attributes
    ----------
    request, block : int
    steps : tuple of int
        The steps whose passes were chosen.
    records : tuple of Record
        Operations of these passes.
    beside : tuple of Record
        Operations of other passes that run meanwhile.
    path : tuple of Record
        Operations of the run's critical path that run meanwhile.
    counters : tuple of Counter
        Values that hold meanwhile.
    start_s, end_s : float
        From the first of `records` to the start of the next pass, or to the last end.
    shortened : bool
        More steps were wanted than `OPERATIONS` allows.
    """

    request: int
    block: int
    steps: tuple[int, ...]
    records: tuple[Record, ...]
    beside: tuple[Record, ...]
    path: tuple[Record, ...]
    counters: tuple[Counter, ...]
    start_s: float
    end_s: float
    shortened: bool

    @property
    def seconds(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s

    @property
    def label(self) -> str:
        """Request, block and steps in words."""
        if self.block < 0:
            return f"request {self.request}, prefill"
        first, last = self.steps[0], self.steps[-1]
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        return f"request {self.request}, block {self.block}, {steps}"

    def path_rows(self) -> Iterator[tuple[str, str, float, float]]:
        """Yield resource, operation, seconds and share of the time on the path, most first.

        Time that nothing accounts for, as between measured operations, comes last as ``idle``.
        """
        seconds = self.path_seconds()
        for (resource, operation), spent_s in seconds.items():
            yield str(resource), operation, spent_s, spent_s / (self.seconds or 1.0)
        idle_s = self.seconds - sum(seconds.values())
        if idle_s > 1e-6 * self.seconds:
            yield "–", "idle", idle_s, idle_s / self.seconds

    def path_seconds(self) -> dict[tuple[Resource, str], float]:
        """Return the seconds of `path` between start and end by resource and operation."""
        return path_seconds(
            row._replace(start_s=max(row.start_s, self.start_s), end_s=min(row.end_s, self.end_s))
            for row in self.path
        )

    def path_shares(self) -> dict[Resource, float]:
        """Return each resource's share of the time, most first; what is left is idle."""
        shares: dict[Resource, float] = {}
        for (resource, _), seconds in self.path_seconds().items():
            shares[resource] = shares.get(resource, 0.0) + seconds / (self.seconds or 1.0)
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def to_json(self) -> dict[str, Any]:
        """Return the passes, their seconds and their critical path; keys stable."""
        keys = ("resource", "operation", "seconds", "share")
        return {
            "request": self.request,
            "block": self.block,
            "steps": list(self.steps),
            "operations": len(self.records),
            "seconds": self.seconds,
            "critical_path": [dict(zip(keys, row, strict=True)) for row in self.path_rows()],
        }


def extract(
    timeline: Timeline,
    name: str,
    *,
    request: int | None = None,
    block: int | None = None,
    steps: Steps | None = None,
) -> Extract:
    """Choose passes of a timeline.

    Parameters
    ----------
    timeline : Timeline
    name : str
        What messages call it.
    request : int, optional
        By default the first that has a decoded block.
    block : int, optional
        By default the first decoded one; -1 is the prefill.
    steps : (int, int or None), optional
        Half open, as a range of Python; None leaves the end open. By default the first `STEPS`
        steps, or as many as hold `OPERATIONS` operations.

    Raises
    ------
    SettingError
        No operation is in the range; says what the timeline holds.
    """
    counts = _count(timeline, name)
    request, block = _choose(counts, name, request, block)
    present = {p.step: number for p, number in counts.items() if p[:2] == (request, block)}
    shortened = False
    if steps is None:
        chosen, shortened = _first_steps(present)
    else:
        last = max(present) + 1 if steps[1] is None else steps[1]
        chosen = tuple(step for step in sorted(present) if steps[0] <= step < last)
    if not chosen:
        raise SettingError(
            f"{name}: request {request}, block {block} has steps {_span(present)} and none in the "
            "range; choose some of these"
        )
    passes = {Pass(request, block, step) for step in chosen}
    return _cut(timeline, passes, steps=chosen, shortened=shortened)


def _pass(row: Record) -> Pass:
    return Pass(row.request, row.block, row.step)


def _count(timeline: Timeline, name: str) -> dict[Pass, int]:
    counts: dict[Pass, int] = {}
    for row in timeline.records:
        counts[_pass(row)] = counts.get(_pass(row), 0) + 1
    if not counts:
        raise SettingError(f"{name}: holds no operation, so there is nothing to draw")
    return counts


def _choose(
    counts: dict[Pass, int], name: str, request: int | None, block: int | None
) -> tuple[int, int]:
    """Return request and block: those asked for, or the first that decode something."""
    fitting = [p for p in counts if request in {None, p.request}]
    if not fitting:
        held = _span({p.request for p in counts})
        raise SettingError(f"{name}: has no request {request}; it holds requests {held}")
    wanted = [p for p in fitting if block in {None, p.block}]
    if not wanted:
        held = _span({p.block for p in fitting})
        of = "" if request is None else f"request {request} of "
        raise SettingError(f"{name}: has no block {block}; {of}it holds blocks {held}")
    first = min(wanted, key=lambda p: (p.block < 0, p))
    return first.request, first.block


def _first_steps(present: dict[int, int]) -> tuple[tuple[int, ...], bool]:
    """Return the first steps that are not too many operations, at least one; whether some lack."""
    wanted = sorted(present)[:STEPS]
    totals = accumulate(present[step] for step in wanted)
    fitting = sum(total <= OPERATIONS for total in totals)
    return tuple(wanted[: max(1, fitting)]), fitting < len(wanted)


def _cut(
    timeline: Timeline, passes: set[Pass], *, steps: tuple[int, ...], shortened: bool
) -> Extract:
    rows = tuple(row for row in timeline.records if _pass(row) in passes)
    start_s, end_s = rows[0].start_s, _end_s(timeline, passes)
    margin = resolution_s(timeline.records)
    meanwhile = [
        row
        for row in timeline.records
        if row.start_s < end_s - margin and row.end_s > start_s + margin
    ]
    path = set(critical_path(timeline.records))
    return Extract(
        request=rows[0].request,
        block=rows[0].block,
        steps=steps,
        records=rows,
        beside=tuple(row for row in meanwhile if _pass(row) not in passes),
        path=tuple(row for row in meanwhile if row in path),
        counters=tuple(_counters(timeline, start_s, end_s)),
        start_s=start_s,
        end_s=end_s,
        shortened=shortened,
    )


def _end_s(timeline: Timeline, passes: set[Pass]) -> float:
    """Return when the next pass starts, or the last end: promotions may run on beside it."""
    first_s: dict[Pass, float] = {}
    for row in timeline.records:
        first_s.setdefault(_pass(row), row.start_s)
    last_s = max(first_s[one] for one in passes)
    later = [time for one, time in first_s.items() if one not in passes and time > last_s]
    ends = [row.end_s for row in timeline.records if _pass(row) in passes]
    return min([max(ends), *later])


def _counters(timeline: Timeline, start_s: float, end_s: float) -> Iterator[Counter]:
    """Yield counters between two times, and before them the value that held at the start."""
    held: dict[str, Counter] = {}
    inside = []
    for counter in timeline.counters:
        if counter.time_s <= start_s:
            held[counter.name] = counter._replace(time_s=start_s)
        elif counter.time_s < end_s:
            inside.append(counter)
    yield from held.values()
    yield from inside


def _span(numbers: "set[int] | dict[int, int]") -> str:
    """Write whole numbers: ``0 to 7`` where none is missing, else all or the first of them."""
    known = sorted(numbers)
    if known == list(range(known[0], known[-1] + 1)):
        return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return ", ".join(map(str, known[:12])) + (", …" if len(known) > 12 else "")

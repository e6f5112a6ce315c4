"""Timeline: records and counters as a file that ui.perfetto.dev opens and tidesim reads back.

The file (``tidesim-timeline`` 1) is JSON in the Chrome Trace Event Format: one track per resource,
one slice per operation, one counter track per counter. Viewers draw whole nanoseconds; every
event also holds its exact seconds, so that reading a file gives the records that were written.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.records import Counter, Record, Records, Resource
from tidesim.resources import write_text
from tidesim.strict import Strict, sentence

FORMAT = "tidesim-timeline"
VERSION = 1
LAST_S = 9e6  # 104 days; a double holds every nanosecond before

Value = str | int | float | bool | None
Metadata = Mapping[str, Value]

_NOTHING: Metadata = MappingProxyType({})
_PROCESS = 1
_TRACKS = {resource: number for number, resource in enumerate(Resource, start=1)}


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What a timeline file holds.

    Attributes
    ----------
    records : Records
    counters : tuple of Counter
        In order of time.
    metadata : mapping of str to text, number, bool or None
        Where the records come from: policy, hardware, digests.
    """

    records: Records
    counters: tuple[Counter, ...] = ()
    metadata: Metadata = field(default_factory=dict)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def to_perfetto(
    records: Records, counters: Sequence[Counter] = (), *, metadata: Metadata = _NOTHING
) -> dict[str, Any]:
    """Return records and counters as a JSON-ready trace in the Chrome Trace Event Format.

    A function, not a method of `Records`: records lie below the file formats and know none.

    Parameters
    ----------
    records : Records
        Operations of one resource must not overlap; Perfetto drops a slice that does.
    counters : sequence of Counter
        In any order; equal times keep theirs.
    metadata : mapping of str to text, number, bool or None
        Stands in ``otherData`` beside format and version.

    Raises
    ------
    SettingError
        A time is negative, not finite or past `LAST_S`; a number is not finite; metadata names
        ``format`` or ``version``.
    """
    timed = [*map(_slice_event, records), *map(_counter_event, counters)]
    timed.sort(key=lambda event: event["ts"])
    return {
        "displayTimeUnit": "ms",
        "otherData": {"format": FORMAT, "version": VERSION, **_checked(metadata)},
        "traceEvents": [*_track_events(), *timed],
    }


def save_timeline(
    path: str | Path,
    records: Records,
    *,
    counters: Sequence[Counter] = (),
    metadata: Metadata = _NOTHING,
) -> None:
    """Write a timeline file whole or not at all, one event a line; see `to_perfetto`.

    Raises
    ------
    OutputError
        The file cannot be written.
    SettingError
        As `to_perfetto`.

    Examples
    --------
    >>> from tidesim.records import Record, Resource
    >>> copied = Record(Resource.H2D, 0.0, 2e-3, "promote", request=0, block=0, step=0, layer=1)
    >>> save_timeline("run.json", Records([copied]))
    >>> load_timeline("run.json").records
    <Records: 1 operations, 0.002 s>
    """
    trace = to_perfetto(records, counters, metadata=metadata)
    events = ",\n".join(json.dumps(event, allow_nan=False) for event in trace.pop("traceEvents"))
    head = json.dumps(trace, allow_nan=False).removesuffix("}")
    write_text(path, f'{head}, "traceEvents": [\n{events}\n]}}\n')


def _track_events() -> Iterator[dict[str, Any]]:
    """Yield the events that name the process and its tracks, and put the tracks in order."""
    yield _track_event("process_name", 0, {"name": "tidesim"})
    for resource, track in _TRACKS.items():
        yield _track_event("thread_name", track, {"name": str(resource)})
        yield _track_event("thread_sort_index", track, {"sort_index": track})


def _track_event(name: str, track: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": _PROCESS, "tid": track, "args": args}


def _slice_event(row: Record) -> dict[str, Any]:
    start_ns, end_ns = _nanoseconds(row.start_s), _nanoseconds(row.end_s)
    if row.end_s < row.start_s:
        raise SettingError(f"{row} ends before it starts; repair what recorded it")
    return {
        "ph": "X",
        "name": row.label,
        "cat": str(row.resource),
        "pid": _PROCESS,
        "tid": _TRACKS[row.resource],
        "ts": _microseconds(start_ns),
        "dur": _microseconds(end_ns - start_ns),
        "start_s": row.start_s,
        "end_s": row.end_s,
        "args": {
            "request": row.request,
            "block": row.block,
            "step": row.step,
            "layer": row.layer,
            "experts": row.experts,
            "bytes": row.num_bytes,
        },
    }


def _counter_event(counter: Counter) -> dict[str, Any]:
    if not math.isfinite(counter.value):
        raise SettingError(f"{counter} is not finite; repair what counted it")
    return {
        "ph": "C",
        "name": counter.name,
        "pid": _PROCESS,
        "ts": _microseconds(_nanoseconds(counter.time_s)),
        "time_s": counter.time_s,
        "args": {"value": counter.value},
    }


def _nanoseconds(seconds: float) -> int:
    if not 0 <= seconds <= LAST_S:
        raise SettingError(
            f"a time of {seconds} s cannot be drawn: times are 0 to {LAST_S:g} s (104 days); "
            "look for absurd rates or seconds in the profile and its overrides"
        )
    return round(seconds * 1e9)


def _microseconds(nanoseconds: int) -> float:
    """Return microseconds that give these nanoseconds, whether a reader truncates or rounds."""
    microseconds = nanoseconds / 1000
    exact = int(microseconds * 1000.0) == nanoseconds
    return microseconds if exact else math.nextafter(microseconds, math.inf)


def _checked(metadata: Metadata) -> Metadata:
    for name, value in metadata.items():
        if name in {"format", "version"}:
            raise SettingError(f"metadata {name} is taken by the format itself; rename it")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"metadata {name} is {value} but must be finite; leave it out")
    return metadata


# ── reading ──────────────────────────────────────────────────────────────────────────────────────

_Time = Annotated[float, Field(ge=0, le=LAST_S)]
_MicroTime = Annotated[float, Field(ge=0, le=1.001e6 * LAST_S)]
_Count = Annotated[int, Field(ge=0)]


class _Place(Strict):
    request: int
    block: int
    step: int
    layer: int
    experts: _Count
    bytes: _Count


class _Slice(Strict):
    ph: Literal["X"]
    name: str
    cat: Resource
    pid: int
    tid: int
    ts: _MicroTime
    dur: _MicroTime
    start_s: _Time
    end_s: _Time
    args: _Place

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.end_s < self.start_s:
            raise ValueError(f"end_s must be at least start_s = {self.start_s}")
        if not _close(self.ts, self.start_s) or not _close(self.ts + self.dur, self.end_s):
            raise ValueError("ts and dur must be the microseconds of start_s and end_s")
        return self

    def record(self) -> Record:
        place = self.args
        return Record(
            self.cat,
            self.start_s,
            self.end_s,
            self.name,
            place.request,
            place.block,
            place.step,
            place.layer,
            place.experts,
            place.bytes,
        )


class _Number(Strict):
    value: float


class _Sample(Strict):
    ph: Literal["C"]
    name: str
    pid: int
    ts: _MicroTime
    time_s: _Time
    args: _Number

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _close(self.ts, self.time_s):
            raise ValueError("ts must be the microseconds of time_s")
        return self


class _Track(Strict):
    ph: Literal["M"]
    name: Literal["process_name", "thread_name", "thread_sort_index"]
    pid: int
    tid: int
    args: dict[Literal["name", "sort_index"], str | int]


class _Head(Strict):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value] = Field(init=False)

    format: Literal["tidesim-timeline"]
    version: int = Field(ge=VERSION, le=VERSION)


class _File(Strict):
    displayTimeUnit: Literal["ms"]  # noqa: N815 (the trace format's name)
    otherData: _Head  # noqa: N815
    traceEvents: Annotated[  # noqa: N815
        tuple[Annotated[_Slice | _Sample | _Track, Field(discriminator="ph")], ...],
        Field(strict=False),
    ]


def load_timeline(path: str | Path) -> Timeline:
    """Read and check a timeline file.

    Raises
    ------
    NotFoundError
        No such file.
    FormatError
        Not a timeline of this format and version; names file, key, value, rule and repair.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import simulate
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> settings = {"policy": "lru", "budget": 16, "keep_records": True}
    >>> result = simulate(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> save_timeline("run.json", result.records, metadata=result.timeline_metadata())
    >>> load_timeline("run.json").metadata["policy"]
    'lru'
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such timeline file; give one that tidesim simulate --timeline wrote"
        ) from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    try:
        parsed = _File.model_validate_json(content)
    except ValidationError as error:
        raise FormatError(f"{path}: {_sentence(error)}") from None
    return _timeline(parsed)


def _timeline(parsed: _File) -> Timeline:
    counted = (event for event in parsed.traceEvents if isinstance(event, _Sample))
    return Timeline(
        records=Records(e.record() for e in parsed.traceEvents if isinstance(e, _Slice)),
        counters=tuple(Counter(e.name, e.time_s, e.args.value) for e in counted),
        metadata=dict(parsed.otherData.__pydantic_extra__),
    )


def _close(microseconds: float, seconds: float) -> bool:
    """Say whether a viewer draws a time where it is, to 2 ns."""
    return math.isclose(microseconds, 1e6 * seconds, rel_tol=1e-12, abs_tol=2e-3)


_REPAIR = "give a file that tidesim simulate --timeline wrote"
_WORDS = {
    "json_invalid": "must be JSON ({error})",
    "enum": "must be one of the resources " + ", ".join(Resource),
    "union_tag_not_found": "must have ph, one of X, C, M",
    "union_tag_invalid": "must have ph, one of {expected_tags}",
}


def _sentence(error: ValidationError) -> str:
    """Say the first error; in a file of another kind that is always that it is none of ours."""
    for each in error.errors(include_url=False):
        if each["loc"] in {("otherData",), ("otherData", "format")}:
            return f'is no timeline (its otherData.format is not "{FORMAT}"); {_REPAIR}'
    return sentence(error, _File, form=f"{FORMAT} {VERSION}", repair=_repair, words=_WORDS)


def _repair(_: ErrorDetails, path: tuple[str, ...]) -> str:
    if path == ("otherData", "version"):
        return f"this tidesim reads version {VERSION}"
    return f"repair it or {_REPAIR}" if path else _REPAIR

"""What ui.perfetto.dev needs of a trace in the Chrome Trace Event Format."""

import json
import math
from itertools import pairwise

KEYS = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "C": {"name", "pid", "ts", "args"},
}


def read_trace(text):
    """Parse a trace as a viewer does: NaN and Infinity are no JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def check_trace(trace):
    """Assert that a trace shows what it should: raises AssertionError that says what is wrong."""
    assert isinstance(trace.get("traceEvents"), list), "no list of traceEvents"
    assert trace.get("displayTimeUnit") in {"ms", "ns"}, "displayTimeUnit is neither ms nor ns"
    by_phase = {phase: [] for phase in KEYS}
    for event in trace["traceEvents"]:
        assert event.get("ph") in KEYS, f"unknown phase: {event}"
        missing = KEYS[event["ph"]] - event.keys()
        assert not missing, f"{sorted(missing)} missing: {event}"
        by_phase[event["ph"]].append(event)
    _check_times(by_phase["X"] + by_phase["C"])
    timed = [event["ts"] for event in trace["traceEvents"] if event["ph"] != "M"]
    assert timed == sorted(timed), "events are not sorted by time"
    _check_tracks(by_phase["M"], by_phase["X"])
    _check_slices(by_phase["X"])
    _check_counters(by_phase["C"])


def _check_times(events):
    for event in events:
        for key in ("ts", "dur"):
            value = event.get(key, 0)
            time = type(value) in (int, float) and 0 <= value < math.inf
            assert time, f"{key} is no time: {event}"


def _check_tracks(metadata, slices):
    """Every slice lies on a named track that has a place; names and places are not shared."""
    assert any(event["name"] == "process_name" for event in metadata), "the process has no name"
    names = [event for event in metadata if event["name"] == "thread_name"]
    places = [event for event in metadata if event["name"] == "thread_sort_index"]
    for events, key in ((names, "name"), (places, "sort_index")):
        tracks = {(event["pid"], event["tid"]) for event in events}
        values = {event["args"].get(key) for event in events}
        assert None not in values, f"a track has no {key}"
        assert len(values) == len(events) == len(tracks), f"tracks share a {key}"
        for event in slices:
            assert (event["pid"], event["tid"]) in tracks, f"no {key} for the track of {event}"


def _check_slices(slices):
    """Slices of a track follow one another, in the nanoseconds a viewer keeps."""
    tracks = {}
    for event in slices:
        assert event["name"], f"a slice has no name: {event}"
        for cast in (int, round):  # older viewers truncate, newer ones round
            ns = [cast(event[key] * 1000.0) for key in ("ts", "dur")]
            tracks.setdefault((event["pid"], event["tid"], cast), []).append((*ns, event))
    for rows in tracks.values():
        for (start, dur, _), (next_start, _, event) in pairwise(rows):
            assert start + dur <= next_start, f"overlaps the slice before it: {event}"


def _check_counters(events):
    for event in events:
        assert event["args"], f"a counter has no value: {event}"
        for value in event["args"].values():
            number = type(value) in (int, float) and math.isfinite(value)
            assert number, f"a counter is no finite number: {event}"

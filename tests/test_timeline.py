"""Timeline files: what a viewer needs, every second kept, and one sentence per broken file."""

import copy
import json
import math

import pytest
from builders import case_of, small_spec, steps_trace
from hypothesis import given
from hypothesis import strategies as st
from perfetto import check_trace, read_trace

from tidesim.engines import TIDE_REFERENCE, TIDESIM
from tidesim.errors import FormatError, NotFoundError, OutputError, SettingError
from tidesim.records import Counter, Record, Records, Resource
from tidesim.simulate import run
from tidesim.timeline import LAST_S, load_timeline, save_timeline, to_perfetto

ROWS = Records(
    [
        Record(Resource.GPU, 0.0, 0.5, "attention", 0, 1, 2, 3),
        Record(Resource.H2D, 0.5, 1.25, "promote 7", 0, 1, 2, 3, 1, 4096),
        Record(Resource.GPU, 1.25, 1.5, "experts gpu (2)", 0, 1, 2, 3, 2),
    ]
)
COUNTERS = (Counter("hit rate", 0.25, 0.5), Counter("residents", 0.0, 16.0))
METADATA = {"policy": "tide", "interval": 4, "rate": 0.5, "bound": False, "schedule": None}


@st.composite
def runs_of_records(draw):
    """Draw records whose operations do not overlap on a resource, from 1e-12 s to days."""
    times = st.floats(0, LAST_S / 1000) | st.floats(0, 1e-6) | st.sampled_from([0.0, 5e-10, 1e-9])
    rows = []
    for resource in Resource:
        instants = sorted(draw(st.lists(times, max_size=8)))
        for start_s, end_s in zip(instants[::2], instants[1::2], strict=False):
            numbers = draw(st.tuples(*[st.integers(-1, 99)] * 4))
            moved = draw(st.tuples(st.integers(0, 256), st.integers(0, 2**70)))
            label = draw(st.text(min_size=1, max_size=6))
            rows.append(Record(resource, start_s, end_s, label, *numbers, *moved))
    return Records(rows)


counters_of = st.lists(
    st.builds(
        Counter, st.text(min_size=1, max_size=4), st.floats(0, 1e4), st.floats(-1e300, 1e300)
    ),
    max_size=9,
)
values = st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=5)
metadata_of = st.dictionaries(st.text().filter(lambda k: k not in {"format", "version"}), values)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def test_a_trace_has_a_track_per_resource_and_a_slice_per_operation():
    trace = to_perfetto(ROWS, COUNTERS, metadata=METADATA)

    check_trace(trace)
    assert trace["otherData"] == {"format": "tidesim-timeline", "version": 1} | METADATA
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["gpu", "h2d", "d2h", "cpu", "host"]
    timed = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    assert [(e["ph"], e["name"], e["ts"]) for e in timed] == [
        ("X", "attention", 0),
        ("C", "residents", 0),
        ("C", "hit rate", 250_000),
        ("X", "promote 7", 500_000),
        ("X", "experts gpu (2)", 1_250_000),
    ]
    assert timed[3] == {
        "ph": "X",
        "name": "promote 7",
        "cat": "h2d",
        "pid": 1,
        "tid": 2,
        "ts": 500_000,
        "dur": 750_000,
        "start_s": 0.5,
        "end_s": 1.25,
        "args": {"request": 0, "block": 1, "step": 2, "layer": 3, "experts": 1, "bytes": 4096},
    }


@given(runs_of_records(), counters_of, metadata_of)
def test_a_file_gives_back_what_was_written_to_the_last_bit(tmp_path_factory, rows, counts, meta):
    path = tmp_path_factory.mktemp("t") / "timeline.json"

    save_timeline(path, rows, counters=counts, metadata=meta)
    again = load_timeline(path)

    check_trace(read_trace(path.read_text()))
    assert again.records == rows
    assert again.counters == tuple(sorted(counts, key=lambda one: round(1e9 * one.time_s)))
    assert again.metadata == meta


@pytest.mark.parametrize("engine", [TIDESIM, TIDE_REFERENCE])
def test_the_records_of_a_simulated_run_make_a_valid_file(tmp_path, engine):
    case = case_of(steps_trace(small_spec(), [[[0, 2, 1]], [[1, 1, 1]]]), engine=engine)
    records = run(case, keep_records=True).records

    save_timeline(tmp_path / "t.json", records)

    check_trace(read_trace((tmp_path / "t.json").read_text()))
    assert load_timeline(tmp_path / "t.json").records == records


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (ROWS[0]._replace(start_s=-1.0), "times are 0 to 9e\\+06 s"),
        (ROWS[0]._replace(end_s=math.nan), "a time of nan s"),
        (ROWS[0]._replace(end_s=2 * LAST_S), "104 days"),
        (ROWS[0]._replace(start_s=0.75), "ends before it starts"),
    ],
)
def test_records_that_cannot_be_drawn_are_refused(tmp_path, row, rule):
    with pytest.raises(SettingError, match=rule):
        save_timeline(tmp_path / "t.json", Records([row]))

    assert list(tmp_path.iterdir()) == []


def test_counters_and_metadata_that_are_no_json_are_refused():
    with pytest.raises(SettingError, match="not finite"):
        to_perfetto(ROWS, [Counter("hit rate", 0.0, math.nan)])
    with pytest.raises(SettingError, match="metadata rate is inf"):
        to_perfetto(ROWS, metadata={"rate": math.inf})
    with pytest.raises(SettingError, match="metadata format is taken"):
        to_perfetto(ROWS, metadata={"format": "other"})


def test_a_file_into_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_timeline(tmp_path / "none" / "t.json", ROWS)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────

FIRST = 11  # the first slice's place, after the process and two events for each of five tracks


def _set(*keys, to):
    def change(trace):
        for key in keys[:-1]:
            trace = trace[key]
        trace[keys[-1]] = to

    return change


def _drop(*keys):
    def change(trace):
        for key in keys[:-1]:
            trace = trace[key]
        del trace[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop("otherData"), "is no timeline"),
        (_set("otherData", "format", to="tidesim-schedule"), "is no timeline"),
        (_set("otherData", "version", to=2), "version is 2 but must be .* reads version 1"),
        (_set("otherData", "policy", to=[1]), "policy"),
        (_drop("traceEvents"), "traceEvents is missing"),
        (_drop("traceEvents", FIRST, "start_s"), r"traceEvents\.11\.X\.start_s is missing"),
        (_drop("traceEvents", FIRST, "args", "layer"), r"layer is missing"),
        (_drop("traceEvents", FIRST, "ph"), "must have ph, one of X, C, M"),
        (_set("traceEvents", FIRST, "ph", to="B"), "must have ph"),
        (_set("traceEvents", FIRST, "cat", to="tpu"), "'tpu' but must be one of .* gpu, h2d"),
        (_set("traceEvents", FIRST, "start_s", to=-1.0), "-1.0 but must be at least 0"),
        (_set("traceEvents", FIRST, "ts", to=-1.0), "-1.0 but must be at least 0"),
        (_set("traceEvents", FIRST, "ts", to=7.0), "must be the microseconds of start_s"),
        (_set("traceEvents", FIRST, "end_s", to=math.nan), "must be"),
        (_set("traceEvents", FIRST, "end_s", to=math.inf), "must be"),
        (_set("traceEvents", FIRST, "end_s", to="1"), "'1' but must be a number"),
        (_set("traceEvents", FIRST, "args", "bytes", to=-4), "-4 but must be at least 0"),
        (_set("traceEvents", FIRST, "args", "step", to=0.5), "must be a whole number"),
        (_set("traceEvents", FIRST, "colour", to="red"), "colour = 'red' is no key"),
        (_set("traceEvents", FIRST + 1, "args", "value", to=None), "must be a number"),
        (_set("traceEvents", FIRST + 1, "time_s", to=1.0), "must be the microseconds of time_s"),
        (_set("traceEvents", FIRST + 3, "start_s", to=1.5), "end_s must be at least start_s"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, change, said):
    trace = to_perfetto(ROWS, COUNTERS, metadata=METADATA)
    change(trace)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(trace))

    with pytest.raises(FormatError, match=said) as refused:
        load_timeline(path)

    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b"[1, 2]", b"3", b'{"a": 1}'])
def test_any_other_file_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)

    with pytest.raises(FormatError, match="tidesim simulate --timeline") as refused:
        load_timeline(path)

    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="no such timeline file"):
        load_timeline(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot be read"):
        load_timeline(tmp_path)


# ── the validator ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("traceEvents", to={}), "no list"),
        (_drop("displayTimeUnit"), "displayTimeUnit"),
        (_set("traceEvents", FIRST, "ph", to="Q"), "unknown phase"),
        (_drop("traceEvents", FIRST, "dur"), r"\['dur'\] missing"),
        (_drop("traceEvents", FIRST + 1, "ts"), r"\['ts'\] missing"),
        (_drop("traceEvents", 1, "args"), r"\['args'\] missing"),
        (_set("traceEvents", FIRST, "ts", to=-1), "ts is no time"),
        (_set("traceEvents", FIRST, "dur", to=math.nan), "dur is no time"),
        (_set("traceEvents", FIRST, "dur", to=True), "dur is no time"),
        (_set("traceEvents", FIRST, "ts", to="0"), "ts is no time"),
        (_set("traceEvents", FIRST, "ts", to=9e6), "not sorted"),
        (_set("traceEvents", FIRST, "dur", to=1_300_000), "overlaps the slice before"),
        (_set("traceEvents", FIRST, "dur", to=1_250_000.001), "overlaps the slice before"),
        (_set("traceEvents", FIRST, "dur", to=9_000_000), "overlaps the slice before"),
        (_set("traceEvents", FIRST, "name", to=""), "no name"),
        (_set("traceEvents", FIRST, "tid", to=9), "no name for the track"),
        (_drop("traceEvents", 0), "process has no name"),
        (_drop("traceEvents", 1), "no name for the track"),
        (_drop("traceEvents", 2), "no sort_index for the track"),
        (_set("traceEvents", 3, "args", "name", to="gpu"), "share a name"),
        (_set("traceEvents", 3, "args", to={}), "a track has no name"),
        (_set("traceEvents", FIRST + 1, "args", to={}), "no value"),
        (_set("traceEvents", FIRST + 1, "args", "value", to="1"), "no finite number"),
        (_set("traceEvents", FIRST + 1, "args", "value", to=math.inf), "no finite number"),
    ],
)
def test_the_validator_finds_what_is_broken(change, said):
    trace = copy.deepcopy(to_perfetto(ROWS, COUNTERS, metadata=METADATA))
    check_trace(trace)
    change(trace)

    with pytest.raises(AssertionError, match=said):
        check_trace(trace)


def test_the_validator_refuses_what_is_no_json():
    with pytest.raises(AssertionError, match="NaN is not JSON"):
        read_trace('{"a": NaN}')

"""Measured runs as files: nothing is lost, and a wrong file is refused in one sentence."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidesim.errors import FormatError, NotFoundError, OutputError
from tidesim.measured import Counters, MeasuredRun
from tidesim.measured_io import load_measured, save_measured
from tidesim.records import Record, Records, Resource
from tidesim.resources import find
from tidesim.trace.passes import Kind, PassKey

KEYS = (PassKey(3, -1, -1, 0, Kind.PREFILL), PassKey(3, 1, 0, 0, Kind.DENOISE))
RECORDS = Records(
    [
        Record(Resource.H2D, 0.1, 0.3, "promote 5", 3, 1, 0, 2, 1, 512),
        Record(Resource.GPU, 0.0, 1 / 3, "attention é", 3, -1, 0, 0),
    ]
)
RUN = MeasuredRun(
    policy="tide",
    engine="tidesim",
    promotion="background",
    interval=None,
    budgets=(4, 8),
    backend="cpu",
    machine="some processor, 2 cores",
    sizes="routing of a at the sizes of b",
    provenance="captured",
    keys=KEYS,
    pass_s=np.array([[0.1, 1 / 3], [0.2, 0.25]]),
    counters=Counters(
        hits=10,
        misses=2,
        promotions=3,
        evictions=1,
        streams=0,
        refreshes=2,
        h2d_bytes_by_purpose={"promotions": 2**40},
        d2h_bytes_by_purpose={"ids": 0},
    ),
    records=RECORDS,
    trace_sha256="ab" * 32,
)


@pytest.mark.parametrize("records", [RECORDS, Records([]), None])
def test_what_was_measured_is_read_back(tmp_path, records):
    run = replace(RUN, records=records)
    save_measured(run, tmp_path / "m.parquet")

    read = load_measured(tmp_path / "m.parquet")

    assert replace(read, pass_s=run.pass_s) == run
    assert np.array_equal(read.pass_s, run.pass_s)


def changed(tmp_path, *, metadata=None, column=None):
    """Return a file like RUN's, but with other metadata, or another value in a row."""
    path = tmp_path / "m.parquet"
    save_measured(RUN, path)
    table = pq.read_table(path)
    if column:
        name, values = column
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), pa.array(values))
    entries = {k.decode(): v.decode() for k, v in table.schema.metadata.items()} | (metadata or {})
    pq.write_table(table.replace_schema_metadata(entries), path)
    return path


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"format": "tidesim-trace"}, "format is tidesim-trace, not tidesim-measured"),
        ({"version": "2"}, "version is 2, not 1"),
        ({"run": "{"}, "must hold metadata key run as JSON"),
        ({"run": "{}"}, "policy is missing"),
    ],
)
def test_other_metadata_is_refused(tmp_path, metadata, named):
    with pytest.raises(FormatError, match=named) as caught:
        load_measured(changed(tmp_path, metadata=metadata))
    assert "m.parquet: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"hits":10', '"hits":-1', r"counters.hits is -1 but must be at least 0"),
        ('"hits":10', '"hits":10,"more":1', r"counters.more = 1 is no key of tidesim-measured 1"),
        ("[0.2,0.25]", "[0.2]", "1 pass_s in a repeat but 2 keys"),
        ("[0.2,0.25]", "[0.2,-0.25]", r"pass_s.1.1 is -0.25"),
        ('"prefill"', '"warmup"', r"keys.0.4 is 'warmup'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, named):
    save_measured(RUN, tmp_path / "m.parquet")
    stored = pq.read_schema(tmp_path / "m.parquet").metadata[b"run"].decode()
    assert old in stored

    with pytest.raises(FormatError, match=named):
        load_measured(changed(tmp_path, metadata={"run": stored.replace(old, new)}))


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (("resource", ["gpu", "disk"]), "row 1: resource is 'disk'"),
        (("end_s", [1.0, 0.05]), "row 1: starts at 0.1 s and ends at 0.05 s"),
        (("start_s", [float("nan"), 0.0]), "row 0: starts at nan s"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, column, named):
    with pytest.raises(FormatError, match=named):
        load_measured(changed(tmp_path, column=column))


def test_a_small_file_that_would_swell_when_read_is_refused(tmp_path):
    save_measured(RUN, tmp_path / "m.parquet")
    table = pq.ParquetFile(tmp_path / "m.parquet").read().slice(0, 1)
    pq.write_table(pa.concat_tables([table] * 50_000), tmp_path / "m.parquet")

    with pytest.raises(FormatError, match=r"claims 50000 rows in \d+ bytes"):
        load_measured(tmp_path / "m.parquet")


def test_other_files_and_places_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match="no such measured run"):
        load_measured(tmp_path / "none.parquet")
    with pytest.raises(FormatError, match="not tidesim-measured"):
        load_measured(find("traces", "tide-tiny-mixed"))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(FormatError, match="truncated, damaged or no measured run"):
        load_measured(tmp_path / "t.parquet")
    with pytest.raises(OutputError, match="cannot be written"):
        save_measured(RUN, tmp_path / "none" / "m.parquet")

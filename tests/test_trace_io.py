"""Traces on disk come back equal and stream in row groups."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from strategies import (
    PASS_ARRAYS,
    PASS_FIELDS,
    same_pass,
    sample_pass,
    sample_trace,
    small_model,
    traces,
)

from tidesim.resources import sha256_file
from tidesim.trace import io
from tidesim.trace.info import trace_info
from tidesim.trace.io import check_trace, load_trace, save_trace
from tidesim.trace.passes import Kind, Pass, RequestInfo, Trace, TraceMeta


@pytest.fixture
def trace():
    return sample_trace()


@pytest.fixture
def file(trace, tmp_path):
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    return path


class TestRoundTrip:
    @given(traces())
    @settings(max_examples=40, deadline=None)
    def test_a_saved_trace_loads_equal(self, tmp_path_factory, drawn):
        """Every pass, the metadata and the digest come back."""
        path = tmp_path_factory.mktemp("t") / "t.parquet"
        save_trace(drawn, path)
        loaded = load_trace(path)

        assert loaded.meta == drawn.meta
        assert loaded.sha256 == sha256_file(path)
        assert all(same_pass(a, b) for a, b in zip(loaded, drawn, strict=True))
        assert all(same_pass(a, b) for a, b in zip(loaded, drawn, strict=True))

    def test_the_same_trace_gives_the_same_bytes(self, trace, file, tmp_path):
        """Saving twice, once from the file, changes nothing."""
        save_trace(load_trace(file), tmp_path / "again.parquet")

        assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()

    def test_the_file_has_the_columns_of_the_format(self, file):
        """Names and types are those of DESIGN section 4, compressed with zstd."""
        parquet = pq.ParquetFile(file)
        types = {f.name: str(f.type) for f in parquet.schema_arrow}

        assert types == {
            "request": "int32",
            "block": "int32",
            "step": "int16",
            "kind": "dictionary<values=string, indices=int8, ordered=0>",
            "tokens": "int32",
            "context": "int32",
            "masked": "list<element: bool not null>",
            "committed": "list<element: bool not null>",
            "experts": "list<element: uint16 not null>",
            "counts": "list<element: uint32 not null>",
        }
        assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
        assert parquet.metadata.metadata[b"format"] == b"tidesim-trace"
        assert parquet.metadata.metadata[b"version"] == b"1"

    def test_splits_of_a_loaded_trace_keep_their_requests(self, file):
        """A filtered trace still reads the file, and checks it whole."""
        heldout = load_trace(file).split("heldout")

        assert [p.request for p in heldout] == [3] * 5

    def test_neither_writing_nor_reading_imports_pandas(self, file):
        """pyarrow's own array conversions would, and that takes most of a second."""
        code = (
            "import sys; from tidesim.trace.io import load_trace, save_trace; "
            "save_trace(load_trace(sys.argv[1]), sys.argv[1]); assert 'pandas' not in sys.modules"
        )
        root = Path(__file__).parents[1]
        subprocess.run([sys.executable, "-c", code, file], check=True, cwd=root)


class TestStreaming:
    def test_memory_holds_one_row_group(self, tmp_path, monkeypatch):
        """A long trace is written and read in row groups, whatever its length."""
        monkeypatch.setattr(io, "GROUP_ROWS", 8)
        rng = np.random.default_rng(0)
        wide = small_model().model_copy(update={"num_experts": 4096})
        rows = [sample_pass(rng, wide, 0, -1, 0, Kind.PREFILL, histogram=True)]
        one = sample_pass(rng, wide, 0, 0, 0, Kind.DENOISE, histogram=True)
        names = [name for name in (*PASS_FIELDS, *PASS_ARRAYS) if name not in {"step", "context"}]
        common = {name: getattr(one, name) for name in names}
        rows += [Pass(**common, step=step, context=0) for step in range(300)]
        info = RequestInfo(request=0, prompt_tokens=0, generated_tokens=0)
        meta = TraceMeta(model=wide, provenance="synthetic", requests=(info,))
        whole_bytes = sum(p.histogram.nbytes for p in rows)
        before = pa.total_allocated_bytes()

        save_trace(Trace(meta, rows), tmp_path / "t.parquet")
        held = [pa.total_allocated_bytes() - before for _ in load_trace(tmp_path / "t.parquet")]

        assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 38
        assert len(held) == 301
        assert max(held) < whole_bytes / 8

    def test_large_passes_close_a_row_group_early(self, trace, tmp_path, monkeypatch):
        """A row group ends at so many bytes as well as at so many rows."""
        monkeypatch.setattr(io, "GROUP_BYTES", 1)
        save_trace(trace, tmp_path / "t.parquet")

        assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 10
        assert all(map(same_pass, load_trace(tmp_path / "t.parquet"), trace))

    def test_leaving_an_iteration_early_does_no_harm(self, file):
        """Another iteration starts from the first pass."""
        loaded = load_trace(file)

        assert same_pass(next(iter(loaded)), next(iter(loaded)))


class TestInfo:
    @given(traces())
    @settings(max_examples=20, deadline=None)
    def test_info_counts_what_the_trace_holds(self, drawn):
        """Checked against plain loops."""
        info, rows = trace_info(drawn), list(drawn)
        denoise = [p for p in rows if p.kind is Kind.DENOISE]
        blocks = {(p.request, p.block) for p in denoise}

        assert info["passes"]["total"] == len(rows)
        assert [info["passes"][kind] for kind in Kind] == [
            sum(p.kind is kind for p in rows) for kind in Kind
        ]
        assert info["blocks"] == len(blocks)
        assert info["steps_per_block"] == pytest.approx(len(denoise) / len(blocks))
        assert info["tokens"]["computed"] == sum(p.tokens for p in rows)
        assert sum(info["requests"]["split"].values()) == info["requests"]["total"]
        assert sum(info["requests"]["prompt_kind"].values()) == len(drawn.meta.requests)
        assert info["routing"]["counts"] == sum(p.experts is None for p in rows)
        assert info["settings"] == drawn.meta.settings

    def test_info_names_the_file_it_was_read_from(self, file):
        """By digest."""
        assert trace_info(check_trace(file))["sha256"] == sha256_file(file)

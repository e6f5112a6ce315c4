"""The writer refuses what the reader would, and leaves nothing behind."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from strategies import (
    PASS_ARRAYS,
    PASS_FIELDS,
    model_specs,
    passes,
    rngs,
    same_pass,
    sample_trace,
)

from tidesim.errors import FormatError, OutputError
from tidesim.trace.io import TraceWriter, load_trace, save_trace
from tidesim.trace.passes import Pass, RequestInfo, TraceMeta

L, K, E, T = 2, 2, 8, 4  # sizes of the sample trace


@pytest.fixture
def trace():
    return sample_trace()


@pytest.fixture
def file(trace, tmp_path):
    path = tmp_path / "t.parquet"
    save_trace(trace, path)
    return path


class TestWriter:
    def write(self, trace, path, rows, *, meta=None):
        with TraceWriter(path, model=trace.meta.model) as writer:
            for row in rows:
                writer.append(row)
            writer.close(meta or trace.meta)

    def test_a_bad_pass_is_refused_and_nothing_stays(self, trace, tmp_path):
        """The row is named and the folder is as before."""
        rows = list(trace)

        with pytest.raises(FormatError, match=r"t\.parquet: row 2 .*follows request 0"):
            self.write(trace, tmp_path / "t.parquet", [rows[0], rows[1], rows[1]])
        assert not list(tmp_path.iterdir())

    def test_an_interrupted_capture_leaves_the_older_file(self, trace, file):
        """An error of the caller passes through unchanged."""

        def capture():
            with TraceWriter(file, model=trace.meta.model) as writer:
                writer.append(next(iter(trace)))
                raise ConnectionError("lost")  # an OSError, yet none of the disk's

        before = file.read_bytes()

        with pytest.raises(ConnectionError, match="lost"):
            capture()
        assert file.read_bytes() == before
        assert list(file.parent.iterdir()) == [file]

    def test_leaving_without_close_is_an_error(self, trace, tmp_path):
        """A trace without metadata is no trace."""
        with (
            pytest.raises(FormatError, match=r"close\(meta\) was never called"),
            TraceWriter(tmp_path / "t.parquet", model=trace.meta.model),
        ):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_trace_without_passes_is_refused(self, trace, tmp_path):
        """There is nothing to simulate in it."""
        with pytest.raises(FormatError, match="holds no passes"):
            self.write(trace, tmp_path / "t.parquet", [])
        assert not list(tmp_path.iterdir())

    def test_metadata_of_another_model_is_refused(self, trace, tmp_path):
        """Shapes would be read wrongly."""
        other = trace.meta.model.model_copy(update={"name": "other"})
        meta = trace.meta.model_copy(update={"model": other})

        with pytest.raises(FormatError, match="names model other, but the passes were written"):
            self.write(trace, tmp_path / "t.parquet", trace, meta=meta)
        assert not list(tmp_path.iterdir())

    def test_a_missing_folder_is_an_output_error(self, trace, tmp_path):
        """It is found before any work is done."""
        with pytest.raises(OutputError, match="cannot be written"):
            save_trace(trace, tmp_path / "none" / "t.parquet")

    def test_a_full_disk_is_an_output_error(self, trace, tmp_path, monkeypatch):
        """And leaves nothing behind."""

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
        with pytest.raises(OutputError, match="No space left on device"):
            save_trace(trace, tmp_path / "t.parquet")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"experts": np.zeros((L, T), np.uint16)}, r"experts has shape \[2, 4\], not \[moe_"),
            ({"experts": np.full((L, T, K), -1)}, "experts holds -1, outside the range of uint16"),
            ({"experts": np.zeros((L, T, K))}, "experts has type float64, not uint16"),
            ({"masked": np.zeros(T, np.int8)}, "masked has type int8, not bool"),
            ({"histogram": np.zeros((L, E), np.uint32)}, "both of experts and counts"),
        ],
    )
    def test_arrays_of_another_shape_or_type_are_refused(self, trace, tmp_path, change, message):
        """The message says which array and what it should be."""
        denoise = list(trace)[1]
        given = {name: getattr(denoise, name) for name in (*PASS_FIELDS, *PASS_ARRAYS)}

        with pytest.raises(FormatError, match=message):
            self.write(trace, tmp_path / "t.parquet", [Pass(**(given | change))])

    @given(model_specs().flatmap(lambda m: passes(m, form="experts").map(lambda p: (m, p))), rngs)
    @settings(max_examples=15, deadline=None)
    def test_arrays_may_be_wider_and_change_after_append(self, tmp_path_factory, drawn, rng):
        """The writer copies what it is given."""
        model, pass_ = drawn
        wide = pass_.experts.astype(np.int64)
        given = {name: getattr(pass_, name) for name in (*PASS_FIELDS, *PASS_ARRAYS)} | {
            "experts": wide
        }
        info = RequestInfo(request=pass_.request, prompt_tokens=0, generated_tokens=0)
        meta = TraceMeta(model=model, provenance="synthetic", requests=(info,))
        path = tmp_path_factory.mktemp("t") / "t.parquet"
        with TraceWriter(path, model=model) as writer:
            writer.append(Pass(**given))
            wide[:] = rng.integers(0, model.num_experts)
            writer.close(meta)

        assert same_pass(next(iter(load_trace(path))), pass_)

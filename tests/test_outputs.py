"""Whatever writes a file writes it whole or not at all: on a full disk, and beside other writers."""

import resource
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from builders import small_spec
from strategies import sample_trace
from test_measured_io import RUN
from test_schedule import made
from test_timeline import ROWS

from tidesim.errors import OutputError
from tidesim.hardware import load_profile
from tidesim.hardware_write import save_profile
from tidesim.measured_io import save_measured
from tidesim.report.html import write_report
from tidesim.resources import not_written, write_text
from tidesim.runtime.checkpoint import save_checkpoint
from tidesim.runtime.model import Transformer
from tidesim.schedule import save_schedule
from tidesim.timeline import save_timeline
from tidesim.trace.io import check_trace, save_trace

A100 = load_profile("a100-40gb-pcie4-xeon48")


def write_weights(path):
    """Write a checkpoint into the folder of a path, whose config is small enough for any disk."""
    with torch.device("cpu"):
        save_checkpoint(Transformer(small_spec(vocab_size=4096)), path.parent, dtype="float32")


WRITERS = {
    "trace.parquet": partial(save_trace, sample_trace()),
    "measured.parquet": partial(save_measured, RUN),
    "timeline.json": lambda path: save_timeline(path, ROWS),
    "profile.toml": partial(save_profile, A100),
    "schedule.json": partial(save_schedule, made()),
    "page.html": lambda path: write_report(path, title="t", sections=[], footer=[]),
    "model.safetensors": write_weights,
}


@contextmanager
def largest_file(num_bytes):
    """Let files of this process grow to so many bytes: further writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_an_older_file_stays_as_it_was(tmp_path, name):
    path = tmp_path / "a folder é" / name
    path.parent.mkdir()
    path.write_bytes(b"older")

    with (
        largest_file(1100),
        pytest.raises(OutputError, match=rf"{name}: .*(too large|full).*; free space there or"),
    ):
        WRITERS[name](path)

    assert path.read_bytes() == b"older"
    assert {item.name for item in path.parent.iterdir()} <= {name, "config.json"}


def test_no_space_left_is_repaired_by_space_and_missing_rights_are_not():
    full = not_written("a.json", OSError(28, "No space left on device"))
    closed = not_written("a.json", OSError(13, "Permission denied"))

    assert str(full).endswith(
        "(No space left on device); free space there or choose another folder"
    )
    assert "that you may write to" in str(closed)


def test_of_writers_at_once_one_wins_whole(tmp_path):
    path, texts = tmp_path / "s é.json", [letter * 200_000 for letter in "abcd"]
    write_text(path, texts[0])
    start = threading.Barrier(len(texts))

    def write(text):
        start.wait()
        for _ in range(25):
            write_text(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_text())
    for thread in threads:
        thread.join()

    assert seen | {path.read_text()} <= set(texts)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_of_traces_written_at_once_one_wins_whole(tmp_path):
    path, traces = tmp_path / "t.parquet", [sample_trace().only([number]) for number in (0, 3)]

    def write(trace):
        for _ in range(10):
            save_trace(trace, path)

    threads = [threading.Thread(target=write, args=(trace,)) for trace in traces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert check_trace(path).meta in [trace.meta for trace in traces]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]

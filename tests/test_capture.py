"""Capturing traces: every pass is recorded exactly as it ran."""

import re
from pathlib import Path

import numpy as np
import pytest
from builders import case_of
from safetensors import safe_open

from tidesim.engines import TIDE_REFERENCE
from tidesim.errors import OutputError
from tidesim.runtime.capture import capture
from tidesim.runtime.checkpoint import checkpoint_digest, load_model
from tidesim.runtime.decode import DecodeSettings
from tidesim.runtime.prompts import Prompt
from tidesim.simulate import run
from tidesim.trace.io import check_trace, load_trace
from tidesim.trace.passes import Kind, Window
from tidesim.trace.windows import windowed

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "golden.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def capture_golden(golden, out: Path, window: Window):
    ids = golden["generate.prompt"].tolist()
    settings = DecodeSettings(gen_length=96, threshold=0.06, mask_id=500, eos_id=501, window=window)
    prompts = [(Prompt(ids=tuple(ids), kind="golden", split="train"), ids)] * 2
    digest = checkpoint_digest(GOLDEN)
    return capture(load_model(GOLDEN), prompts, settings, out, checkpoint_sha256=digest)


@pytest.mark.parametrize("window", list(Window))
def test_captured_trace_rebuilds_the_published_full_window_counts(golden, tmp_path, window):
    capture_golden(golden, tmp_path / "t.parquet", window)
    trace = load_trace(tmp_path / "t.parquet").only([1])

    counts = np.stack([p.counts for p in windowed(trace, Window.FULL)])

    assert np.array_equal(golden["generate.window_counts"], counts)


@pytest.mark.parametrize("window", list(Window))
def test_from_the_captured_trace_alone_the_reference_engine_places_as_published(
    golden, tmp_path, window
):
    """Refreshes, promotions, demotions, tokens on either side and residents, in every run of it."""
    capture_golden(golden, tmp_path / "t.parquet", window)
    trace = load_trace(tmp_path / "t.parquet").only([1])
    runs = sorted({name.rpartition(".")[0] for name in golden if name.startswith("offload.")})

    assert len(runs) > 1
    for name in runs:
        budget, interval = (int(part) for part in re.findall(r"\d+", name))
        case = case_of(trace, engine=TIDE_REFERENCE, budget=budget, interval=interval)
        placed = list(case.placed())
        decisions = [one.decisions for one in placed]
        counted = {
            "refresh": [any(each.refresh for each in row) for row in decisions],
            "promotions": [[len(each.promote) for each in row] for row in decisions],
            "demotions": [[len(each.evict) for each in row] for row in decisions],
            "gpu_tokens": [one.gpu_tokens.sum(axis=1) for one in placed],
            "cpu_tokens": [one.cpu_tokens.sum(axis=1) for one in placed],
            "resident": [one.resident for one in placed],
        }
        for what, numbers in counted.items():
            assert np.array_equal(golden[f"{name}.{what}"], numbers), f"{name}.{what}"
        result = run(case)
        assert result.promotions == golden[f"{name}.promotions"].sum()
        assert result.hits == golden[f"{name}.gpu_tokens"].sum()
        assert result.misses == golden[f"{name}.cpu_tokens"].sum()


def test_captured_trace_keeps_the_experts_of_every_position(golden, tmp_path):
    capture_golden(golden, tmp_path / "t.parquet", Window.BLOCK)
    denoise = [p for p in check_trace(tmp_path / "t.parquet").only([0]) if p.kind is Kind.DENOISE]

    for row, expected in zip(denoise, golden["generate.block_topk_idx"], strict=True):
        assert np.array_equal(np.sort(expected, -1), np.sort(row.experts, -1))
    assert [int(p.masked.sum()) for p in denoise] == golden["generate.active_tokens"].tolist()


def test_metadata_says_where_the_trace_comes_from(golden, tmp_path):
    captured = capture_golden(golden, tmp_path / "t.parquet", Window.BLOCK)
    meta = load_trace(tmp_path / "t.parquet").meta

    assert meta.provenance == "captured"
    assert meta.checkpoint_sha256 == checkpoint_digest(GOLDEN)
    assert meta.settings["threshold"] == 0.06
    assert meta.requests == captured.requests
    assert [r.generated_tokens for r in meta.requests] == [96, 96]


def test_unwritable_folder_stops_before_anything_is_decoded(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("tidesim.runtime.capture.decode", None)
    with pytest.raises(OutputError, match="cannot be written"):
        capture_golden(golden, tmp_path / "none" / "t.parquet", Window.BLOCK)


def test_interrupted_capture_leaves_no_file(golden, tmp_path):
    ids = golden["generate.prompt"].tolist()

    def stop(request, event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(
            load_model(GOLDEN),
            [(Prompt(ids=(1,)), ids)],
            DecodeSettings(mask_id=500, eos_id=501, gen_length=32),
            tmp_path / "t.parquet",
            checkpoint_sha256="",
            observe=stop,
        )

    assert list(tmp_path.iterdir()) == []

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import small_spec

from tidesim.engines import ENGINES
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.hardware_write import save_profile
from tidesim.latency import Basis, Direction, Latency, needed_keys
from tidesim.model_spec import ModelSpec
from tidesim.records import Record, Resource
from tidesim.runtime.backends import CpuBackend
from tidesim.runtime.bench import Timing, even_routes, read_layer
from tidesim.runtime.measure import fewer_layers, measure

SPEC = small_spec(
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_experts=8,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    block_length=4,
    max_position_embeddings=128,
    dtype="float32",
)


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    threads = torch.get_num_threads()
    measured = measure(SPEC, CpuBackend(), seconds=2.0, name="box")
    assert torch.get_num_threads() == threads
    return measured


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_measured_profile_holds_all_that_an_engine_needs(
    profile: HardwareProfile, engine: str
) -> None:
    assert profile.missing(needed_keys(engine, pinned=ENGINES[engine].pinned)) == []
    assert Latency(profile, SPEC, engine=engine).contention.cpu_factor <= 1


def test_every_piece_stands_on_a_measured_curve(profile: HardwareProfile) -> None:
    latency = Latency(profile, SPEC, engine="tidesim")

    pieces = ("router", "shared", "dense_mlp", "combine", "head", "gpu_expert", "cpu_expert")
    assert all(latency.basis(name, 4) is Basis.CURVE for name in pieces)
    assert latency.basis("attention", 4, 8) is Basis.CURVE
    assert latency.basis("gpu_experts", 1, 4) is Basis.CURVE
    assert latency.basis("cpu_experts", 1, 4) is Basis.CURVE
    for name in ("h2d", "d2h", "h2d_pageable", "d2h_pageable"):
        assert latency.basis(f"copy.{name}", 1 << 20) is Basis.CURVE


def test_every_number_is_measured_and_says_how(profile: HardwareProfile, tmp_path: Path) -> None:
    save_profile(profile, tmp_path / "box.toml")

    again = load_profile(tmp_path / "box.toml")

    assert again.model_dump() == profile.model_dump()
    assert "Last-level cache" in again.machine.note
    assert "median of" in again.quantity("gpu.launch_s").source


def test_a_paced_link_is_as_slow_as_it_is_told() -> None:
    paced = measure(SPEC, CpuBackend(link_bytes_per_s=1e9), seconds=2.0)

    assert 0.5e9 < paced.value("link.h2d_bytes_per_s") <= 1.001e9
    assert Latency(paced, SPEC, engine="tidesim").copy_s(1 << 20, Direction.H2D, pinned=True) > 1e-3


@pytest.mark.parametrize(
    ("spec", "settings", "sentence"),
    [
        (SPEC, {"seconds": 0.1}, "seconds is 0.1 but must be between 1 and 300"),
        (SPEC, {"seconds": float("nan")}, "seconds is nan but must be"),
        (small_spec(first_k_dense_replace=1), {}, "has no mixture layers"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    spec: ModelSpec, settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(SettingError, match=sentence):
        measure(spec, CpuBackend(), **settings)


def test_large_models_are_measured_with_fewer_layers() -> None:
    one = SPEC.num_experts * SPEC.expert_bytes

    assert fewer_layers(SPEC, 10 * one) == SPEC
    assert [fewer_layers(SPEC, size).moe_layers for size in (2 * one, 2 * one - 1, 0)] == [2, 1, 1]


# ── reading records ──────────────────────────────────────────────────────────────────────────────


def row(resource: Resource, start: float, end: float, label: str) -> Record:
    return Record(resource, start, end, label, 0, 0, 0, 1)


def test_a_layer_is_read_by_label_and_by_what_lies_between() -> None:
    gpu, h2d, d2h = Resource.GPU, Resource.H2D, Resource.D2H
    rows = [
        row(gpu, 0, 10, "router"),
        row(d2h, 12, 13, "ids"),
        row(Resource.HOST, 13, 15, "sync"),
        row(Resource.HOST, 15, 20, "decide"),
        row(d2h, 22, 24, "hidden"),
        row(Resource.CPU, 27, 47, "experts cpu (3)"),
        row(h2d, 30, 32, "promote 4"),
        row(h2d, 33, 37, "promote 5"),
        row(h2d, 50, 51, "result"),
        row(gpu, 55, 60, "combine"),
    ]

    seconds = read_layer(rows)

    assert seconds["experts cpu"] == 20
    assert seconds["promote"] == 3
    assert seconds["gap"] == 1
    assert seconds["wait"] == 15 - 10 - 1
    assert seconds["chain"] == (55 - 20) - 2 - 20 - 1


def test_a_timing_is_a_median_with_its_spread() -> None:
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 100.0]) == (3.0, 2.0 / 3.0, 5)


def test_routes_are_even_and_filled_up() -> None:
    assert even_routes([4, 6, 7], 2, top_k=4, filler=1).tolist() == [[4, 6, 7, 4], [6, 7, 1, 1]]


# ── the command ──────────────────────────────────────────────────────────────────────────────────

MEASURE = ("hardware", "measure", "--model", "tide-tiny")


def test_a_folder_that_is_none_is_refused_before_anything_is_measured(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "cannot be written" in refused(*MEASURE, "--out", tmp_path / "none" / "box.toml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "a box é.toml"

    assert "finds no CUDA GPU here" in refused(*MEASURE, "--backend", "cuda", "--out", path)
    assert not path.exists()


def test_the_command_writes_a_profile_that_simulate_takes(
    ok: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "a box é.toml"

    said = ok(*MEASURE, "--out", path, "--seconds", 2)

    assert said["model"] == "tide-tiny"
    assert (said["measured"] > 30, said["datasheet"], said["estimated"]) == (True, 0, 0)
    run = ("simulate", "tide-tiny-mixed", "--policy", "tide", "--interval", 4, "--budget", 16)
    for engine in ENGINES:
        simulated = ok(*run, "--hardware", path, "--engine", engine)
        assert simulated["tokens_per_s"] > 0

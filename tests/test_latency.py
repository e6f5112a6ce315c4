from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies_hardware import ENGINES, profiles

from tidesim.errors import FormatError
from tidesim.gpu_work import (
    ATTENTION_KERNELS,
    HEAD_KERNELS,
    LOOPED_EXPERT_KERNELS,
    MLP_KERNELS,
    ROUTER_KERNELS,
)
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.hardware_schema import Curves
from tidesim.latency import Basis, Direction, Latency, needed_keys
from tidesim.model_spec import MODELS, ModelSpec

MINI = MODELS["llada2.0-mini"]
FLASH = MODELS["llada2.0-flash"]
EXPERT_BYTES = 6_291_456  # LLaDA2.0-mini: 3 × 2048 × 512 weights of 2 bytes

# Published: microseconds of one fused expert call at LLaDA2.0-mini's shape in bf16 by tokens, with
# balanced routing, that is 8 × tokens distinct experts until all 256 are. From ai-dynamo/
# aiconfigurator 095f58a5, moe_perf.parquet of vllm 0.24.0. With them, the fitted seconds per call
# and bytes per second of the same tables, and the achieved peak of the GPU.
PUBLISHED_US = {
    "h100": {1: 37.8, 2: 64.5, 4: 94.5, 8: 159.3, 16: 297.4, 32: 552.6, 64: 557.2, 128: 566.3},
    "h200": {1: 32.4, 2: 50.5, 4: 78.2, 8: 123.8, 16: 219.4, 32: 400.9, 64: 401.3, 128: 422.4},
    "l40s": {4: 294.5, 8: 570.0, 16: 1124.6, 32: 2223.6, 64: 2401.4},  # 1 and 2 sit in its L2
}
FITTED = {
    "h100": (26.3e-6, 3136e9, 797.5e12),
    "h200": (28.0e-6, 4541e9, 790.3e12),
    "l40s": (15.0e-6, 746e9, 269.2e12),
}


def machine(engine: dict[str, float] | None = None, **values: float) -> HardwareProfile:
    """Build a machine on which everything is free but what is named as ``section__key``."""
    free = {
        **dict.fromkeys(("gpu__flops_bf16", "cpu__flops_bf16"), 1e30),
        **dict.fromkeys(("gpu__memory_bytes_per_s", "cpu__expert_bytes_per_s"), 1e30),
        **dict.fromkeys(("link__h2d_bytes_per_s", "link__d2h_bytes_per_s"), 1e30),
        **dict.fromkeys(("gpu__launch_s", "gpu__fused_call_s", "link__latency_s"), 0.0),
    }
    costs = ("gpu_expert_call_s", "cpu_expert_call_s", "copy_call_s", "sync_s", "decide_s")
    data: dict[str, dict[str, object]] = {"machine": {"name": "hand"}}
    for key, value in (free | values).items():
        section, _, leaf = key.partition("__")
        data.setdefault(section, {})[leaf] = number(value)
    own = dict.fromkeys(costs, 0.0) | (engine or {})
    engines = {"hand": {key: number(value) for key, value in own.items()}}
    return HardwareProfile.from_dict(
        {"format": "tidesim-hardware", "version": 1, "engine": engines, **data}
    )


def number(value: float) -> dict[str, object]:
    return {"value": value, "source": "test", "kind": "estimated"}


def hand(engine: dict[str, float] | None = None, **values: float) -> Latency:
    return Latency(machine(engine, **values), MINI, engine="hand")


def balanced(tokens: int) -> np.ndarray:
    return np.bincount(np.arange(8 * tokens) % 256, minlength=256)


# ── published tables ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("gpu", "bound"), [("h100", 0.05), ("h200", 0.07), ("l40s", 0.09)])
def test_fused_experts_fit_published_tables(gpu: str, bound: float) -> None:
    call_s, rate, flops = FITTED[gpu]
    latency = hand(gpu__fused_call_s=call_s, gpu__memory_bytes_per_s=rate, gpu__flops_bf16=flops)

    errors = [
        abs(latency.gpu_experts_s(balanced(tokens)) * 1e6 / us - 1)
        for tokens, us in PUBLISHED_US[gpu].items()
    ]

    assert np.mean(errors) < bound


def test_the_bundled_h100_meets_the_published_call_of_one_block() -> None:
    latency = Latency(load_profile("h100-80gb-sxm-pcie5-xeon48"), MINI, engine="tidesim")

    assert latency.gpu_experts_s(balanced(32)) == pytest.approx(552.6e-6, rel=0.02)


# ── extremes against formulas by hand ────────────────────────────────────────────────────────────


def test_bandwidth_bound_experts_read_each_distinct_expert_once() -> None:
    latency = hand(gpu__memory_bytes_per_s=1e12)

    activations = 32 * 8 * (2 * 2048 + 6 * 512) * 2
    assert latency.gpu_experts_s(balanced(32)) == pytest.approx(
        (256 * EXPERT_BYTES + activations) / 1e12, rel=1e-6
    )


def test_compute_bound_experts_take_two_flops_per_weight_and_token() -> None:
    latency = hand(gpu__flops_bf16=1e12)

    assert latency.gpu_experts_s(balanced(4096)) == pytest.approx(
        4096 * 8 * 2 * 3 * 2048 * 512 / 1e12, rel=1e-6
    )


def test_launch_bound_pieces_count_their_kernels() -> None:
    latency = hand({"gpu_expert_call_s": 7e-6}, gpu__launch_s=1e-3, gpu__fused_call_s=2e-3)

    times = [
        latency.attention_s(32, 100),
        latency.dense_mlp_s(32),
        latency.shared_s(32),
        latency.router_s(32),
        latency.head_s(32),
        latency.gpu_expert_s(3),
        latency.gpu_experts_s(balanced(1)),
    ]

    kernels = [ATTENTION_KERNELS, MLP_KERNELS, MLP_KERNELS, ROUTER_KERNELS, HEAD_KERNELS]
    expected = [1e-3 * count for count in kernels]
    assert times == pytest.approx([*expected, 1e-3 * LOOPED_EXPERT_KERNELS + 7e-6, 2e-3], rel=1e-6)


def test_bandwidth_bound_attention_reads_weights_and_keys() -> None:
    latency = hand(gpu__memory_bytes_per_s=1e12)

    kv_bytes_of_a_layer = 2 * 4 * 128 * 2
    longer = latency.attention_s(1, 10_001) - latency.attention_s(1, 1)

    assert longer == pytest.approx(10_000 * kv_bytes_of_a_layer / 1e12, rel=1e-6)
    assert latency.attention_s(1, 0) == pytest.approx(MINI.attention_params * 2 / 1e12, rel=0.01)


def test_bandwidth_bound_head_reads_its_weights() -> None:
    latency = hand(gpu__memory_bytes_per_s=1e12)

    assert latency.head_s(1) == pytest.approx(157_184 * 2048 * 2 / 1e12, rel=0.01)


def test_cpu_experts_read_weights_once_then_compute() -> None:
    latency = hand(
        {"cpu_expert_call_s": 3e-6}, cpu__expert_bytes_per_s=1e11, cpu__flops_bf16=3.2e12
    )
    read_s = EXPERT_BYTES / 1e11

    assert latency.cpu_expert_s(1) == latency.cpu_expert_s(32) == pytest.approx(3e-6 + read_s)
    assert latency.cpu_expert_s(64) == pytest.approx(3e-6 + 2 * read_s)
    assert latency.cpu_experts_s(np.array([0, 1, 64, 0, 32])) == pytest.approx(3e-6 + 4 * read_s)


def test_an_engine_with_slower_cpu_kernels_takes_their_share_of_the_rates() -> None:
    rates = {"cpu__expert_bytes_per_s": 1e11, "cpu__flops_bf16": 3.2e12}
    slow = hand({"cpu_rate_factor": 0.5}, **rates)

    for tokens in (1, 64):
        assert slow.cpu_expert_s(tokens) == pytest.approx(2 * hand(**rates).cpu_expert_s(tokens))


def test_an_expert_stays_with_one_of_several_workers() -> None:
    """Two workers at half the rate each: even sharing, but one expert alone takes twice as long."""
    rates = {"cpu__expert_bytes_per_s": 1e11, "cpu__flops_bf16": 3.2e12}
    one, two = hand(**rates), hand({"cpu_workers": 2}, **rates)
    read_s = EXPERT_BYTES / 1e11

    assert two.cpu_expert_s(1) == pytest.approx(2 * one.cpu_expert_s(1))
    for counts in ([1, 1], [1, 1, 1], [64, 32, 32]):
        assert two.cpu_experts_s(np.array(counts)) == pytest.approx(
            one.cpu_experts_s(np.array(counts))
        )
    assert two.cpu_experts_s(np.array([96, 1])) == pytest.approx(2 * 3 * read_s)


@pytest.mark.parametrize("direction", list(Direction))
def test_a_copy_costs_its_engine_the_link_and_its_bytes(direction: Direction) -> None:
    rates = {"link__h2d_bytes_per_s": 1e9, "link__d2h_bytes_per_s": 2e9}
    pageable = {"link__h2d_pageable_bytes_per_s": 1e8, "link__d2h_pageable_bytes_per_s": 2e8}
    latency = hand({"copy_call_s": 5e-6}, link__latency_s=1e-6, **rates, **pageable)
    rate = 1e9 if direction is Direction.H2D else 2e9

    assert latency.copy_s(1000, direction, pinned=True) == pytest.approx(6e-6 + 1000 / rate)
    assert latency.copy_s(1000, direction, pinned=False) == pytest.approx(6e-6 + 10_000 / rate)
    assert latency.expert_copy_s(3, direction, pinned=True) == pytest.approx(
        3 * 6e-6 + EXPERT_BYTES / rate
    )


def test_nothing_to_do_takes_no_time() -> None:
    latency = hand({"cpu_expert_call_s": 1.0, "gpu_expert_call_s": 1.0}, gpu__fused_call_s=1.0)
    none = np.zeros(256, dtype=np.int64)

    times = [latency.gpu_experts_s(none), latency.cpu_experts_s(none), latency.gpu_expert_s(0)]

    assert times == [0.0, 0.0, 0.0]
    assert latency.cpu_expert_s(0) == 0.0


def test_a_model_without_shared_experts_spends_nothing_on_them() -> None:
    spec = MINI.model_copy(update={"num_shared_experts": 0})

    assert Latency(machine(gpu__launch_s=1.0), spec, engine="hand").shared_s(32) == 0.0


# ── properties ───────────────────────────────────────────────────────────────────────────────────

COUNTS = st.lists(st.integers(0, 300), min_size=1, max_size=64).map(np.array)


@given(profiles(), st.sampled_from(ENGINES), st.integers(1, 400), st.integers(0, 4000))
def test_pieces_grow_with_tokens_and_context(
    profile: HardwareProfile, engine: str, tokens: int, context: int
) -> None:
    latency = Latency(profile, FLASH, engine=engine)
    pieces = ("dense_mlp_s", "shared_s", "router_s", "combine_s", "head_s", "gpu_expert_s")

    for name in (*pieces, "cpu_expert_s"):
        assert 0 < getattr(latency, name)(tokens) <= getattr(latency, name)(tokens + 1)
    assert latency.attention_s(tokens, context) <= latency.attention_s(tokens + 1, context)
    assert latency.attention_s(tokens, context) <= latency.attention_s(tokens, context + 1)


@given(profiles(), st.sampled_from(ENGINES), COUNTS, st.data())
def test_experts_grow_with_tokens_and_experts_and_not_with_order(
    profile: HardwareProfile, engine: str, counts: np.ndarray, data: st.DataObject
) -> None:
    latency = Latency(profile, MINI, engine=engine)
    more = counts.copy()
    more[data.draw(st.integers(0, len(counts) - 1))] += data.draw(st.integers(1, 50))
    close = 1 + 1e-12

    for timed in (latency.gpu_experts_s, latency.cpu_experts_s):
        assert timed(counts) <= timed(more) * close
        assert timed(counts) == pytest.approx(timed(np.sort(counts)), rel=1e-12)


@given(profiles(), st.sampled_from(ENGINES), st.integers(0, 10**9), st.integers(0, 10**9))
def test_copies_grow_with_bytes(
    profile: HardwareProfile, engine: str, first: int, second: int
) -> None:
    latency = Latency(profile, MINI, engine=engine)
    small, large = sorted((first, second))

    for direction in Direction:
        for pinned in (True, False):
            assert latency.copy_s(small, direction, pinned=pinned) <= latency.copy_s(
                large, direction, pinned=pinned
            )


# ── what a profile must hold ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENGINES)
def test_needed_keys_are_what_a_run_asks_for(name: str) -> None:
    profile = load_profile("a100-40gb-pcie4-xeon48")

    assert profile.missing(needed_keys(name, pinned=True)) == []
    assert profile.missing(needed_keys(name, pinned=False)) == []
    assert "link.h2d_pageable_bytes_per_s" in needed_keys(name, pinned=False)
    assert "link.h2d_pageable_bytes_per_s" not in needed_keys(name, pinned=True)


def test_an_engine_the_profile_does_not_know_is_an_error() -> None:
    with pytest.raises(FormatError, match=r"engine\.warp\.gpu_expert_call_s is missing"):
        Latency(machine(), MINI, engine="warp")


def test_a_missing_rate_is_an_error_when_asked_for() -> None:
    with pytest.raises(FormatError, match=r"link\.h2d_pageable_bytes_per_s is missing"):
        hand().copy_s(1, Direction.H2D, pinned=False)
    with pytest.raises(FormatError, match=r"contention\.cpu_factor is missing"):
        _ = hand().contention


def test_shares_are_those_of_the_profile() -> None:
    profile = load_profile("rtx4090-24gb-pcie4-desktop")
    latency = Latency(profile, MINI, engine="tidesim")

    assert latency.contention.cpu_factor == 0.846
    assert latency.contention.h2d_factor == latency.contention.d2h_factor == 0.96
    assert latency.duplex.h2d_factor == 0.547


# ── measured curves ──────────────────────────────────────────────────────────────────────────────

CURVES = {
    "copy": {
        "h2d": {"bytes": [1000, 2000], "seconds": [1e-6, 3e-6], "source": "t", "kind": "measured"}
    },
    "gpu_experts": {
        "hidden_size": 2048,
        "moe_intermediate_size": 512,
        "dtype": "bfloat16",
        "tokens_per_expert": [1, 3],
        "experts": [10, 20, 40],
        "seconds": [1e-5, 2e-5, 4e-5, 3e-5, 4e-5, 6e-5],
        "source": "t",
        "kind": "measured",
    },
    "cpu_experts": {
        "hidden_size": 2048,
        "moe_intermediate_size": 512,
        "dtype": "bfloat16",
        "tokens_per_expert": [1, 3],
        "experts": [1, 2],
        "seconds": [1e-3, 2e-3, 3e-3, 4e-3],
        "source": "t",
        "kind": "measured",
    },
    "attention": {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "dtype": "bfloat16",
        "tokens": [32],
        "context": [0, 100],
        "seconds": [1e-4, 3e-4],
        "source": "t",
        "kind": "measured",
    },
}
RATES = {
    "gpu__memory_bytes_per_s": 1e12,
    "cpu__expert_bytes_per_s": 1e10,
    "cpu__flops_bf16": 1e11,
    "link__h2d_bytes_per_s": 1e9,
}


def curved(**values: float) -> HardwareProfile:
    data = machine({"copy_call_s": 1.0, "cpu_expert_call_s": 1.0}, **RATES, **values).model_dump(
        by_alias=True, exclude_none=True
    )
    return HardwareProfile.from_dict(data | {"curves": CURVES})


def test_a_curve_counts_at_and_between_its_points() -> None:
    latency = Latency(curved(), MINI, engine="hand")

    assert latency.copy_s(1500, Direction.H2D, pinned=True) == pytest.approx(1.0 + 2e-6)
    assert latency.gpu_call_s(20, 60) == pytest.approx(4e-5)
    assert latency.gpu_call_s(30, 60) == pytest.approx(4e-5)
    assert latency.attention_s(32, 50) == pytest.approx(2e-4)
    assert latency.cpu_experts_s(np.array([1, 3])) == pytest.approx(1.0 + 3e-3)
    assert latency.basis("gpu_experts", 2, 30) is Basis.CURVE


def test_a_batch_takes_less_attention_than_the_curve_says_of_one_request() -> None:
    """Curves are measured with one request, whose tokens attend to all keys."""
    slow = {"gpu__flops_bf16": 1e13}
    measured = Latency(curved(**slow), MINI, engine="hand")
    formula = Latency(machine(**RATES, **slow), MINI, engine="hand")

    one, two = (measured.attention_s(32, 100, requests=requests) for requests in (1, 2))

    alone_s, apart_s = (formula.attention_s(32, 100, requests=requests) for requests in (1, 2))
    assert one == pytest.approx(3e-4)
    assert two == pytest.approx(3e-4 * apart_s / alone_s)
    assert two < one


def token_curve(name: str, seconds: list[float]) -> dict[str, object]:
    """Build a curve over 10 and 20 tokens at the shapes of LLaDA2.0-mini."""
    fields = Curves.model_fields[name].annotation
    sizes = {
        field: getattr(MINI, field)
        for field in get_args(fields)[0].model_fields
        if field in ModelSpec.model_fields
    }
    return {**sizes, "tokens": [10, 20], "seconds": seconds, "source": "t", "kind": "measured"}


def with_curve(name: str, **values: float) -> HardwareProfile:
    data = machine({"cpu_workers": 2}, **RATES, **values).model_dump(
        by_alias=True, exclude_none=True
    )
    return HardwareProfile.from_dict(data | {"curves": {name: token_curve(name, [1e-3, 3e-3])}})


PIECES = ("router", "shared", "dense_mlp", "combine", "head", "gpu_expert", "cpu_expert")


@pytest.mark.parametrize("name", PIECES)
def test_a_curve_over_tokens_alone_counts_for_its_piece(name: str) -> None:
    latency = Latency(with_curve(name), MINI, engine="hand")
    formula = Latency(machine({"cpu_workers": 2}, **RATES), MINI, engine="hand")
    timed, by_formula = (getattr(each, f"{name}_s") for each in (latency, formula))

    assert timed(15) == pytest.approx(2e-3)
    assert timed(40) == pytest.approx(3e-3 * by_formula(40) / by_formula(20))
    assert latency.basis(name, 15) is Basis.CURVE
    assert latency.basis(name, 40) is Basis.EXTRAPOLATED
    others = set(PIECES) - {name}
    assert all(latency.basis(other, 15) is Basis.FORMULA for other in others)


@pytest.mark.parametrize("name", PIECES)
def test_a_curve_over_tokens_does_not_count_for_another_shape(name: str) -> None:
    latency = Latency(with_curve(name), FLASH, engine="hand")

    expected = getattr(
        Latency(machine({"cpu_workers": 2}, **RATES), FLASH, engine="hand"), f"{name}_s"
    )
    assert latency.basis(name, 15) is Basis.FORMULA
    assert getattr(latency, f"{name}_s")(15) == pytest.approx(expected(15))


def test_curves_of_one_expert_come_on_top_of_its_call_and_serve_arrays() -> None:
    costs = {"gpu_expert_call_s": 1.0, "cpu_expert_call_s": 2.0}
    data = machine(costs, **RATES).model_dump(by_alias=True, exclude_none=True)
    curves = {name: token_curve(name, [1e-3, 3e-3]) for name in ("gpu_expert", "cpu_expert")}
    latency = Latency(HardwareProfile.from_dict(data | {"curves": curves}), MINI, engine="hand")

    assert latency.gpu_expert_s(np.array([0, 10, 15])) == pytest.approx([0.0, 1.001, 1.002])
    assert latency.cpu_expert_s(np.array([0, 10, 15])) == pytest.approx([0.0, 2.001, 2.002])


def test_an_override_scales_a_curve_over_tokens() -> None:
    faster = with_curve("shared").with_overrides({"gpu.memory_bytes_per_s": 2e12})

    assert Latency(faster, MINI, engine="hand").shared_s(10) == pytest.approx(0.5e-3)


def test_beyond_a_curve_its_nearest_point_is_scaled_by_the_formula() -> None:
    latency = Latency(curved(), MINI, engine="hand")

    assert latency.copy_s(4000, Direction.H2D, pinned=True) == pytest.approx(1.0 + 6e-6)
    assert latency.basis("copy.h2d", 4000) is Basis.EXTRAPOLATED
    assert latency.gpu_call_s(80, 80) == pytest.approx(8e-5)
    assert latency.basis("gpu_experts", 1, 80) is Basis.EXTRAPOLATED


def test_an_override_scales_a_curve_it_concerns() -> None:
    faster = curved().with_overrides({"link.h2d_bytes_per_s": 2e9})

    latency = Latency(faster, MINI, engine="hand")

    assert latency.copy_s(2000, Direction.H2D, pinned=True) == pytest.approx(1.0 + 1.5e-6)
    assert latency.gpu_call_s(20, 20) == pytest.approx(2e-5)


def test_a_calibrated_number_leaves_curves_as_they_are_and_per_call_costs_add() -> None:
    fitted = curved().calibrated(
        {"gpu.launch_s": 1.0, "engine.hand.copy_call_s": 3.0}, source="calibrated on a run"
    )

    before, after = (Latency(profile, MINI, engine="hand") for profile in (curved(), fitted))

    assert after.attention_s(32, 50) == pytest.approx(before.attention_s(32, 50))
    assert after.router_s(32) - before.router_s(32) > 1
    assert after.copy_s(1500, Direction.H2D, pinned=True) == pytest.approx(3.0 + 2e-6)


def test_a_curve_of_another_shape_does_not_count() -> None:
    latency = Latency(curved(), FLASH, engine="hand")

    assert latency.basis("gpu_experts", 1, 10) is Basis.FORMULA
    assert latency.basis("attention", 32, 0) is Basis.FORMULA
    assert latency.basis("copy.h2d", 1500) is Basis.CURVE
    assert latency.gpu_call_s(10, 10) == pytest.approx(10 * FLASH.expert_bytes / 1e12, rel=1e-2)

"""Machines on which one thing takes all the time, against formulas written out by hand.

The sizes are LLaDA2.0-mini's, as numbers: 20 layers, the first dense; 256 experts of 3 x 2048 x 512
weights, top-8, one shared; blocks of 32 tokens; hidden size 2048; 16 heads of 128 and 4 for keys.
"""

from itertools import pairwise

import numpy as np
import pytest
from builders import steps_trace

from tidesim.hardware import load_profile
from tidesim.model_spec import MODELS
from tidesim.simulate import prepare, run
from tidesim.simulate.des import time_passes as des
from tidesim.simulate.fast import time_passes as fast

A100 = load_profile("a100-40gb-pcie4-xeon48")
STEPS, LAYERS, TOKENS, TOP, HIDDEN = 4, 19, 32, 8, 2048
EXPERT_WEIGHTS = 3 * HIDDEN * 512
EXPERT_BYTES = 2 * EXPERT_WEIGHTS
METHODS = pytest.mark.parametrize("method", [des, fast], ids=["des", "fast"])


def rolling_trace(active=64, shift=16):
    """Return steps of which each routes 4 tokens to each of 64 experts, 16 of them new."""
    counts = np.zeros((STEPS, LAYERS, 256), dtype=int)
    for step in range(STEPS):
        counts[step, :, np.arange(active) + shift * step] = TOKENS * TOP // active
    return steps_trace(MODELS["llada2.0-mini"], counts)


def run_on(method, overrides, **settings):
    """Simulate the rolling trace on a machine with some numbers changed."""
    machine = A100.with_overrides(overrides)
    return run(prepare(rolling_trace(), machine, **settings), method=method)


def assert_takes(result, seconds, *, within):
    """Assert that a run takes what a formula says and at most a share `within` longer."""
    assert seconds <= result.seconds * (1 + 1e-9)
    assert result.seconds <= seconds * (1 + within)


@METHODS
def test_on_a_slow_link_a_run_takes_its_promotions_bytes_over_the_rate(method):
    """Every pass but the first finds 48 of its 64 experts resident and copies 16 a layer."""
    rate = 1e8

    result = run_on(method, {"link.h2d_bytes_per_s": rate}, policy="tide", budget=64, interval=1)

    # without popularity the first residents are experts 0 to 63
    assert result.promotions == LAYERS * 16 * (STEPS - 1)
    assert_takes(result, result.promotions * EXPERT_BYTES / rate, within=0.01)
    assert result.bottleneck == "link"
    assert result.busy["h2d"] > 0.99


@METHODS
def test_on_a_slow_gpu_a_run_takes_its_flops_over_the_rate(method):
    """Attention, gated MLPs and head twice their weights a token; float32 costs 16 times."""
    rate = 1e9

    result = run_on(method, {"gpu.flops_bf16": rate}, policy="all-gpu")

    attention = 2 * TOKENS * (HIDDEN * 128 * (16 + 4 + 4 + 16) + 2 * 128)
    attention += 4 * TOKENS * TOKENS * 16 * 128  # queries x keys, then weights x values
    experts = 2 * TOKENS * TOP * EXPERT_WEIGHTS
    router, combine = 16 * 2 * TOKENS * HIDDEN * 256, 16 * 2 * TOKENS * HIDDEN * TOP
    layer = attention + router + 2 * TOKENS * EXPERT_WEIGHTS + experts + combine
    dense = attention + 2 * TOKENS * 3 * HIDDEN * 5120
    head = 2 * TOKENS * 157184 * HIDDEN
    flops = STEPS * (LAYERS * layer + dense + head)
    assert_takes(result, flops / rate, within=0.001)
    assert result.bottleneck == "gpu"


@METHODS
def test_on_a_slow_cpu_a_run_takes_the_bytes_of_its_active_experts_over_the_rate(method):
    rate = 1e9

    result = run_on(
        method, {"cpu.expert_bytes_per_s": rate, "cpu.flops_bf16": 1e15}, policy="all-cpu"
    )

    assert_takes(result, STEPS * LAYERS * 64 * EXPERT_BYTES / rate, within=0.01)
    assert result.bottleneck == "cpu"


@METHODS
def test_on_a_cpu_that_computes_slowly_a_run_takes_the_flops_of_its_experts(method):
    rate = 1e9

    result = run_on(method, {"cpu.flops_bf16": rate}, policy="all-cpu")

    flops = STEPS * LAYERS * 2 * TOKENS * TOP * EXPERT_WEIGHTS
    assert_takes(result, flops / rate, within=0.001)
    assert result.bottleneck == "cpu"


@METHODS
def test_where_launches_are_slow_a_run_takes_its_kernels(method):
    """Attention 11, dense and shared MLPs 5, router 16, combine 4, head 12; experts one call."""
    launch_s, fused_call_s = 0.1, 0.5

    result = run_on(
        method, {"gpu.launch_s": launch_s, "gpu.fused_call_s": fused_call_s}, policy="all-gpu"
    )

    kernels = LAYERS * (11 + 16 + 5 + 4) + (11 + 5) + 12
    seconds = STEPS * (kernels * launch_s + LAYERS * fused_call_s)
    assert_takes(result, seconds, within=0.001)
    assert result.bottleneck == "gpu"


@METHODS
def test_where_the_host_is_slow_a_run_takes_its_syncs_and_decisions(method):
    """A layer has a sync and a decision, a pass one sync more."""
    sync_s, decide_s = 0.1, 0.3

    result = run_on(
        method,
        {"engine.tidesim.sync_s": sync_s, "engine.tidesim.decide_s": decide_s},
        policy="all-gpu",
    )

    assert_takes(result, STEPS * (LAYERS * (sync_s + decide_s) + sync_s), within=0.01)
    assert result.bottleneck == "host"


def test_seconds_fall_in_proportion_to_the_rate_of_what_bounds_a_run():
    rates = [1e7, 2e7, 4e7]
    common = {"policy": "tide", "budget": 64, "interval": 1}

    seconds = [run_on(fast, {"link.h2d_bytes_per_s": rate}, **common).seconds for rate in rates]

    assert all(a / b == pytest.approx(2, rel=0.001) for a, b in pairwise(seconds))

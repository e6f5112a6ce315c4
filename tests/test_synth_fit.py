"""Fitting the process: known parameters come back, and the bundled fit is as its captured trace."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tidesim.errors import SettingError
from tidesim.model_spec import load_model_spec
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Trace
from tidesim.trace.synth.figures import figures
from tidesim.trace.synth.fit import fit
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.observed import parameters_of
from tidesim.trace.synth.parameters import Spread, Workload, load_parameters

CAPTURED = "tide-tiny-mixed"
TINY = load_model_spec("tide-tiny")
SMALL = TINY.model_copy(update={"num_hidden_layers": TINY.first_k_dense_replace + 2})
SHARED = ("popularity_std", "topic_std", "context_std")


def with_values(parameters, **values):
    routing = parameters.routing
    changed = {
        name: getattr(routing, name).model_copy(update={"value": value})
        for name, value in values.items()
    }
    return parameters.model_copy(update={"routing": routing.model_copy(update=changed)})


def values_of(parameters):
    return {name: item.value for name, item in parameters.routing}


@pytest.fixture(scope="module")
def truth():
    """Known parameters, far from those a fit starts from."""
    workload = Workload(tokens_per_forward=4.0, prompt_tokens=48, source="a test")
    return with_values(
        load_parameters("llada2.0-flash"), popularity_std=0.9, masked_std=0.6, decoded_keep=0.98
    ).model_copy(
        update={
            "workloads": {"code": workload},
            "spread_by_layer": Spread(value=(1.3, 0.7), fitted_to="a test"),
        }
    )


@pytest.fixture(scope="module")
def recovered(truth):
    trace = synthesize(truth, SMALL, requests=6, gen_length=96, seed=5)
    start, seen, effort = parameters_of(trace, name="known", requests=6, rounds=7)
    rounds = []
    fitted = fit(start, seen.meta.model, effort, observe=lambda n, f: rounds.append(f.loss))
    return start, fitted, rounds


def test_known_parameters_come_back(truth, recovered):
    """Deviations add up in squares; what splits them is who shares them, which few requests blur."""
    start, fitted, _ = recovered
    known, found, first = (values_of(p) for p in (truth, fitted.parameters, start))

    def shared(values):
        return math.hypot(*(values[name] for name in SHARED))

    assert shared(found) == pytest.approx(shared(known), rel=0.1)
    assert abs(shared(first) / shared(known) - 1) > 0.1
    assert fitted.parameters.spread_by_layer.value == pytest.approx((1.3, 0.7), rel=0.15)
    assert found["masked_std"] == pytest.approx(known["masked_std"], rel=0.15)
    assert drift(found) == pytest.approx(drift(known), rel=0.45)
    assert drift(first) < 0.5 * drift(known)
    for name, tolerance in (("mask_std", 0.2), ("masked_keep", 0.15), ("jump_keep", 0.2)):
        assert found[name] == pytest.approx(known[name], abs=tolerance), name


def drift(values):
    """Return how far a step moves a decoded position: its own part and the block's together."""
    return 1 - values["decoded_keep"] + values["context_std"] ** 2 * (1 - values["context_keep"])


def test_a_fit_only_ever_gets_better_and_meets_the_statistics(recovered):
    _, fitted, losses = recovered

    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == fitted.loss
    assert np.abs(fitted.misses).max() < 2.5


def test_workloads_are_moments_of_the_trace(truth):
    trace = synthesize(truth, SMALL, requests=8, gen_length=320, seed=1)
    workload = parameters_of(trace, name="known", requests=8)[0].workloads["code"]
    prompts = [info.prompt_tokens for info in trace.meta.requests]

    assert workload.tokens_per_forward == pytest.approx(4.0, rel=0.1)
    assert workload.prompt_tokens == round(np.mean(prompts))


def test_a_fit_looks_at_evenly_spaced_requests():
    _, seen, effort = parameters_of(load_trace(CAPTURED), name=CAPTURED, requests=3)

    assert [info.request for info in seen.meta.requests] == [0, 20, 41]
    assert effort.requests == 3


def test_the_bundled_fit_is_within_a_tenth_of_the_captured_trace():
    """Of every statistic it was fitted to, with other draws than the fit's."""
    parameters = load_parameters("tide-tiny")
    synthetic = figures(synthesize(parameters, TINY, requests=24, gen_length=128, seed=3))
    captured = figures(load_trace(CAPTURED))
    off = {
        target.figure: synthetic[target.figure] / captured[target.figure] - 1
        for target in parameters.targets
    }

    assert len(off) > 30
    assert {name: error for name, error in off.items() if abs(error) > 0.1} == {}


def test_a_trace_without_masked_positions_is_refused():
    trace = load_trace(CAPTURED).only([0])
    rows = [replace(p, masked=None) for p in trace]

    with pytest.raises(SettingError, match="record"):
        parameters_of(Trace(trace.meta, rows), name="mine", requests=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"requests": 0}, "requests is 0"),
        ({"requests": 1, "rounds": 0}, "rounds is 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(SettingError, match=words):
        parameters_of(load_trace(CAPTURED), name=CAPTURED, **options)

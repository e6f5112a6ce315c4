"""Reproduce: seconds linear in per-call costs, the fit, and how near the paper's rows come."""

import json
from dataclasses import replace

import answers
import numpy as np
import pytest
from test_optimize import A100, MINI, fixed_trace

import tidesim.cli.reproduce as command
from tidesim.latency import Direction, Latency
from tidesim.reference_runs import ENGINE, SOLVED, Bench, Line, Setting
from tidesim.reproduce import LENGTHS, PUBLISHED, Reproduction, Row, fitted_costs, predict
from tidesim.simulate import prepare, run
from tidesim.simulate.fast import run_fast


def test_seconds_are_those_of_a_simulation_at_any_per_call_costs():
    trace = fixed_trace()
    case = prepare(
        trace, A100, policy="tide", interval=2, budget=3, engine=ENGINE, sizes=MINI,
        popularity_from=trace,
    )  # fmt: skip
    line = Line.of(case)

    for call_s, copy_s in ((0.0, 0.0), (3e-4, 2e-3), (1e-5, 0.1)):
        costs = {
            f"engine.{ENGINE}.gpu_expert_call_s": call_s,
            f"engine.{ENGINE}.cpu_expert_call_s": call_s,
            f"engine.{ENGINE}.expert_copy_call_s": copy_s,
        }
        latency = Latency(A100.with_overrides(costs), case.spec, engine=ENGINE)
        for method in (run_fast, run):
            result = method(replace(case, latency=latency))
            found = line.seconds(np.array([call_s, copy_s]))
            assert found == pytest.approx(result.seconds, rel=1e-9)


def test_a_copy_of_an_expert_may_cost_more_than_another():
    own = A100.with_overrides({f"engine.{ENGINE}.expert_copy_call_s": 1.0})
    usual, dear = (Latency(machine, MINI, engine=ENGINE) for machine in (A100, own))

    for direction in Direction:
        more = dear.expert_copy_s(3, direction, pinned=False) - usual.expert_copy_s(
            3, direction, pinned=False
        )
        assert more == pytest.approx(3 * (1 - A100.value(f"engine.{ENGINE}.copy_call_s")))
        assert dear.copy_s(100, direction, pinned=False) == usual.copy_s(
            100, direction, pinned=False
        )


@pytest.fixture(scope="module")
def mini():
    """Rows of the paper, predicted at mini's real shape."""
    benches = [Bench.of(Setting(model="llada2.0-mini", gen_length=length)) for length in LENGTHS]
    costs = fitted_costs(benches)
    return [predict(benches, row.policy, row.budget, costs, published=row) for row in PUBLISHED]


@pytest.mark.slow
def test_the_papers_rows_are_predicted_at_the_budget_that_was_not_fitted(mini):
    """Within 15 %, as ratios within 10 %, and in the right order."""
    by = {(row.budget, row.policy): row for row in mini}
    published = {(row.budget, row.policy): row.tokens_per_s for row in PUBLISHED}

    assert all(abs(row.error) < 0.05 for row in mini if row.fitted)
    others = [row for row in mini if not row.fitted]
    assert {row.budget for row in others} == {64}
    assert all(abs(row.error) < 0.15 for row in others)
    for policy in ("mixtral-offload", "fiddler"):
        ratio = by[64, SOLVED].predicted / by[64, policy].predicted
        assert ratio == pytest.approx(published[64, SOLVED] / published[64, policy], rel=0.1)
    speeds = [by[64, policy].predicted for policy in (SOLVED, "fiddler", "mixtral-offload")]
    assert speeds == sorted(speeds, reverse=True)
    assert min(by[64, SOLVED].intervals) > 1


def row(policy, *, published, predicted, fitted=False, **changes):
    values = {
        "model": "llada2.0-mini", "hardware": "box", "budget": 64, "policy": policy, "intervals": (2,),
        "gen_lengths": (256,), "block_length": 32, "tokens_per_forward": 3.4, "engine": ENGINE,
        "published": published, "predicted": predicted,
        "error": predicted / published - 1 if published else None, "fitted": fitted,
    }  # fmt: skip
    return Row(**values | changes)


def test_ratios_compare_tide_with_the_others_of_its_model_and_budget(tidesim, ok, monkeypatch):
    found = Reproduction(
        rows=(
            row(SOLVED, published=4.0, predicted=5.0),
            row("fiddler", published=2.0, predicted=2.0),
            row("fiddler", published=1.0, predicted=1.0, budget=128),
            row("mixtral-offload", published=None, predicted=9.0, gen_lengths=(1024,)),
            row(
                "tide, background",
                published=None,
                predicted=9.0,
                bottleneck="gpu",
                engine="tidesim",
            ),
        ),
        costs_s={"expert_call_s": 1e-4},
    )
    monkeypatch.setattr(command, "run_reproduction", lambda: found)

    (ratio,) = found.ratios()
    assert (ratio["published"], ratio["predicted"], ratio["error"]) == (2.0, 2.5, 0.25)
    answer = ok("reproduce")
    assert answer == json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert answers.unmet({("reproduce",): answer}) == set()
    status, out, _ = tidesim("reproduce")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for said in ("+25.0%", "1024", "9.00 (gpu)", "tokens/s", "expert_call_s 0.100 ms"):
        assert said in out

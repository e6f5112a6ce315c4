"""Rounds, limits, risk, background promotion and judgement: what `optimize` does beyond one solution."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces
from strategies_hardware import profiles
from test_optimize import FAST_LINK, MINI, fixed_trace

from tidesim.costs import Option, arc_costs
from tidesim.errors import SettingError
from tidesim.optimize import judge, optimize
from tidesim.optimize.search import WORTH_A_ROUND, case_of, request_seconds
from tidesim.policies import get_policy
from tidesim.policies.scheduled import follow
from tidesim.simulate import simulate
from tidesim.trace.passes import Trace


def followed(schedule, trace, profile, **settings):
    """Simulate a schedule file on some requests."""
    return simulate(
        trace,
        profile,
        policy=follow(schedule),
        budget=max(schedule.budgets),
        interval=schedule.interval,
        promotion=schedule.promotion,
        engine=schedule.engine,
        **settings,
    )


def run_of(solved):
    """Return the run of a solved schedule on its training requests."""
    return replace(case_of(solved.job, solved.solution), trace=solved.job.training)


@settings(max_examples=15, deadline=None)
@given(
    traces(max_blocks=3, max_requests=2),
    profiles(),
    st.sampled_from(["tidesim", "tide-reference"]),
    st.sampled_from(["uniform", "layered", "free"]),
    st.data(),
)
def test_the_objective_is_the_simulated_time_of_the_file_on_training_requests(
    trace, profile, engine, formulation, data
):
    """Also where refreshes leave slots free or promote a few: costs are taken around the answer."""
    model = trace.meta.model
    budget = data.draw(st.integers(model.num_experts_per_tok, model.num_experts))
    limits = data.draw(st.sampled_from([(None,), (1, None), (2,)]))
    roomy = profile.with_overrides({"gpu.memory_bytes": 1e12, "cpu.memory_bytes": 1e12})

    solved = optimize(
        trace, roomy, engine=engine, budget=budget, formulation=formulation,
        most_promotions=limits, gap=0.0,
    )  # fmt: skip

    training = trace if solved.heldout is None else trace.split("train")
    result = followed(solved.schedule, training, roomy, popularity_from=training)
    assert solved.training.seconds_per_block == pytest.approx(result.seconds_per_block, rel=1e-9)
    assert solved.simulated_s == solved.training.seconds_per_block
    if len(solved.rounds) < 5:
        assert solved.difference == pytest.approx(0, abs=1e-6)
    assert solved.solution.bound_s <= solved.solution.objective_s


def test_a_round_is_added_only_while_it_is_worth_it():
    solved = optimize(fixed_trace(), FAST_LINK, budget=6, sizes=MINI, formulation="free")

    simulated = [one.simulated_s for one in solved.rounds]
    assert 2 < len(simulated) <= 5
    for before, after in pairwise(simulated[:-2]):
        assert after < before * (1 - WORTH_A_ROUND)
    assert solved.simulated_s == min(simulated[:-1])
    assert solved.difference == pytest.approx(0, abs=1e-9)


def test_one_round_is_one_solution():
    solved = optimize(fixed_trace(), FAST_LINK, budget=6, sizes=MINI, rounds=1)

    assert len(solved.rounds) == 1
    assert solved.solution.objective_s == solved.rounds[0].solution.objective_s


def test_risk_weighs_the_slowest_training_request():
    trace = fixed_trace(heldout=False)
    plain, careful = (
        optimize(trace, FAST_LINK, budget=2, sizes=MINI, formulation="free", risk=risk, gap=0.0)
        for risk in (0.0, 100.0)
    )

    slowest = max(request_seconds(careful.training, run_of(careful)))
    expected = careful.training.seconds_per_block + 100 * slowest
    assert careful.simulated_s == pytest.approx(expected)
    assert careful.difference == pytest.approx(0, abs=1e-6)
    assert slowest <= max(request_seconds(plain.training, run_of(plain))) * (1 + 1e-9)


def test_seconds_of_requests_add_up_to_the_run():
    solved = optimize(fixed_trace(), FAST_LINK, budget=2, sizes=MINI)

    each = request_seconds(solved.training, run_of(solved))

    assert len(each) == 2
    assert 2 * sum(each) == pytest.approx(solved.training.seconds)  # two blocks each


def test_copies_of_a_step_stay_within_their_limit():
    trace = fixed_trace(heldout=False)
    free = optimize(trace, FAST_LINK, budget=2, sizes=MINI, formulation="free")
    assert free.training.promotions > 0

    none = optimize(trace, FAST_LINK, budget=2, sizes=MINI, formulation="free", copies_per_step=0.0)

    assert none.training.promotions == 0
    assert all(layer.refresh_steps == () for layer in none.schedule.layers)
    assert none.simulated_s >= free.simulated_s


@pytest.mark.parametrize("promotion", ["blocking", "background"])
def test_a_limit_on_copies_holds_for_the_costs_around_the_answer(promotion):
    trace = fixed_trace(heldout=False)

    solved = optimize(
        trace, FAST_LINK, budget=4, sizes=MINI, formulation="free", promotion=promotion,
        most_promotions=(1, None), copies_per_step=1.5,
    )  # fmt: skip

    around = arc_costs(
        replace(run_of(solved), policy=get_policy("tide")),
        solved.costs.options,
        around=solved.solution.refresh_steps,
    )
    at = [solved.costs.options.index(Option(layer.budget, layer.most_promotions))
          for layer in solved.schedule.layers]  # fmt: skip
    copies = sum(
        around.copies.arcs[:, layer, at[layer], steps[0], start, end]
        for layer, steps in enumerate(solved.solution.refresh_steps)
        if steps
        for start, end in pairwise((*steps, around.steps))
    )
    assert solved.training.promotions > 0
    assert np.all(copies <= 1.5 * around.reach + 1e-6)


def test_risk_weighs_requests_of_an_engine_that_recomputes_the_window():
    solved = optimize(
        fixed_trace(), FAST_LINK, budget=3, sizes=MINI, engine="tide-reference", risk=1.0
    )

    assert solved.difference == pytest.approx(0, abs=1e-6)


def test_a_limit_on_promotions_is_obeyed_and_stands_in_the_file():
    solved = optimize(
        fixed_trace(), FAST_LINK, budget=4, sizes=MINI, formulation="free", most_promotions=(1,)
    )

    layers = solved.schedule.layers
    assert all(layer.most_promotions == 1 for layer in layers)
    assert solved.training.promotions <= solved.training.refreshes


def test_a_choice_of_limits_is_never_slower_than_one_of_them():
    trace = fixed_trace(heldout=False)
    both, one, unlimited = (
        optimize(
            trace, FAST_LINK, budget=2, sizes=MINI, formulation="free", most_promotions=limits, gap=0.0
        ).rounds[0].solution.objective_s
        for limits in ((1, None), (1,), (None,))
    )  # fmt: skip

    assert both <= min(one, unlimited) * (1 + 1e-9)


def test_first_residents_stand_in_the_file_and_are_the_popular_ones():
    trace = fixed_trace()

    layer = optimize(trace, FAST_LINK, budget=3, sizes=MINI).schedule.layers[0]

    counts = sum(
        np.bincount(pass_.experts[0].ravel(), minlength=8) for pass_ in trace.split("train")
    )
    popular = sorted(np.argsort(-counts, kind="stable")[:3].tolist())
    assert list(layer.initial) == popular


def test_where_copies_never_pay_the_layers_never_refresh():
    slow = FAST_LINK.with_overrides({"link.h2d_bytes_per_s": 1e6})

    for formulation in ("uniform", "layered", "free"):
        solved = optimize(fixed_trace(), slow, budget=3, sizes=MINI, formulation=formulation)

        assert solved.training.promotions == 0
        assert solved.solution.interval is None
        static = simulate(
            fixed_trace().split("train"), slow, policy="tide", interval=4, budget=3, sizes=MINI,
            popularity_from=fixed_trace().split("train"),
        )  # fmt: skip
        assert solved.training.seconds < static.seconds


def test_promotion_in_the_background_is_solved_and_simulated_as_such():
    trace = fixed_trace()
    solved = optimize(
        trace, FAST_LINK, budget=3, sizes=MINI, formulation="free", promotion="background"
    )

    assert solved.schedule.promotion == solved.training.promotion == "background"
    assert abs(solved.difference) < 0.25
    result = followed(
        solved.schedule, trace.split("heldout"), FAST_LINK, sizes=MINI,
        popularity_from=trace.split("train"),
    )  # fmt: skip
    assert solved.heldout.tokens_per_s == pytest.approx(result.tokens_per_s, rel=1e-9)


def test_the_judgement_is_what_simulating_every_interval_says():
    trace = fixed_trace()
    solved = optimize(trace, FAST_LINK, budget=3, sizes=MINI)

    found = judge(solved)

    speeds = {
        interval: simulate(
            trace.split("heldout"), FAST_LINK, policy="tide", interval=interval, budget=3, sizes=MINI,
            popularity_from=trace.split("train"),
        ).tokens_per_s
        for interval in range(1, 5)
    }  # fmt: skip
    best = max(speeds, key=lambda interval: speeds[interval])
    assert found.best_fixed.interval == best
    assert found.best_fixed.tokens_per_s == pytest.approx(speeds[best], rel=1e-9)
    assert found.regret == pytest.approx(
        found.hindsight.tokens_per_s / solved.heldout.tokens_per_s - 1
    )
    alone = optimize(replace_split(trace.split("heldout")), FAST_LINK, budget=3, sizes=MINI)
    assert found.hindsight.seconds == pytest.approx(alone.training.seconds)


def replace_split(trace):
    """Return a trace whose requests are not marked."""
    infos = tuple(info.model_copy(update={"split": "train"}) for info in trace.meta.requests)
    return Trace(trace.meta.model_copy(update={"requests": infos}), list(trace))


def test_without_held_out_requests_there_is_no_regret():
    found = judge(optimize(fixed_trace(heldout=False), FAST_LINK, budget=3, sizes=MINI))

    assert (found.regret, found.hindsight) == (None, None)
    assert found.to_json()["regret"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"promotion": "magic"},
            "promotion 'magic' is not known; use one of: blocking, background",
        ),
        ({"most_promotions": ()}, "no option"),
        ({"most_promotions": (0,)}, "most promotions is 0 but must be at least 1"),
        ({"copies_per_step": -1.0}, "copies per step is -1.0"),
        ({"copies_per_step": float("nan")}, "copies per step is nan"),
        ({"risk": -0.5}, "risk is -0.5"),
        ({"risk": 1.0, "promotion": "background"}, "under blocking promotion only"),
        ({"rounds": 0}, "rounds is 0"),
        ({"formulation": "closed-form", "risk": 1.0}, "closed-form is the paper's"),
        ({"formulation": "closed-form", "promotion": "background"}, "closed-form is the paper's"),
        ({"engine": "tide-reference", "promotion": "background"}, "background"),
    ],
)
def test_a_wrong_choice_is_refused(options, says):
    with pytest.raises(SettingError, match=says):
        optimize(fixed_trace(), FAST_LINK, budget=3, **options)

"""Couplings of layers against enumeration, the model over arcs, hand numbers and their own rules."""

import dataclasses
import itertools
from time import perf_counter

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_oracles import COUPLINGS, arc_model, enumerated_s, problems, schedules, walked

from solver import (
    Backend,
    BackendError,
    Formulation,
    Problem,
    ProblemError,
    Status,
    Use,
    objective_s,
    solve,
)
from solver.backends import Ending, Limits, run
from solver.best import INTERVALS, PATHS
from solver.columns import column
from solver.generation import Task, price
from solver.master import build
from solver.prices import Prices

GAP = 1e-4
few = settings(max_examples=15, deadline=None)
searched = pytest.mark.parametrize("formulation", ["uniform", "layered", "free"])
layers_differ = pytest.mark.parametrize("formulation", [Formulation.LAYERED, Formulation.FREE])
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
both_backends = pytest.mark.parametrize("backend", Backend)


def options_of(problem, solution):
    """The index of each layer's option."""
    labels = problem.promotions or (None,) * problem.budgets.size
    options = list(zip(problem.budgets.tolist(), labels, strict=True))
    return [
        options.index(chosen) for chosen in zip(solution.budget, solution.promotions, strict=True)
    ]


def seconds_or_infinity(solution):
    """The objective; infinity where there is none."""
    return np.inf if solution.objective_s is None else solution.objective_s


def task_of(problem, formulation, backend=Backend.CBC):
    """What the parts of a search share."""
    search = PATHS if formulation == Formulation.FREE else INTERVALS
    end = perf_counter() + 60.0
    return Task(problem=problem, search=search, backend=backend, gap=GAP, end=end)


# optimality


@every_coupling
@searched
@few
@given(data=st.data())
def test_objective_and_bound_enclose_the_best_of_all_enumerated_placements(
    formulation, coupling, data
):
    problem = data.draw(problems(coupling=coupling))
    least_s = enumerated_s(problem, Formulation(formulation))
    solution = solve(problem, formulation=formulation, gap=GAP)
    if least_s == np.inf:
        assert solution.status is Status.INFEASIBLE
        return

    again_s = objective_s(problem, options_of(problem, solution), solution.refresh_steps)
    assert solution.bound_s <= least_s * (1 + 1e-9)
    assert solution.objective_s >= least_s * (1 - 1e-9)
    assert solution.objective_s == pytest.approx(again_s, rel=1e-12)
    assert (solution.status is Status.OPTIMAL) == (solution.gap <= GAP)
    if solution.status is Status.OPTIMAL:
        assert solution.objective_s <= least_s / (1 - GAP) * (1 + 1e-9)


@every_coupling
@few
@given(data=st.data())
def test_a_problem_of_few_schedules_is_proved_by_every_backend(coupling, data):
    problem = data.draw(problems(coupling=coupling))
    cbc, highs = (solve(problem, formulation="free", backend=b, gap=GAP) for b in Backend)

    assert cbc.status is highs.status is not Status.FEASIBLE
    assert seconds_or_infinity(highs) == pytest.approx(seconds_or_infinity(cbc), rel=2 * GAP)


@every_coupling
@few
@given(data=st.data())
def test_the_model_over_arcs_has_the_same_optimum(coupling, data):
    problem = data.draw(problems(coupling=coupling, most_steps=3))
    solution = solve(problem, formulation="free", gap=GAP)
    model = arc_model(problem)
    ending = run(model, Limits(time_limit_s=60.0, gap=0.0), backend=Backend.HIGHS)

    if ending is Ending.INFEASIBLE:
        assert solution.status is Status.INFEASIBLE
    else:
        arcs_s = pulp.value(model.objective)
        assert solution.objective_s == pytest.approx(arcs_s, rel=2 * GAP, abs=1e-5)


@every_coupling
@few
@given(data=st.data())
def test_more_freedom_is_never_slower_by_more_than_the_gap(coupling, data):
    problem = data.draw(problems(coupling=coupling))
    free, layered, uniform = (
        seconds_or_infinity(solve(problem, formulation=f, gap=GAP))
        for f in ("free", "layered", "uniform")
    )

    assert layered <= uniform
    assert free <= layered / (1 - GAP) * (1 + 1e-9)


# couplings that do not couple


@searched
@few
@given(problem=problems(coupling="risk"))
def test_no_risk_is_the_plain_problem(formulation, problem):
    calm = dataclasses.replace(problem, risk=0.0)
    plain = dataclasses.replace(calm, requests=None)
    with_requests, without = (solve(p, formulation=formulation) for p in (calm, plain))

    assert dataclasses.replace(with_requests, seconds=0.0) == (
        dataclasses.replace(without, seconds=0.0)
    )


@searched
@few
@given(problem=problems(coupling="caps"))
def test_caps_of_infinity_are_the_plain_problem(formulation, problem):
    open_caps = np.full(problem.steps, np.inf)
    uncapped = dataclasses.replace(problem, most_copies=open_caps)
    plain = dataclasses.replace(problem, most_copies=None)
    with_caps, without = (solve(p, formulation=formulation) for p in (uncapped, plain))

    assert dataclasses.replace(with_caps, seconds=0.0) == dataclasses.replace(without, seconds=0.0)


@searched
@few
@given(problem=problems(coupling="background"))
def test_copies_that_take_no_time_leave_the_plain_sum(formulation, problem):
    instant = dataclasses.replace(problem, copy_s=0.0)
    plain = dataclasses.replace(instant, step_s=None)
    with_steps, without = (solve(p, formulation=formulation, gap=GAP) for p in (instant, plain))

    expected = pytest.approx(seconds_or_infinity(without), rel=GAP)
    assert seconds_or_infinity(with_steps) == expected


# the exact time of a placement


def background(copies, *, copy_s, **changes):
    """One layer and three steps, 1 s + 1 s fixed each with refreshes (0,), all others slower."""
    arcs = np.full((4, 1, 1, 1, 3, 4), 9.0)
    arcs[:, 0, 0, 0, 0, 3] = 1.0
    issued = np.zeros((3, 1, 1, 1, 3, 4))
    issued[:, 0, 0, 0, 0, 3] = copies
    split = Use(arcs=arcs, fixed=np.ones(4))
    given_terms = {
        "steps": 3,
        "budgets": np.array([8]),
        "arc_cost_s": arcs.sum(axis=0),
        "fixed_s": 4.0,
        "copies": Use(arcs=issued, fixed=np.zeros(3)),
        "step_s": split,
        "copy_s": copy_s,
    }
    return Problem(**given_terms | changes)


@pytest.mark.parametrize(
    ("copies", "seconds"),
    [
        ((0, 0, 0), 8.0),
        ((4, 0, 0), 8.0),  # 2 s hidden behind step 0, 2 s behind step 1
        ((7, 0, 0), 8.0 + 3.0),  # 5 s into step 1, which lasts as long
        ((0, 0, 7), 8.0 + 3.0),  # 5 s into the passes that are no steps
        ((3, 3, 0), 8.0),  # 1 s into step 1, 1 + 3 - 2 into step 2
        ((6, 6, 0), 2.0 + 4.0 + 6.0 + 2.0),  # 4 s into step 1, all of step 1's into step 2
    ],
)
def test_a_step_hides_its_copies_and_the_next_lasts_until_the_rest_are_in(copies, seconds):
    problem = background(copies, copy_s=1.0)

    assert objective_s(problem, [0], [(0,)]) == seconds
    assert solve(problem, formulation="uniform").objective_s == seconds
    assert solve(problem, formulation="free").objective_s == seconds


def test_the_slowest_request_counts_with_the_risk():
    arcs = np.array([1.0, 3.0]).reshape(2, 1, 1, 1, 1, 1) * np.ones((1, 2, 1, 1, 1, 2))
    problem = Problem(
        steps=1,
        budgets=np.array([1]),
        arc_cost_s=arcs.mean(axis=0),
        fixed_s=1.0,
        requests=Use(arcs=arcs, fixed=np.array([5.0, 0.0])),
        risk=0.5,
    )

    assert objective_s(problem, [0, 0], [(0,), (0,)]) == 1.0 + 4.0 + 0.5 * 7.0


def plain_problem(**changes):
    """Two layers, two options of two steps, one first step."""
    given_terms = {
        "steps": 2,
        "budgets": np.array([1, 2]),
        "arc_cost_s": np.ones((2, 2, 1, 2, 3)),
        "expert_bytes": 1,
        "memory_bytes": 3,
    }
    return Problem(**given_terms | changes)


def capped(cap=1.0, **changes):
    """Every refresh of the plain problem promotes one expert."""
    copies = np.ones((2, 2, 2, 1, 2, 3))
    caps = {"copies": Use(arcs=copies, fixed=np.zeros(2)), "most_copies": np.array([9.0, cap])}
    return plain_problem(**caps | changes)


@pytest.mark.parametrize(
    ("options", "refreshes", "sentence"),
    [
        ([0], [(0,)], "1 options and 1 schedules are given, must be one of each for 2 layers"),
        ([0, 2], [(0,), (0,)], r"option 2 does not exist, must be 0\.\.1"),
        ([0, 0], [(0,), ()], "never refreshes, but never_s is None"),
        ([0, 0], [(0,), (1,)], r"refresh steps \[1\] must ascend, below 2, the first .* below 1"),
        ([0, 0], [(0,), (0, 2)], r"refresh steps \[0, 2\] must ascend"),
        ([0, 0], [(0,), (0, 0)], r"refresh steps \[0, 0\] must ascend"),
        ([1, 1], [(0,), (0,)], "4 slots do not fit, memory has 3"),
        ([0, 0], [(0,), (0,)], r"Step 1 has 2 promotions, most_copies\[1\] allows 1"),
    ],
)
def test_the_time_of_what_is_no_placement_is_refused(options, refreshes, sentence):
    with pytest.raises(ProblemError, match=sentence):
        objective_s(capped(), options, refreshes)


# bounds and prices


@every_coupling
@layers_differ
@few
@given(data=st.data())
def test_any_prices_bound_the_optimum_from_below(formulation, coupling, data):
    problem = data.draw(problems(coupling=coupling))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    drawn = Prices(
        requests=rng.normal(size=problem.requests.fixed.size if problem.requests else 0),
        caps=rng.normal(size=problem.steps),
        backlog=rng.normal(size=problem.steps),
        slot_s=rng.normal(),
    )
    bound_s = price(task_of(problem, formulation), drawn.in_range(problem)).bound_s

    assert bound_s <= enumerated_s(problem, formulation) * (1 + 1e-9)


@every_coupling
@both_backends
@few
@given(data=st.data())
def test_the_duals_of_all_columns_give_the_relaxation_as_bound(backend, coupling, data):
    problem = data.draw(problems(coupling=coupling, most_steps=3))
    places = list(np.ndindex(problem.layers, problem.budgets.size))
    paths = schedules(problem, Formulation.FREE)
    columns = [column(problem, *place, path) for place in places for path in paths]
    master = build(problem, columns, relaxed=True)
    if run(master.model, Limits(time_limit_s=60.0, gap=0.0), backend=backend) is Ending.PROVED:
        priced = price(task_of(problem, Formulation.FREE), master.prices(problem))

        assert priced.bound_s == pytest.approx(master.objective_s, rel=1e-5, abs=1e-5)


@layers_differ
@few
@given(problem=problems(), limit=st.floats(0.0, 6.0))
def test_the_schedules_within_a_limit_are_those_of_all_that_cost_no_more(
    formulation, problem, limit
):
    costs = problem.arc_cost_s, problem.never_s
    limit_s = np.full((problem.layers, problem.budgets.size), limit + 1e-9)
    found = list(task_of(problem, formulation).search.within(costs, limit_s))

    expected = [
        (*place, path)
        for place in np.ndindex(*limit_s.shape)
        for path in schedules(problem, formulation)
        if walked(*costs, place, path) <= limit + 1e-9
    ]
    assert sorted(found) == sorted(expected)


# what cannot be done


def test_a_cap_that_no_choice_keeps_is_named():
    for formulation in ("uniform", "layered", "free"):
        solution = solve(capped(), formulation=formulation)

        assert solution.status is Status.INFEASIBLE
        assert "promotions of step 1 within most_copies[1] = 1" in solution.message
        assert (solution.budget, solution.promotions, solution.refresh_steps) == ((), (), ())


@searched
def test_a_layer_that_never_refreshes_keeps_a_cap(formulation):
    problem = capped()
    copies = dataclasses.replace(problem.copies, never=np.zeros((2, 2, 2)))
    never_s = np.full((2, 2), 5.0)
    solution = solve(
        dataclasses.replace(problem, copies=copies, never_s=never_s), formulation=formulation
    )

    layers = 2 if formulation == "uniform" else 1
    assert solution.status is Status.OPTIMAL
    assert solution.refresh_steps.count(()) == layers
    assert solution.objective_s == 5.0 * layers + 1.0 * (2 - layers)


@layers_differ
def test_slots_come_before_caps_in_what_is_missing(formulation):
    solution = solve(capped(memory_bytes=1), formulation=formulation)

    assert solution.message.startswith("The smallest budget, 1 slots in each of 2 layers, needs 2")


@layers_differ
def test_caps_that_only_whole_schedules_break_are_proved_impossible(formulation):
    """Half of each schedule would keep the caps: the relaxation has an answer, the problem none."""
    copies = np.zeros((2, 1, 1, 1, 2, 3))
    copies[0, 0, 0, 0, 0, 2] = copies[1, 0, 0, 0, 1, 2] = 2.0
    problem = Problem(
        steps=2,
        budgets=np.array([1]),
        arc_cost_s=np.ones((1, 1, 1, 2, 3)),
        copies=Use(arcs=copies, fixed=np.zeros(2)),
        most_copies=np.ones(2),
    )

    assert solve(problem, formulation=formulation).status is Status.INFEASIBLE


def noise(coupling, *, layers=6, steps=8, seed=3):
    """A problem of noise with memory and without never, too large to prove by a list."""
    rng = np.random.default_rng(seed)
    shape = (layers, 3, 2, steps, steps + 1)
    added = {}
    if coupling == "risk":
        added = {"requests": Use(arcs=rng.random((5, *shape)), fixed=np.ones(5)), "risk": 2.0}
    if coupling == "caps":
        copies = Use(arcs=rng.random((steps, *shape)), fixed=np.zeros(steps))
        added = {"copies": copies, "most_copies": np.full(steps, 0.7 * layers)}
    return Problem(
        steps=steps,
        budgets=np.array([1, 2, 4]),
        arc_cost_s=rng.random(shape) + 0.5,
        expert_bytes=1,
        memory_bytes=2 * layers,
        **added,
    )


@both_backends
@layers_differ
def test_a_search_cut_off_has_an_answer_and_an_honest_gap(formulation, backend):
    problem = noise("risk")
    cut = solve(problem, formulation=formulation, backend=backend, time_limit_s=1e-6)
    whole = solve(problem, formulation=formulation, backend=backend)

    assert cut.bound_s <= whole.objective_s <= cut.objective_s
    assert cut.gap == (cut.objective_s - cut.bound_s) / cut.objective_s
    assert (cut.status is Status.OPTIMAL) == (cut.gap <= 1e-3)
    assert cut.status is Status.FEASIBLE
    assert "not 0.001" in cut.message


def test_a_search_cut_off_before_it_meets_the_caps_says_so():
    problem = capped(cap=1.5)
    with pytest.raises(BackendError, match="found no schedules that keep most_copies"):
        solve(problem, formulation="free", time_limit_s=1e-6)


@layers_differ
@pytest.mark.parametrize("coupling", ["risk", "caps"])
def test_equal_inputs_give_equal_outputs_and_nothing_is_printed(coupling, formulation, capfd):
    first, second = (solve(noise(coupling, steps=5), formulation=formulation) for _ in range(2))

    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)
    assert capfd.readouterr() == ("", "")


@layers_differ
def test_a_backend_that_breaks_a_constraint_is_an_error(monkeypatch, formulation):
    solved = pulp.COIN_CMD.actualSolve

    def pretend(cbc, model):
        if model.isMIP():
            model.assignVarsVals({v.name: 1.0 for v in model.variables()})
            model.assignStatus(pulp.LpStatusOptimal, pulp.LpSolutionOptimal)
        else:
            solved(cbc, model)

    monkeypatch.setattr(pulp.COIN_CMD, "actualSolve", pretend)

    with pytest.raises(BackendError, match="breaks a constraint"):
        solve(noise("risk"), formulation=formulation, gap=0.0)


# edges


@searched
@both_backends
@pytest.mark.parametrize("coupling", ["risk", "caps", "background"])
def test_costs_of_nothing_are_optimal_at_once(coupling, backend, formulation):
    for layers, options, steps in itertools.product((1, 2), (1, 2), (1, 3)):
        shape = (layers, options, 1, steps, steps + 1)
        uses = {
            "requests": Use(arcs=np.zeros((2, *shape)), fixed=np.zeros(2)),
            "copies": Use(arcs=np.zeros((steps, *shape)), fixed=np.zeros(steps)),
            "step_s": Use(arcs=np.zeros((steps + 1, *shape)), fixed=np.zeros(steps + 1)),
        }
        names = {
            "risk": {"requests": uses["requests"], "risk": 1.0},
            "caps": {"copies": uses["copies"], "most_copies": np.zeros(steps)},
            "background": {"copies": uses["copies"], "step_s": uses["step_s"], "copy_s": 1.0},
        }
        problem = Problem(
            steps=steps,
            budgets=np.arange(1, options + 1),
            arc_cost_s=np.zeros(shape),
            **names[coupling],
        )
        solution = solve(problem, formulation=formulation, backend=backend)

        assert (solution.status, solution.objective_s, solution.gap) == (Status.OPTIMAL, 0.0, 0.0)


# what is refused


def of(measures, *, fixed=None, never=None, shape=(2, 2, 1, 2, 3)):
    """A use of ones."""
    fixed = np.zeros(measures) if fixed is None else fixed
    return Use(arcs=np.ones((measures, *shape)), fixed=fixed, never=never)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"never_s": np.ones((2, 1))}, r"never_s has shape \[2, 1\], must be \[2, 2\]"),
        ({"never_s": np.full((2, 2), np.nan)}, r"never_s\[0, 0\] is nan, must be between"),
        ({"promotions": (1,)}, "promotions has 1 values, must have one per option, 2"),
        ({"promotions": (1, 0)}, r"promotions\[1\] is 0, must be a whole number of at least 1"),
        ({"budgets": np.array([2, 2])}, "must be ascending, of equal budgets by promotions"),
        ({"budgets": np.array([2, 2]), "promotions": (None, 3)}, "must be ascending, of equal"),
        ({"arc_cost_s": np.ones((2, 2, 3, 2, 3))}, "1 to 2 first steps: rebuild"),
        ({"arc_cost_s": np.ones((2, 2, 0, 2, 3))}, "1 to 2 first steps: rebuild"),
        ({"risk": 1.0}, "risk needs requests"),
        ({"risk": -1.0}, r"risk is -1\.0, must be between 0 and 1e\+06"),
        ({"risk": np.nan}, "risk is nan, must be between"),
        ({"requests": of(0)}, "requests has arcs, fixed and never of shape"),
        ({"requests": of(3, shape=(1, 2, 1, 2, 3))}, "requests has arcs, fixed and never of shape"),
        ({"requests": of(2, never=np.ones((2, 2, 2)))}, "requests has .* and None: build it with"),
        ({"copies": of(3)}, "copies has arcs, fixed and never of shape"),
        ({"copies": of(2, fixed=np.ones(2))}, "fixed of copies is not 0"),
        ({"most_copies": np.ones(2)}, "most_copies needs copies"),
        ({"copies": of(2), "most_copies": np.ones(3)}, r"most_copies has shape \[3\], must be"),
        (
            {"copies": of(2), "most_copies": np.array([1.0, np.nan])},
            r"most_copies\[1\] is nan, must be between 0 and inf",
        ),
        ({"step_s": of(3)}, "step_s needs copies"),
        ({"step_s": of(2), "copies": of(2)}, "step_s has arcs, fixed and never of shape"),
        ({"step_s": of(3), "copies": of(2)}, "step_s adds up to arc_cost_s but for 2 s"),
        ({"copy_s": 1.0}, "copy_s needs step_s"),
        ({"copy_s": -1.0}, r"copy_s is -1\.0, must be seconds between 0"),
        (
            {"step_s": of(3), "copies": of(2), "requests": of(1), "risk": 1.0},
            "risk and step_s cannot be combined",
        ),
    ],
)
def test_couplings_out_of_range_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ProblemError, match=sentence):
        plain_problem(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arcs": np.ones((1, 2, 1, 2, 3))}, "arcs of a Use has 5 dimensions, must have 6"),
        ({"fixed": np.ones((1, 1))}, "fixed of a Use has 2 dimensions, must have 1"),
        ({"never": np.ones((2, 2))}, "never of a Use has 2 dimensions, must have 3"),
        ({"fixed": np.array([-1.0])}, r"fixed of a Use\[0\] is -1, must be between"),
        ({"never": np.full((1, 2, 2), np.nan)}, r"never of a Use\[0, 0, 0\] is nan"),
        (
            {"arcs": np.full((1, 2, 2, 1, 2, 3), np.inf)},
            r"arcs of a Use\[0, 0, 0, 0, 0, 1\] is inf",
        ),
    ],
)
def test_a_use_out_of_range_is_refused_in_one_sentence(changes, sentence):
    good = {"arcs": np.ones((1, 2, 2, 1, 2, 3)), "fixed": np.ones(1)}

    with pytest.raises(ProblemError, match=sentence):
        Use(**good | changes)

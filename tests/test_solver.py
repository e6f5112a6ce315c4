"""The optimiser against enumeration, shortest paths, direct evaluation and its own promises."""

import dataclasses
import math
import re
import tempfile
from itertools import product

import networkx as nx
import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import solver
from solver import (
    BackendError,
    ClosedFormTerms,
    Formulation,
    Problem,
    ProblemError,
    SolverError,
    Status,
    solve,
)

ROUNDING = 1e-12
seconds = st.floats(0.0, 10.0, allow_subnormal=False) | st.integers(0, 3).map(float)
few = settings(max_examples=30, deadline=None)


sometimes = st.booleans()


@st.composite
def problems(draw, *, limited=sometimes):
    """Problems of up to 3 layers, 3 budgets and 6 steps; memory, where limited, may be too small."""
    layers, options = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    steps = draw(st.integers(1, 6))
    budgets = draw(st.lists(st.integers(1, 9), min_size=options, max_size=options, unique=True))
    shape = (layers, options, 1, steps, steps + 1)
    expert_bytes = draw(st.integers(1, 10**9))
    slots = draw(st.integers(0, layers * max(budgets)))
    return Problem(
        steps=steps,
        budgets=np.array(sorted(budgets)),
        arc_cost_s=draw(hnp.arrays(np.float64, shape, elements=seconds)),
        fixed_s=draw(seconds),
        expert_bytes=expert_bytes,
        memory_bytes=slots * expert_bytes if draw(limited) else None,
    )


@st.composite
def terms(draw):
    """Closed-form terms of up to 12 steps."""
    share = draw(st.lists(st.floats(0.0, 1.0, allow_subnormal=False), min_size=1, max_size=12))
    return ClosedFormTerms(
        promotion_s=draw(seconds),
        miss_s=draw(seconds),
        budget=draw(st.integers(1, 64)),
        drift=draw(st.floats(0.0, 0.99, allow_subnormal=False)),
        miss_share=np.array(sorted(share)),
    )


def problem_of(cost_s, **changes):
    """A problem of these arc costs with budgets 1..K."""
    _, options, _, steps, _ = cost_s.shape
    budgets = np.arange(1, options + 1)
    return Problem(**{"steps": steps, "budgets": budgets, "arc_cost_s": cost_s} | changes)


def problem_with(closed_form):
    """A problem that carries closed-form terms and arcs of no cost."""
    steps = closed_form.miss_share.size
    return problem_of(np.zeros((2, 1, 1, steps, steps + 1)), closed_form=closed_form)


def uniform(problem, **options):
    """Solve with the uniform formulation."""
    return solve(problem, formulation=Formulation.UNIFORM, **options)


def closed_form(problem):
    """Solve with the closed form."""
    return solve(problem, formulation=Formulation.CLOSED_FORM)


def fits(problem, option):
    """Whether every layer can have this budget."""
    if problem.memory_bytes is None:
        return True
    slots = sum(int(problem.budgets[option]) for _ in range(problem.layers))
    return slots * problem.expert_bytes <= problem.memory_bytes


def walked_s(problem, interval, option):
    """Seconds per block of an interval, walking every layer step by step."""
    total = [problem.fixed_s]
    for layer in range(problem.layers):
        chosen_at = 0
        for step in range(1, problem.steps + 1):
            if step % interval == 0 or step == problem.steps:
                total.append(float(problem.arc_cost_s[layer, option, 0, chosen_at, step]))
                chosen_at = step
    return math.fsum(total)


def enumerated_s(problem):
    """Seconds per block of every (interval, option) that fits."""
    options = [k for k in range(problem.budgets.size) if fits(problem, k)]
    return {
        (interval, k): walked_s(problem, interval, k)
        for interval, k in product(range(1, problem.steps + 1), options)
    }


def shortest_s(problem):
    """Seconds per block if every layer took its own cheapest path at its own budget."""
    total = problem.fixed_s
    for layer in range(problem.layers):
        graph = nx.MultiDiGraph()
        for option, _, start, end in np.ndindex(problem.arc_cost_s.shape[1:]):
            if start < end and fits(problem, option):
                cost = problem.arc_cost_s[layer, option, 0, start, end]
                graph.add_edge((option, start), (option, end), weight=float(cost))
                graph.add_edge("start", (option, 0), weight=0.0)
                graph.add_edge((option, problem.steps), "end", weight=0.0)
        total += nx.shortest_path_length(graph, "start", "end", weight="weight")
    return total


# uniform: optimality


@few
@given(problems())
def test_uniform_is_the_best_of_all_enumerated_intervals_and_budgets(problem):
    solution = uniform(problem, gap=0.0)
    choices = enumerated_s(problem)
    if not choices:
        assert solution.status is Status.INFEASIBLE
        return

    option = problem.budgets.tolist().index(solution.budget[0])
    assert solution.status is Status.OPTIMAL
    assert solution.objective_s == pytest.approx(min(choices.values()), rel=1e-9, abs=1e-12)
    assert solution.objective_s == pytest.approx(choices[solution.interval, option], abs=1e-12)


@few
@given(problems(limited=st.just(False)), st.floats(0.0, 0.5))
def test_the_objective_is_never_below_the_bound_nor_the_gap_above_what_was_asked(problem, gap):
    solution = uniform(problem, gap=gap)

    assert solution.objective_s >= solution.bound_s
    assert solution.gap <= gap + ROUNDING
    expected = (solution.objective_s - solution.bound_s) / (solution.objective_s or 1.0)
    assert solution.gap == expected


@few
@given(problems(limited=st.just(False)))
def test_separate_shortest_paths_per_layer_are_never_slower_than_uniform(problem):
    assert shortest_s(problem) <= uniform(problem).objective_s * (1 + ROUNDING)


@few
@given(problems(), st.integers(0, 5))
def test_more_memory_is_never_slower(problem, more_slots):
    if problem.memory_bytes is None:
        return
    more_bytes = problem.memory_bytes + more_slots * problem.expert_bytes
    roomier = dataclasses.replace(problem, memory_bytes=more_bytes)
    less, more = uniform(problem), uniform(roomier)

    if less.status is Status.OPTIMAL:
        assert more.objective_s <= less.objective_s


@few
@given(problems(), st.integers(-20, 20))
def test_counting_time_in_another_unit_changes_no_choice(problem, exponent):
    scale = 2.0**exponent
    scaled = dataclasses.replace(
        problem, arc_cost_s=problem.arc_cost_s * scale, fixed_s=problem.fixed_s * scale
    )
    plain, other = uniform(problem), uniform(scaled)

    assert (other.interval, other.budget) == (plain.interval, plain.budget)
    if plain.objective_s is not None:
        assert other.objective_s == pytest.approx(plain.objective_s * scale)


# uniform: the shape of the answer


@few
@given(problems())
def test_an_answer_names_every_layer_and_stays_within_memory(problem):
    solution = uniform(problem)
    if solution.status is Status.INFEASIBLE:
        return

    steps = tuple(range(0, problem.steps, solution.interval))
    assert solution.refresh_steps == (steps,) * problem.layers
    assert len(solution.budget) == problem.layers
    assert set(solution.budget) <= set(problem.budgets.tolist())
    if problem.memory_bytes is not None:
        assert sum(solution.budget) * problem.expert_bytes <= problem.memory_bytes


@few
@given(problems(limited=st.just(False)))
def test_the_curve_is_every_interval_at_the_chosen_budget(problem):
    solution = uniform(problem)
    option = problem.budgets.tolist().index(solution.budget[0])

    expected = [walked_s(problem, t, option) for t in range(1, problem.steps + 1)]
    assert solution.cost_by_interval_s == pytest.approx(expected)
    assert solution.cost_by_interval_s[solution.interval - 1] == solution.objective_s


@few
@given(problems())
def test_a_second_run_differs_in_seconds_only(problem):
    first, second = uniform(problem), uniform(problem)

    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)


@few
@given(st.integers(1, 6), st.integers(1, 3), st.floats(1e-6, 1e3))
def test_equal_choices_go_to_the_longest_interval_then_the_smallest_budget(steps, options, step_s):
    start, end = np.indices((steps, steps + 1))
    cost_s = np.broadcast_to((end - start) * step_s, (2, options, 1, steps, steps + 1))
    solution = uniform(problem_of(np.abs(cost_s)))

    assert (solution.interval, solution.budget) == (steps, (1, 1))


def test_arcs_of_no_cost_are_a_tie():
    solution = uniform(problem_of(np.zeros((2, 2, 1, 4, 5))))

    assert (solution.interval, solution.budget, solution.gap) == (4, (1, 1), 0.0)
    assert solution.objective_s == 0.0


def test_one_step_one_layer_one_budget_refreshes_at_the_block_start():
    solution = uniform(problem_of(np.full((1, 1, 1, 1, 2), 3.0), fixed_s=2.0))

    assert (solution.interval, solution.refresh_steps, solution.budget) == (1, ((0,),), (1,))
    assert (solution.objective_s, solution.bound_s, solution.gap) == (5.0, 5.0, 0.0)


def test_costs_of_arcs_that_go_back_are_ignored():
    cost_s = np.where(np.tri(3, 4, dtype=bool), np.nan, 1.0)[None, None, None]

    assert uniform(problem_of(cost_s)).objective_s == 1.0


# uniform: memory


@few
@given(problems(limited=st.just(True)))
def test_infeasible_names_the_smallest_memory_and_that_memory_does(problem):
    tight = dataclasses.replace(
        problem, memory_bytes=problem.memory_of(int(problem.budgets[0])) - 1
    )
    solution = uniform(tight)
    named_bytes = int(re.search(r"needs (\d+) bytes", solution.message)[1])

    assert solution.status is Status.INFEASIBLE
    assert solution.objective_s is solution.bound_s is solution.gap is solution.interval is None
    assert (solution.budget, solution.refresh_steps) == ((), ())
    enough = uniform(dataclasses.replace(problem, memory_bytes=named_bytes))
    assert enough.status is Status.OPTIMAL
    assert set(enough.budget) == {int(problem.budgets[0])}


# uniform: the backend


def big_problem():
    """A problem of 20 steps with noise for costs."""
    return problem_of(np.random.default_rng(5).random((4, 3, 1, 20, 21)))


def test_a_run_cut_off_by_its_time_limit_is_feasible_and_never_optimal():
    solution = uniform(big_problem(), time_limit_s=1e-6)

    assert solution.status is Status.FEASIBLE
    assert solution.objective_s >= solution.bound_s
    assert "without a proof" in solution.message


def test_a_run_cut_off_where_nothing_fits_is_infeasible():
    problem = dataclasses.replace(big_problem(), expert_bytes=1, memory_bytes=3)

    assert uniform(problem, time_limit_s=1e-6).status is Status.INFEASIBLE


def ended(monkeypatch, sol_status, *, taking=None):
    """Make CBC end with this status and with this binary at 1."""

    def pretend(_, model):
        model.assignVarsVals({v.name: float(v.name == taking) for v in model.variables()})
        model.assignStatus(pulp.LpStatusOptimal, sol_status)

    monkeypatch.setattr(pulp.COIN_CMD, "actualSolve", pretend)


def test_an_incumbent_that_pulp_calls_optimal_is_reported_feasible(monkeypatch):
    ended(monkeypatch, pulp.LpSolutionIntegerFeasible, taking="x_0")

    assert uniform(big_problem()).status is Status.FEASIBLE


@pytest.mark.parametrize(
    ("sol_status", "taking", "sentence"),
    [
        (pulp.LpSolutionOptimal, "x_0", "but a listed choice takes"),
        (pulp.LpSolutionOptimal, None, "breaks a constraint"),
        (pulp.LpSolutionInfeasible, None, "found no answer, but a listed choice"),
        (pulp.LpSolutionUnbounded, None, "Unbounded"),
    ],
)
def test_a_backend_that_contradicts_the_enumeration_is_an_error(
    monkeypatch, sol_status, taking, sentence
):
    ended(monkeypatch, sol_status, taking=taking)

    with pytest.raises(BackendError, match=sentence):
        uniform(big_problem())


def test_the_backend_prints_nothing_and_leaves_no_file(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    uniform(big_problem())

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_missing_backend_is_one_sentence_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(tmp_path / "none"))

    with pytest.raises(BackendError, match="could not run"):
        uniform(big_problem())
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_with_a_blank_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    with pytest.raises(BackendError, match="TMPDIR"):
        uniform(big_problem())


def test_a_model_of_llada2_flash_size_stays_small():
    solution = uniform(problem_of(np.random.default_rng(1).random((31, 6, 1, 32, 33))))

    assert solution.status is Status.OPTIMAL
    assert (solution.variables, solution.constraints) == (192, 1)


# closed form


def direct_s(given_terms, interval):
    """Evaluate the paper's Eq. 5 and Eq. 6 as printed."""
    steps = given_terms.miss_share.size
    changed = 1 - (1 - given_terms.drift) ** interval
    io_s = given_terms.promotion_s * (given_terms.budget * steps / interval) * changed
    share = float(given_terms.miss_share[interval - 1])
    return io_s + given_terms.miss_s * steps * given_terms.budget * share


@few
@given(terms())
def test_the_closed_form_is_the_least_of_the_papers_equations(given_terms):
    solution = closed_form(problem_with(given_terms))
    steps = given_terms.miss_share.size
    curve = [direct_s(given_terms, interval) for interval in range(1, steps + 1)]

    assert solution.status is Status.OPTIMAL
    assert solution.cost_by_interval_s == pytest.approx(curve, rel=1e-9, abs=1e-9)
    assert solution.objective_s == pytest.approx(min(curve[: max(1, steps - 1)]), abs=1e-9)
    assert solution.objective_s == solution.cost_by_interval_s[solution.interval - 1]
    assert (solution.bound_s, solution.gap) == (solution.objective_s, 0.0)
    assert solution.budget == (given_terms.budget,) * 2


def interval_of(*, steps=32, promotion_s=1.0, miss_s=1.0, drift=0.1, share=0.0):
    """The closed form's interval where a share is missed per step of age."""
    given_terms = ClosedFormTerms(
        promotion_s=promotion_s,
        miss_s=miss_s,
        budget=8,
        drift=drift,
        miss_share=share * np.arange(1, steps + 1),
    )
    return closed_form(problem_with(given_terms)).interval


def test_without_drift_and_with_constant_misses_every_interval_ties_and_the_longest_wins():
    assert interval_of(drift=0.0, share=0.0) == 31


def test_free_misses_ask_for_the_longest_interval():
    assert interval_of(miss_s=0.0, share=0.01) == 31


def test_free_promotions_ask_for_a_refresh_every_step():
    assert interval_of(promotion_s=0.0, share=0.01) == 1


@pytest.mark.parametrize("root", [1, 2, 5, 11, 31])
def test_under_full_drift_the_best_interval_is_a_square_root(root):
    share = 1 / 1024

    assert interval_of(drift=1 - 1e-16, promotion_s=root**2 * share, share=share) == root


def test_the_closed_form_of_one_step_is_one():
    assert interval_of(steps=1) == 1


def test_the_closed_form_refuses_a_budget_that_does_not_fit():
    given_terms = ClosedFormTerms(
        promotion_s=1.0, miss_s=1.0, budget=8, drift=0.1, miss_share=np.zeros(4)
    )
    tight = dataclasses.replace(problem_with(given_terms), expert_bytes=10, memory_bytes=159)

    assert closed_form(tight).status is Status.INFEASIBLE
    assert "needs 160 bytes" in closed_form(tight).message
    assert closed_form(dataclasses.replace(tight, memory_bytes=160)).status is Status.OPTIMAL


# what is refused


def wrong_cost(value):
    """Costs with one entry out of range."""
    cost_s = np.ones((1, 2, 1, 3, 4))
    cost_s[0, 1, 0, 0, 2] = value
    return cost_s


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is 0, must be a whole number of at least 1"),
        ({"steps": 3.0}, r"steps is 3\.0, must be a whole number"),
        ({"steps": True}, "steps is True, must be a whole number"),
        (
            {"steps": 4},
            r"shape \[1, 2, 1, 3, 4\], must be \[layers, 2 options, first steps, 4 steps, 5\]",
        ),
        ({"budgets": np.array([], dtype=int)}, "budgets is .* ascending"),
        ({"budgets": np.array([2, 1])}, "budgets is .* ascending"),
        ({"budgets": np.array([1, 1])}, "budgets is .* ascending"),
        ({"budgets": np.array([0, 1])}, "budgets is .* ascending"),
        ({"budgets": np.array([1.0, 2.0])}, "budgets is .* whole numbers"),
        ({"budgets": np.array([1, 2**31])}, "budgets is .* whole numbers"),
        (
            {"arc_cost_s": wrong_cost(np.nan)},
            r"arc_cost_s\[0, 1, 0, 0, 2\] is nan, must be between",
        ),
        (
            {"arc_cost_s": wrong_cost(np.inf)},
            r"arc_cost_s\[0, 1, 0, 0, 2\] is inf, must be between",
        ),
        ({"arc_cost_s": wrong_cost(-1.0)}, r"arc_cost_s\[0, 1, 0, 0, 2\] is -1, must be between"),
        ({"arc_cost_s": np.ones((0, 2, 1, 3, 4))}, "at least one layer"),
        ({"arc_cost_s": np.ones(3)}, "arc_cost_s has 1 dimensions, must have 5"),
        ({"arc_cost_s": "abc"}, "arc_cost_s is not an array of numbers"),
        ({"fixed_s": math.nan}, "fixed_s is nan, must be seconds between 0"),
        ({"fixed_s": -1.0}, r"fixed_s is -1\.0, must be seconds between 0"),
        ({"expert_bytes": -1}, "expert_bytes is -1, must be a whole number of at least 0"),
        ({"memory_bytes": -1, "expert_bytes": 1}, "memory_bytes is -1, must be a whole number"),
        ({"memory_bytes": 9}, "memory_bytes is 9 but expert_bytes is 0, must be positive"),
    ],
)
def test_a_problem_out_of_range_is_refused_in_one_sentence(changes, sentence):
    good = {"steps": 3, "budgets": np.array([1, 2]), "arc_cost_s": np.ones((1, 2, 1, 3, 4))}

    with pytest.raises(ProblemError, match=sentence):
        Problem(**good | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"promotion_s": math.inf}, "promotion_s is inf, must be seconds"),
        ({"miss_s": "1"}, "miss_s is '1', must be seconds"),
        ({"budget": 0}, "budget is 0, must be a whole number of at least 1"),
        ({"drift": 1.0}, r"drift is 1\.0, must be at least 0 and below 1"),
        ({"drift": math.nan}, "drift is nan, must be at least 0 and below 1"),
        (
            {"miss_share": np.array([0.2, 0.1])},
            r"miss_share\[1\] is 0\.1 after 0\.2, must not fall",
        ),
        ({"miss_share": np.array([-0.1, 0.1])}, r"miss_share\[0\] is -0\.1, must be between"),
    ],
)
def test_closed_form_terms_out_of_range_are_refused_in_one_sentence(changes, sentence):
    share = np.array([0.1, 0.2])
    good = {"promotion_s": 1.0, "miss_s": 1.0, "budget": 4, "drift": 0.1, "miss_share": share}

    with pytest.raises(ProblemError, match=sentence):
        ClosedFormTerms(**good | changes)


def test_closed_form_terms_of_other_steps_are_refused():
    given_terms = ClosedFormTerms(
        promotion_s=1.0, miss_s=1.0, budget=4, drift=0.1, miss_share=np.zeros(2)
    )

    with pytest.raises(ProblemError, match=r"miss_share has 2 values, must have one per interval"):
        problem_of(np.ones((1, 1, 1, 3, 4)), closed_form=given_terms)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"formulation": "closed-form"}, "closed_form is None, must hold the paper's terms"),
        ({"formulation": "quadratic"}, "formulation is 'quadratic', must be one of: closed-form"),
        ({"backend": "abacus"}, "backend is 'abacus', must be one of: cbc"),
        ({"time_limit_s": 0.0}, r"time_limit_s is 0\.0, must be a finite number of seconds above"),
        ({"time_limit_s": math.inf}, "time_limit_s is inf, must be a finite number"),
        ({"gap": -0.1}, r"gap is -0\.1, must be at least 0 and below 1"),
        ({"gap": 1.0}, r"gap is 1\.0, must be at least 0 and below 1"),
        ({"gap": math.nan}, "gap is nan, must be at least 0 and below 1"),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(ProblemError, match=sentence):
        solve(problem_of(np.ones((1, 1, 1, 2, 3))), **{"formulation": "uniform"} | options)


def test_a_problem_keeps_its_own_read_only_arrays():
    cost_s = np.ones((1, 1, 1, 2, 3))
    problem = problem_of(cost_s)
    cost_s[:] = 7.0

    assert uniform(problem).objective_s == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.arc_cost_s[0, 0, 0, 0, 1] = 2.0


# the package's face


def test_every_public_name_is_sorted_documented_and_there():
    assert solver.__all__ == sorted(solver.__all__)
    for name in solver.__all__:
        assert getattr(solver, name).__doc__
        assert f"``{name}``" in solver.__doc__


def test_every_error_raised_on_purpose_is_a_solver_error():
    assert issubclass(ProblemError, SolverError)
    assert issubclass(ProblemError, ValueError)
    assert issubclass(BackendError, SolverError)
    assert issubclass(BackendError, RuntimeError)

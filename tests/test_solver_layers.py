"""`layered` and `free` against enumeration, shortest paths, the model over arcs and each other."""

import dataclasses
import re
from itertools import product

import networkx as nx
import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_oracles import arc_model, enumerated_s, problems, schedules

from solver import Backend, BackendError, Formulation, Problem, Status, objective_s, solve
from solver.backends import Ending, Limits, run
from solver.best import best_paths
from solver.intervals import refresh_steps
from solver.layers import build_options

few = settings(max_examples=30, deadline=None)
every = pytest.mark.parametrize("formulation", ["uniform", "layered", "free"])
both = pytest.mark.parametrize("formulation", [Formulation.LAYERED, Formulation.FREE])


def problem_of(cost_s, **changes):
    """A problem of these arc costs with budgets 1..K and slots of one byte."""
    _, options, _, steps, _ = cost_s.shape
    budgets = np.arange(1, options + 1)
    given_terms = {"steps": steps, "budgets": budgets, "arc_cost_s": cost_s, "expert_bytes": 1}
    return Problem(**given_terms | changes)


def options_of(problem, solution):
    """The index of each layer's option."""
    labels = problem.promotions or (None,) * problem.budgets.size
    options = list(zip(problem.budgets.tolist(), labels, strict=True))
    return [
        options.index(chosen) for chosen in zip(solution.budget, solution.promotions, strict=True)
    ]


def shortest_s(problem):
    """Seconds per block if every layer takes its own shortest path at its own option."""
    total_s = problem.fixed_s
    for layer in range(problem.layers):
        graph = nx.DiGraph()
        for option, first, start, end in np.ndindex(problem.arc_cost_s.shape[1:]):
            if first <= start < end:
                tail = "start" if start == first else (option, first, start)
                head = "end" if end == problem.steps else (option, first, end)
                cost_s = float(problem.arc_cost_s[layer, option, first, start, end])
                known = graph.get_edge_data(tail, head, {"weight": np.inf})
                graph.add_edge(tail, head, weight=min(cost_s, known["weight"]))
        if problem.never_s is not None:
            for option, cost_s in enumerate(problem.never_s[layer].tolist()):
                graph.add_edge("start", ("never", option), weight=cost_s)
                graph.add_edge(("never", option), "end", weight=0.0)
        total_s += nx.shortest_path_length(graph, "start", "end", weight="weight")
    return total_s


def arc_model_s(problem, backend=Backend.CBC):
    """The optimum of the model over arcs; infinity if it has none."""
    model = arc_model(problem)
    ending = run(model, Limits(time_limit_s=60.0, gap=0.0), backend=backend)
    if ending is Ending.INFEASIBLE:
        return np.inf
    assert ending is Ending.PROVED
    return pulp.value(model.objective)


def noise(layers=4, options=3, steps=8, *, seed=5, **changes):
    """A problem with noise for costs."""
    shape = (layers, options, 1, steps, steps + 1)
    return problem_of(np.random.default_rng(seed).random(shape), **changes)


# optimality


@every
@few
@given(problems())
def test_the_answer_is_the_best_of_all_enumerated_schedules_and_options(formulation, problem):
    solution = solve(problem, formulation=formulation, gap=0.0)
    least_s = enumerated_s(problem, Formulation(formulation))
    if least_s == np.inf:
        assert solution.status is Status.INFEASIBLE
        return

    again_s = objective_s(problem, options_of(problem, solution), solution.refresh_steps)
    assert solution.status is Status.OPTIMAL
    assert solution.objective_s == pytest.approx(least_s, rel=1e-9, abs=1e-12)
    assert solution.objective_s == pytest.approx(again_s, rel=1e-12)
    assert solution.bound_s <= least_s * (1 + 1e-12)


@few
@given(problems())
def test_the_model_over_arcs_has_the_same_optimum(problem):
    solution = solve(problem, formulation="free")
    least_s = np.inf if solution.objective_s is None else solution.objective_s

    assert arc_model_s(problem) == pytest.approx(least_s, abs=1e-5)


@few
@given(problems(limited=st.just(False), most_steps=6))
def test_free_layers_without_memory_take_their_shortest_paths(problem):
    solution = solve(problem, formulation="free")

    assert solution.objective_s == pytest.approx(shortest_s(problem), rel=1e-9, abs=1e-12)


@few
@given(problems())
def test_more_freedom_is_never_slower(problem):
    free, layered, uniform = (solve(problem, formulation=f).objective_s
                              for f in ("free", "layered", "uniform"))  # fmt: skip

    if uniform is None:
        assert free is layered is None
    else:
        assert free <= layered * (1 + 1e-10)
        assert layered <= uniform * (1 + 1e-10)


@both
@few
@given(problems())
def test_both_backends_give_the_same_answer(formulation, problem):
    cbc, highs = (solve(problem, formulation=formulation, backend=backend) for backend in Backend)

    assert dataclasses.replace(highs, seconds=0.0, backend=cbc.backend, message="") == (
        dataclasses.replace(cbc, seconds=0.0, message="")
    )


@few
@given(problems())
def test_both_backends_give_the_same_uniform_answer(problem):
    cbc, highs = (solve(problem, formulation="uniform", backend=backend) for backend in Backend)

    assert dataclasses.replace(highs, seconds=0.0, backend=cbc.backend, message="") == (
        dataclasses.replace(cbc, seconds=0.0, message="")
    )


@few
@given(problems(limited=st.just(False)))
def test_the_relaxation_over_all_arcs_without_memory_is_as_good_as_the_integer_model(problem):
    model = arc_model(problem)
    model.solve(pulp.HiGHS(msg=False, mip=False))

    expected = solve(problem, formulation="free").objective_s
    assert pulp.value(model.objective) == pytest.approx(expected, abs=1e-5)


# the shape of the answer


@both
@few
@given(problems())
def test_an_answer_names_every_layer_and_stays_within_memory(formulation, problem):
    solution = solve(problem, formulation=formulation)
    if solution.status is Status.INFEASIBLE:
        return

    allowed = schedules(problem, formulation)
    assert len(solution.budget) == len(solution.refresh_steps) == problem.layers
    assert all(refreshes in allowed for refreshes in solution.refresh_steps)
    assert set(solution.budget) <= set(problem.budgets.tolist())
    if problem.memory_bytes is not None:
        assert sum(solution.budget) * problem.expert_bytes <= problem.memory_bytes
    same = {refresh_steps(problem.steps, solution.interval or 1)} == set(solution.refresh_steps)
    assert same or solution.interval is None
    assert solution.cost_by_interval_s == ()


@both
@few
@given(problems(), st.integers(-20, 20))
def test_counting_time_in_another_unit_changes_no_choice(formulation, problem, exponent):
    scale, never_s = 2.0**exponent, problem.never_s
    scaled = dataclasses.replace(
        problem,
        arc_cost_s=problem.arc_cost_s * scale,
        never_s=None if never_s is None else never_s * scale,
    )
    plain, other = (solve(p, formulation=formulation) for p in (problem, scaled))

    assert (other.refresh_steps, other.budget) == (plain.refresh_steps, plain.budget)


@both
def test_equal_inputs_give_equal_outputs(formulation):
    first, second = (solve(noise(memory_bytes=7), formulation=formulation) for _ in range(2))

    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)


@both
@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("memory_bytes", [None, 8])
def test_arcs_of_no_cost_are_a_tie(formulation, backend, memory_bytes):
    problem = problem_of(np.zeros((3, 3, 1, 4, 5)), memory_bytes=memory_bytes)
    solution = solve(problem, formulation=formulation, backend=backend)

    assert (solution.refresh_steps, solution.budget) == (((0,),) * 3, (1, 1, 1))
    assert (solution.interval, solution.objective_s, solution.gap) == (4, 0.0, 0.0)


@both
def test_arcs_as_costly_as_they_are_long_are_a_tie(formulation):
    start, end = np.indices((10, 11))
    cost_s = np.broadcast_to(np.abs(end - start) * 0.1, (2, 2, 1, 10, 11))
    solution = solve(problem_of(cost_s), formulation=formulation)

    assert (solution.interval, solution.budget) == (10, (1, 1))


def test_of_tied_budgets_fewer_refreshes_win_over_fewer_slots():
    cost_s = np.ones((1, 2, 1, 2, 3))
    cost_s[0, 0, 0, 0, 2] = 9.0  # the small budget ties only with a refresh
    cost_s[0, 1, 0, 0, 2] = 2.0
    solution = solve(problem_of(cost_s), formulation="free")

    assert (solution.budget, solution.refresh_steps) == ((2,), ((0,),))


@every
def test_never_refreshing_wins_a_tie_and_has_no_interval(formulation):
    problem = problem_of(np.ones((2, 2, 1, 3, 4)), never_s=np.ones((2, 2)))
    solution = solve(problem, formulation=formulation)

    assert (solution.refresh_steps, solution.interval, solution.budget) == (((), ()), None, (1, 1))
    assert solution.objective_s == solution.bound_s == 2.0


@every
def test_of_equal_budgets_fewer_promotions_win_a_tie(formulation):
    problem = problem_of(
        np.ones((2, 3, 1, 3, 4)), budgets=np.array([4, 4, 4]), promotions=(1, 2, None)
    )
    solution = solve(problem, formulation=formulation)

    assert (solution.budget, solution.promotions) == ((4, 4), (1, 1))


@every
def test_a_limit_of_promotions_is_chosen_by_its_costs(formulation):
    cost_s = np.ones((1, 3, 1, 2, 3)) * np.array([3.0, 1.0, 2.0])[None, :, None, None, None]
    problem = problem_of(cost_s, budgets=np.array([4, 4, 8]), promotions=(1, None, 1))
    solution = solve(problem, formulation=formulation)

    assert (solution.budget, solution.promotions) == ((4,), (None,))


def test_a_schedule_pays_the_arcs_of_its_own_first_step():
    cost_s = np.full((1, 1, 2, 3, 4), 9.0)
    cost_s[0, 0, 0, 1, 3] = 0.0  # of schedules that start at 0: not to be had from step 1
    cost_s[0, 0, 1, 1, 3] = 4.0
    solution = solve(problem_of(cost_s), formulation="free")

    assert (solution.refresh_steps, solution.objective_s) == (((1,),), 4.0)
    assert solve(problem_of(cost_s), formulation="layered").objective_s == 9.0


def test_layers_that_differ_have_no_common_interval():
    cost_s = np.ones((2, 1, 1, 3, 4))
    cost_s[1, 0, 0, 0, 3] = 9.0
    solution = solve(problem_of(cost_s), formulation="layered")

    assert solution.refresh_steps == ((0,), (0, 2))
    assert solution.interval is None


def test_free_steps_need_not_be_multiples():
    cost_s = np.full((1, 1, 1, 4, 5), 9.0)
    cost_s[0, 0, 0, [0, 1], [1, 4]] = 1.0
    solution = solve(problem_of(cost_s), formulation="free")

    assert (solution.refresh_steps, solution.interval) == (((0, 1),), None)
    assert solution.objective_s == 2.0


@both
def test_one_step_one_layer_one_budget_refreshes_at_the_block_start(formulation):
    solution = solve(
        problem_of(np.full((1, 1, 1, 1, 2), 3.0), fixed_s=2.0), formulation=formulation
    )

    assert (solution.interval, solution.refresh_steps, solution.budget) == (1, ((0,),), (1,))
    assert (solution.objective_s, solution.bound_s, solution.gap) == (5.0, 5.0, 0.0)


@both
@pytest.mark.parametrize("backend", Backend)
def test_one_step_or_one_layer_or_one_budget_is_no_special_case(formulation, backend):
    for shape in product((1, 2), (1, 2), (1, 3)):
        problem = noise(*shape)
        solution = solve(problem, formulation=formulation, backend=backend, gap=0.0)

        assert solution.objective_s == pytest.approx(enumerated_s(problem, formulation))


# memory


@both
@pytest.mark.parametrize("backend", Backend)
def test_memory_exactly_enough_is_enough(formulation, backend):
    cost_s = np.ones((3, 2, 1, 2, 3))
    cost_s[:, 0] = [[[[9.0]]], [[[8.0]]], [[[5.0]]]]  # the last layer suffers least at one slot
    tight = problem_of(cost_s, memory_bytes=5)
    solution = solve(tight, formulation=formulation, backend=backend)

    assert (solution.budget, solution.objective_s) == ((2, 2, 1), 7.0)
    roomier = dataclasses.replace(tight, memory_bytes=6)
    assert solve(roomier, formulation=formulation, backend=backend).budget == (2, 2, 2)


@both
@few
@given(problems(limited=st.just(True)))
def test_infeasible_names_the_smallest_memory_and_that_memory_does(formulation, problem):
    smallest_bytes = problem.memory_of(int(problem.budgets[0]))
    tight = dataclasses.replace(problem, memory_bytes=smallest_bytes - 1)
    solution = solve(tight, formulation=formulation)
    named_bytes = int(re.search(r"needs (\d+) bytes", solution.message)[1])

    assert solution.status is Status.INFEASIBLE
    assert solution.objective_s is solution.bound_s is solution.gap is solution.interval is None
    assert (solution.budget, solution.refresh_steps) == ((), ())
    enough = dataclasses.replace(problem, memory_bytes=named_bytes)
    answer = solve(enough, formulation=formulation)
    assert answer.status is Status.OPTIMAL
    assert set(answer.budget) == {int(problem.budgets[0])}


# the backends


@both
@pytest.mark.parametrize("backend", Backend)
def test_a_run_cut_off_by_its_time_limit_is_never_called_optimal(formulation, backend):
    problem = noise(31, 6, 8, memory_bytes=90)
    proved = solve(problem, formulation=formulation, gap=0.0)
    cut = solve(problem, formulation=formulation, backend=backend, time_limit_s=1e-6)

    assert cut.status in {Status.FEASIBLE, Status.OPTIMAL}
    assert cut.bound_s <= proved.objective_s <= cut.objective_s
    assert (cut.status is Status.FEASIBLE) == ("without a proof" in cut.message)


@pytest.mark.parametrize("backend", Backend)
@pytest.mark.parametrize("formulation", ["uniform", "layered", "free"])
def test_a_backend_prints_nothing(backend, formulation, capfd):
    solve(noise(memory_bytes=7), formulation=formulation, backend=backend)

    assert capfd.readouterr() == ("", "")


def test_a_missing_highs_is_one_sentence(monkeypatch):
    def missing(*_):
        raise pulp.PulpSolverError("HiGHS: Not Available")

    monkeypatch.setattr(pulp.HiGHS, "actualSolve", missing)

    with pytest.raises(BackendError, match=r"HIGHS could not run .* reinstall PuLP and highspy"):
        solve(noise(), formulation="free", backend="highs")


def ended(monkeypatch, sol_status, *, taking=()):
    """Make CBC end with this status and with these binaries at 1."""

    def pretend(_, model):
        model.assignVarsVals({v.name: float(v.name in taking) for v in model.variables()})
        model.assignStatus(pulp.LpStatusOptimal, sol_status)

    monkeypatch.setattr(pulp.COIN_CMD, "actualSolve", pretend)


@both
@pytest.mark.parametrize(
    ("sol_status", "taking", "sentence"),
    [
        (pulp.LpSolutionOptimal, ("x_0", "x_2"), "but a listed choice takes 2 s"),
        (pulp.LpSolutionOptimal, ("x_1", "x_3"), "breaks a constraint"),  # over memory
        (pulp.LpSolutionOptimal, ("x_0",), "breaks a constraint"),
        (pulp.LpSolutionInfeasible, (), "found no answer, but a listed choice takes 2 s"),
        (pulp.LpSolutionUnbounded, (), "Unbounded"),
    ],
)
def test_a_backend_that_contradicts_the_listed_choices_is_an_error(
    monkeypatch, formulation, sol_status, taking, sentence
):
    cost_s = np.ones((2, 2, 1, 1, 2))
    cost_s[0, 0] = 5.0
    ended(monkeypatch, sol_status, taking=taking)

    with pytest.raises(BackendError, match=sentence):
        solve(problem_of(cost_s, memory_bytes=3), formulation=formulation)


@both
def test_a_backend_that_answers_where_nothing_fits_is_an_error(monkeypatch, formulation):
    ended(monkeypatch, pulp.LpSolutionOptimal, taking=("x_0", "x_3"))

    with pytest.raises(BackendError, match="breaks a constraint"):
        solve(noise(2, memory_bytes=1), formulation=formulation)


@pytest.mark.parametrize(
    ("sol_status", "status"),
    [
        (pulp.LpSolutionIntegerFeasible, Status.FEASIBLE),
        (pulp.LpSolutionNoSolutionFound, Status.FEASIBLE),
    ],
)
@both
def test_a_backend_that_stopped_leaves_the_listed_answer(
    monkeypatch, formulation, sol_status, status
):
    expected = solve(noise(memory_bytes=7), formulation=formulation)
    ended(monkeypatch, sol_status)
    solution = solve(noise(memory_bytes=7), formulation=formulation)

    assert solution.status is status
    assert (solution.budget, solution.refresh_steps) == (expected.budget, expected.refresh_steps)


# size


@both
@pytest.mark.parametrize("backend", Backend)
def test_a_model_of_llada2_flash_size_is_one_binary_per_layer_and_option(formulation, backend):
    problem = noise(31, 6, 32, seed=1, memory_bytes=110)
    solution = solve(problem, formulation=formulation, backend=backend)

    assert solution.status is Status.OPTIMAL
    assert (solution.variables, solution.constraints) == (186, 32)
    assert solution.seconds < 15


def test_the_reduced_model_has_the_stated_optimum():
    problem = noise(2, 2, 1, memory_bytes=3)
    cost_s = problem.arc_cost_s[:, :, 0, 0, 1]
    model = build_options(problem, best_paths((problem.arc_cost_s, None))).model
    run(model, Limits(time_limit_s=60.0, gap=0.0), backend=Backend.CBC)

    pairs = [(a, b) for a, b in product(range(2), repeat=2) if a + b < 2]
    least_s = min(cost_s[0, a] + cost_s[1, b] for a, b in pairs)
    assert pulp.value(model.objective) == pytest.approx(least_s, abs=1e-6)


@both
def test_cbc_keeps_an_optimum_that_its_preprocessing_cuts_off(formulation):
    """With preprocessing the bundled CBC calls 2 s optimal here; 4 + 1 slots take 1 s."""
    costs = np.zeros((2, 3, 1, 1, 2))
    costs[:, 0, 0, 0, 1] = 2.0, 1.0
    problem = Problem(
        steps=1, budgets=np.array([1, 4, 7]), arc_cost_s=costs, expert_bytes=1, memory_bytes=6
    )

    solution = solve(problem, formulation=formulation, backend="cbc")

    assert (solution.objective_s, solution.budget) == (1.0, (4, 1))

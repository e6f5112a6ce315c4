"""Search: solve, simulate, and solve again from costs around what was found."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from solver import Backend, Formulation, Solution
from tidesim.engines import Engine, Promotion
from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.optimize.answer import Optimised, Round
from tidesim.optimize.file import layers_of, schedule_of
from tidesim.optimize.job import ROUNDS, Job, Search, in_memory, known, splits
from tidesim.optimize.problem import costs_around, problem_of, proved_anew, solution_of
from tidesim.policies.scheduled import Scheduled
from tidesim.simulate import Case, SimulationResult
from tidesim.simulate.fast import run_fast
from tidesim.simulate.run import check_promotion
from tidesim.trace.passes import Trace

WORTH_A_ROUND = 1e-3  # improvement below which the search ends
EXACT = 1e-9  # difference of objective and simulation that is rounding


def optimize(
    trace: Trace,
    profile: HardwareProfile,
    *,
    engine: str | Engine = "tidesim",
    budget: int | None = None,
    memory_bytes: int | None = None,
    sizes: ModelSpec | None = None,
    formulation: str = "uniform",
    backend: str = "cbc",
    time_limit_s: float = 60.0,
    gap: float = 1e-3,
    promotion: str = "blocking",
    most_promotions: Sequence[int | None] = (None,),
    copies_per_step: float | None = None,
    risk: float = 0.0,
    rounds: int = ROUNDS,
    trace_name: str = "",
) -> Optimised:
    """Choose the refresh schedule of tide that is fastest on a trace's training requests.

    Parameters
    ----------
    trace : Trace
        Its requests of split ``train`` give the costs, all of them where none is marked so; it is
        held in memory meanwhile.
    profile : HardwareProfile
    engine : str or Engine
    budget : int or None
        Slots per mixture layer.
    memory_bytes : int or None
        Instead of `budget`: GPU memory to use. A handful of budgets up to the largest that fits are
        tried, and of larger ones where layers may differ; the closed form takes the largest that
        fits, as the TIDE authors' code does.
    sizes : ModelSpec or None
        Let the trace's routing drive this model's sizes: a what-if, and labelled so.
    formulation, backend : str
        As `solver.solve`.
    time_limit_s, gap : float
        As `solver.solve`, of each solution.
    promotion : str
        ``blocking`` or ``background``.
    most_promotions : sequence of (int or None)
        Limits to choose from for the promotions of a refresh; None is no limit.
    copies_per_step : float or None
        Most promotions of a denoise pass, all layers together, on average over blocks.
    risk : float
        Weight of the slowest training request's seconds per block beside the mean of all.
    rounds : int
        Most solutions. Residents left over from earlier refreshes depend on the schedule, so costs
        are taken anew around the best one so far and solved again, until that is less than 0.1 %
        faster.
    trace_name : str
        Name of the trace for the schedule file.

    Raises
    ------
    SettingError
        An option is unknown, out of range, missing or contradicts another.
    CapacityError
        The model does not fit; names the smallest memory that would do.
    FormatError
        The profile or the trace lacks what the run needs.
    """
    search = Search(
        formulation=known(Formulation, formulation, what="formulation"),
        backend=known(Backend, backend, what="backend"),
        time_limit_s=time_limit_s,
        gap=gap,
        promotion=known(Promotion, promotion, what="promotion"),
        most_promotions=tuple(most_promotions),
        copies_per_step=copies_per_step,
        risk=risk,
        rounds=rounds,
    )
    whole = in_memory(trace)
    training, heldout = splits(whole)
    job = Job(
        whole=whole,
        training=training,
        heldout=heldout,
        profile=profile,
        engine=engine,
        sizes=sizes,
        budget=budget,
        memory_bytes=memory_bytes,
        search=search,
        trace_name=trace_name,
    )
    return run_job(job)


def run_job(job: Job) -> Optimised:
    """Search for the schedule of a job; see `optimize`."""
    case = job.fixed(interval=1)
    _check_background(case, job.search)
    learning = replace(case, trace=job.training)
    options, search = job.options(case), job.search
    rounds: list[Round] = []
    best: Round | None = None
    proof: Solution | None = None
    while len(rounds) < search.rounds:
        started = perf_counter()
        around = None if best is None else best.solution.refresh_steps
        costs = costs_around(learning, options, search, around=around)
        problem = problem_of(costs, learning, search, memory_bytes=job.memory_bytes)
        solution = solution_of(problem, search)
        training = run_fast(replace(case_of(job, solution), trace=job.training))
        found = Round(
            costs=costs,
            solution=solution,
            training=training,
            simulated_s=_simulated_s(training, job),
            seconds=perf_counter() - started,
        )
        rounds.append(found)
        if best is None or found.simulated_s < best.simulated_s * (1 - WORTH_A_ROUND):
            best, proof = found, solution
            if search.formulation is Formulation.CLOSED_FORM or _is_exact(found):
                break
            continue
        # The best so far stays; these are the costs around it, so they price it as it is.
        proof = proved_anew(best.solution, problem, solution, gap=search.gap)
        break
    assert best is not None
    assert proof is not None
    return _answer(job, best, proof, rounds=tuple(rounds))


def _check_background(case: Case, search: Search) -> None:
    """Refuse promotion in the background where an engine hides no copy.

    Raises
    ------
    SettingError
        The engine runs one operation after another, or has no promotion in the background.
    """
    engine = case.setup.engine
    if search.promotion is Promotion.BACKGROUND and not engine.overlap:
        raise SettingError(
            f"engine {engine.name} runs one operation after another, so that no copy is hidden in "
            "the background; use blocking promotion or another engine"
        )
    check_promotion(engine, search.promotion)


def case_of(job: Job, solution: Solution) -> Case:
    """Return a run of all requests under a solution."""
    policy = partial(Scheduled, layers=layers_of(solution))
    return job.case(policy, interval=solution.interval, budget=max(solution.budget))


def _is_exact(found: Round) -> bool:
    """Whether the objective is the simulation, so that costs around the schedule are the same."""
    assert found.solution.objective_s is not None
    return abs(found.solution.objective_s / found.simulated_s - 1) < EXACT


def _simulated_s(result: SimulationResult, job: Job) -> float:
    """Return mean seconds per block, plus the risk's share of the slowest request's."""
    mean_s, risk = result.seconds_per_block, job.search.risk
    return mean_s + risk * max(request_seconds(result, job)) if risk else mean_s


def request_seconds(result: SimulationResult, job: Job) -> list[float]:
    """Return the seconds per block of every training request, in order."""
    keys = [(pass_.request, pass_.block) for pass_ in job.training]
    number = {info.request: n for n, info in enumerate(job.training.meta.requests)}
    where = np.array([number[request] for request, _ in keys])
    seconds = np.bincount(where, weights=result.pass_s, minlength=len(number))
    decoded = {key for key in keys if key[1] >= 0}
    blocks = np.bincount([number[request] for request, _ in sorted(decoded)], minlength=len(number))
    return [float(s / b) for s, b in zip(seconds, blocks, strict=True) if b]


def _answer(job: Job, best: Round, proof: Solution, *, rounds: tuple[Round, ...]) -> Optimised:
    case = case_of(job, proof)
    heldout = None if job.heldout is None else run_fast(replace(case, trace=job.heldout))
    costs = rounds[-1].costs
    return Optimised(
        schedule=schedule_of(
            job, case, proof, steps=costs.steps, training=best.training, heldout=heldout
        ),
        solution=proof,
        costs=costs,
        training=best.training,
        heldout=heldout,
        simulated_s=best.simulated_s,
        rounds=rounds,
        job=job,
    )

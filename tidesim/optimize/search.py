"""Search: solve, simulate, and solve again from costs around what was found."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

from solver import Backend, Formulation, Problem, Solution
from tidesim.costs import CostTable, Option
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
from tidesim.trace.passes import Kind, Trace

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

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))  # one to train on, one held out
    >>> settings = {"budget": 16, "sizes": load_model_spec("llada2.0-mini")}
    >>> solved = optimize(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> str(solved.solution.status), solved.solution.interval, solved.heldout.misses
    ('optimal', 1, 3289)
    >>> abs(solved.difference) < 1e-9  # the objective is the simulated time
    True
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
    last = False  # whether only the proof is wanting
    while len(rounds) < search.rounds:
        around = None if best is None else best.solution.refresh_steps
        costs, problem, found = _round(job, learning, options, around=around)
        rounds.append(found)
        priced = (
            None
            if best is None
            else proved_anew(best.solution, problem, found.solution, gap=search.gap)
        )
        if best is not None and priced is not None:
            gain = 1 - found.simulated_s / best.simulated_s
            if last or gain <= 0:
                proof = priced
                break
            last = gain < WORTH_A_ROUND
        best, proof = found, found.solution
        if search.formulation is Formulation.CLOSED_FORM or _is_exact(found):
            break
    assert best is not None
    assert proof is not None
    return _answer(job, best, proof, costs, rounds=tuple(rounds))


def _round(
    job: Job,
    learning: Case,
    options: Sequence[Option],
    *,
    around: Sequence[tuple[int, ...]] | None,
) -> tuple[CostTable, Problem, Round]:
    """Take costs around a schedule, solve and simulate."""
    started, search = perf_counter(), job.search
    costs = costs_around(learning, options, search, around=around)
    problem = problem_of(costs, learning, search, memory_bytes=job.memory_bytes)
    solution = solution_of(problem, search)
    case = replace(case_of(job, solution), trace=job.training)
    training = run_fast(case)
    found = Round(
        solution=solution,
        training=training,
        simulated_s=_simulated_s(training, case, risk=search.risk),
        seconds=perf_counter() - started,
    )
    return costs, problem, found


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


def _simulated_s(result: SimulationResult, case: Case, *, risk: float) -> float:
    """Return mean seconds per block, plus the risk's share of the slowest request's."""
    mean_s = result.seconds_per_block
    return mean_s + risk * max(request_seconds(result, case)) if risk else mean_s


def request_seconds(result: SimulationResult, case: Case) -> list[float]:
    """Return the seconds per block of every request of a run, in order; those without blocks apart.

    Parameters
    ----------
    result : SimulationResult
        Of `case`.
    case : Case
    """
    seconds: dict[int, float] = {}
    blocks: dict[int, set[int]] = {}
    for pass_, pass_s in zip(case.passes(), result.pass_s.tolist(), strict=True):
        seconds[pass_.request] = seconds.get(pass_.request, 0.0) + pass_s
        if pass_.kind is Kind.DENOISE:
            blocks.setdefault(pass_.request, set()).add(pass_.block)
    return [seconds[request] / len(decoded) for request, decoded in blocks.items()]


def _answer(
    job: Job, best: Round, proof: Solution, costs: CostTable, *, rounds: tuple[Round, ...]
) -> Optimised:
    case = case_of(job, proof)
    heldout = None if job.heldout is None else run_fast(replace(case, trace=job.heldout))
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

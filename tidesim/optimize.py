"""Optimise: costs from training requests, a proved choice, and what it gives on other requests."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np

import tidesim
from solver import (
    Backend,
    Formulation,
    Problem,
    Solution,
    SolverError,
    Status,
    solve,
)
from tidesim.closed_form import closed_form_terms
from tidesim.costs import CostTable, arc_costs
from tidesim.engines import Engine
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile, describe
from tidesim.model_spec import ModelSpec
from tidesim.policies.scheduled import Scheduled
from tidesim.schedule import (
    VERSION,
    LayerSchedule,
    Prediction,
    Predictions,
    Routing,
    Schedule,
    SolverReport,
    Source,
    StepMs,
    sizes_source,
)
from tidesim.simulate import Case, SimulationResult, prepare
from tidesim.simulate.fast import run_fast
from tidesim.trace.passes import Trace

BUDGET_OPTIONS = 5  # up to an equal share of the memory
MORE_OPTIONS = 3  # from there to twice as much, where layers may differ


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimised:
    """A schedule, how it was found, and its simulation.

    Attributes
    ----------
    schedule : Schedule
    solution : Solution
    costs : CostTable
        Of the training requests.
    training : SimulationResult
        The schedule on the requests its costs come from.
    heldout : SimulationResult or None
        The schedule on the others; None where the trace marks none.
    """

    schedule: Schedule
    solution: Solution
    costs: CostTable
    training: SimulationResult
    heldout: SimulationResult | None

    @property
    def difference(self) -> float | None:
        """Relative error of the objective against the simulation; None for the paper's terms.

        Not 0 where refreshes leave slots free (`CostTable.unfilled`): the simulated layer keeps old
        residents there, the objective does not count them.
        """
        if self.solution.formulation is Formulation.CLOSED_FORM:
            return None
        assert self.solution.objective_s is not None
        return self.solution.objective_s / self.training.seconds_per_block - 1

    @property
    def cost_by_interval_s(self) -> tuple[float, ...]:
        """The objective of each interval 1..T at the chosen budget; empty where layers differ."""
        return self.solution.cost_by_interval_s

    def to_json(self) -> dict[str, Any]:
        """Return the answer of ``tidesim solve``, keys stable."""
        solution, heldout = self.solution, self.heldout
        return {
            "status": str(solution.status),
            "interval": solution.interval,
            "budget": solution.budget[0] if len(set(solution.budget)) == 1 else None,
            "budgets": list(solution.budget),
            "refresh_steps": [list(steps) for steps in solution.refresh_steps],
            "objective_s": solution.objective_s,
            "bound_s": solution.bound_s,
            "gap": solution.gap,
            "seconds": solution.seconds,
            "formulation": str(solution.formulation),
            "backend": str(solution.backend),
            "train_tokens_per_s": self.training.tokens_per_s,
            "heldout_tokens_per_s": heldout.tokens_per_s if heldout else None,
            "simulated_s_per_block": self.training.seconds_per_block,
            "difference": self.difference,
            "unfilled": self.unfilled,
            "variables": solution.variables,
            "constraints": solution.constraints,
            "sizes": self.training.sizes,
            "provenance": self.training.provenance,
            "hardware": self.training.hardware,
            "message": solution.message,
        }

    @property
    def unfilled(self) -> float:
        """Share of refreshes at the chosen budgets that find fewer active experts than slots."""
        options = np.searchsorted(self.costs.budgets, self.solution.budget)
        return float(self.costs.unfilled[options].mean())


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
        As `solver.solve`.
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
    _check_option("formulation", formulation, Formulation)
    _check_option("backend", backend, Backend)
    whole = in_memory(trace)
    training, heldout = splits(whole)
    make_case = partial(
        prepare,
        whole,
        profile,
        engine=engine,
        sizes=sizes,
        popularity_from=training,
    )
    case = make_case(policy="tide", interval=1, budget=budget, memory_bytes=memory_bytes)
    learning = replace(case, trace=training)
    costs = arc_costs(learning, _budget_options(case, memory_bytes, formulation))
    try:
        problem = _problem(costs, learning, memory_bytes, formulation=formulation)
        solution = _solve(problem, formulation, backend, time_limit_s=time_limit_s, gap=gap)
    except SolverError as error:
        raise SettingError(str(error)) from error
    policy = partial(Scheduled, layers=_layers(solution))
    final = make_case(policy=policy, interval=solution.interval, budget=max(solution.budget))
    origin = Source(name=trace_name, sha256=whole.sha256, provenance=whole.meta.provenance)
    machine = _machine(profile)
    return _hand_over(final, solution, costs, parts=(training, heldout), sources=(origin, machine))


def in_memory(trace: Trace) -> Trace:
    """Return a trace whose passes are read and checked once, for work that reads them often."""
    return Trace(trace.meta, list(trace), sha256=trace.sha256)


def splits(trace: Trace) -> tuple[Trace, Trace | None]:
    """Return the training requests, all where none is marked so, and the held-out ones, if any."""
    marked = {info.split for info in trace.meta.requests}
    if "train" not in marked:
        return trace, None
    return trace.split("train"), trace.split("heldout") if "heldout" in marked else None


def _check_option(name: str, value: str, known: type[StrEnum]) -> None:
    if value not in set(known):
        raise SettingError(f"{name} {value!r} is not known; use one of: {', '.join(known)}")


def _budget_options(case: Case, memory_bytes: int | None, formulation: str) -> list[int]:
    """Return slots per layer to try; layers that differ may have more than an equal share."""
    share, least = case.setup.budget, case.spec.num_experts_per_tok
    if memory_bytes is None or formulation == Formulation.CLOSED_FORM:
        return [share]
    options = np.linspace(least, share, BUDGET_OPTIONS)
    if formulation in {Formulation.LAYERED, Formulation.FREE}:
        more = np.linspace(share, min(2 * share, case.spec.num_experts), MORE_OPTIONS)
        options = np.concatenate([options, more])
    return [int(option) for option in np.unique(options.round().astype(int))]


def _problem(
    costs: CostTable, case: Case, memory_bytes: int | None, *, formulation: str
) -> Problem:
    """Return the problem to solve; its memory is what is left for slots."""
    others = case.memory.total_bytes - case.memory.slots_bytes
    if memory_bytes is not None:
        free_percent = case.setup.engine.free_percent
        others += case.memory.kept_free_bytes(memory_bytes, free_percent)
    closed = formulation == Formulation.CLOSED_FORM
    return Problem(
        steps=costs.steps,
        budgets=costs.budgets,
        arc_cost_s=costs.arc_cost_s,
        fixed_s=costs.fixed_s,
        expert_bytes=case.spec.expert_bytes,
        memory_bytes=None if memory_bytes is None else memory_bytes - others,
        closed_form=closed_form_terms(case, case.setup.budget) if closed else None,
    )


def _solve(
    problem: Problem, formulation: str, backend: str, *, time_limit_s: float, gap: float
) -> Solution:
    solution = solve(
        problem,
        formulation=Formulation(formulation),
        backend=Backend(backend),
        time_limit_s=time_limit_s,
        gap=gap,
    )
    if solution.status is Status.INFEASIBLE:
        raise CapacityError(solution.message)
    return solution


def _hand_over(
    case: Case,
    solution: Solution,
    costs: CostTable,
    *,
    parts: tuple[Trace, Trace | None],
    sources: tuple[Source, Source],
) -> Optimised:
    """Simulate a solution on training and held-out requests, and write its schedule."""
    training, heldout = parts
    learnt = run_fast(replace(case, trace=training))
    tested = None if heldout is None else run_fast(replace(case, trace=heldout))
    predictions = Predictions(
        train=_prediction(learnt, training),
        heldout=_prediction(tested, heldout) if tested and heldout else None,
    )
    schedule = _schedule(
        case, solution, steps=costs.steps, sources=sources, predictions=predictions
    )
    return Optimised(
        schedule=schedule, solution=solution, costs=costs, training=learnt, heldout=tested
    )


def _machine(profile: HardwareProfile) -> Source:
    kinds = sorted({row.kind for row in describe(profile)})
    return Source(name=profile.name, sha256=profile.sha256, provenance=", ".join(kinds))


def _prediction(result: SimulationResult, requests: Trace) -> Prediction:
    return Prediction(
        requests=len(requests.meta.requests),
        tokens_per_s=result.tokens_per_s,
        seconds_per_block=result.seconds_per_block,
        step_ms=StepMs(**result.step_ms),
        bottleneck=result.bottleneck,
    )


def _schedule(
    case: Case,
    solution: Solution,
    *,
    steps: int,
    sources: tuple[Source, Source],
    predictions: Predictions,
) -> Schedule:
    model = case.trace.meta.model
    return Schedule(
        format="tidesim-schedule",
        version=VERSION,
        tool_version=tidesim.__version__,
        model=Routing(**{key: getattr(model, key) for key in Routing.model_fields}),
        sizes=sizes_source(case.spec),
        trace=sources[0],
        profile=sources[1],
        engine=case.setup.engine.name,
        policy="tide",
        settings={"interval": solution.interval},
        promotion="blocking",
        steps=steps,
        interval=solution.interval,
        layers=_layers(solution),
        memory_bytes=case.memory.total_bytes,
        predictions=predictions,
        solver=_report(solution),
    )


def _layers(solution: Solution) -> tuple[LayerSchedule, ...]:
    return tuple(
        LayerSchedule(budget=budget, refresh_steps=refreshed)
        for budget, refreshed in zip(solution.budget, solution.refresh_steps, strict=True)
    )


def _report(solution: Solution) -> SolverReport:
    objective_s, bound_s, gap = solution.objective_s, solution.bound_s, solution.gap
    assert objective_s is not None
    assert bound_s is not None
    assert gap is not None  # none is None where an answer exists
    return SolverReport(
        formulation=str(solution.formulation),
        backend=str(solution.backend),
        status=str(solution.status),
        objective_s=objective_s,
        bound_s=bound_s,
        gap=gap,
        seconds=solution.seconds,
    )

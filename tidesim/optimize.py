"""Optimise: costs from training requests, a proved choice, and what it gives on other requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import tidesim
from solver import (
    ClosedFormTerms,
    Formulation,
    Problem,
    Solution,
    SolverError,
    Status,
    refresh_steps,
    solve,
)
from tidesim.costs import Block, CostTable, LayerTimer, TrainingBlocks, arc_costs, busiest
from tidesim.engines import Engine
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile, describe
from tidesim.model_spec import ModelSpec
from tidesim.placement import FloatArray
from tidesim.schedule import (
    FORMAT,
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

BUDGET_OPTIONS = 5


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
        """The objective of each interval 1..T at the chosen budget."""
        return self.solution.cost_by_interval_s

    def to_json(self) -> dict[str, Any]:
        """Return the answer of ``tidesim solve``, keys stable."""
        solution, heldout = self.solution, self.heldout
        return {
            "status": str(solution.status),
            "interval": solution.interval,
            "budget": solution.budget[0],
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
            "unfilled": float(self.costs.unfilled[self._option]),
            "variables": solution.variables,
            "constraints": solution.constraints,
            "sizes": self.training.sizes,
            "provenance": self.training.provenance,
            "hardware": self.training.hardware,
            "message": solution.message,
        }

    @property
    def _option(self) -> int:
        return self.costs.budgets.tolist().index(self.solution.budget[0])


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
        tried; the closed form takes the largest, as the TIDE authors' code does.
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
    _check_formulation(formulation)
    whole = in_memory(trace)
    training, heldout = splits(whole)
    case = prepare(
        whole,
        profile,
        policy="tide",
        interval=1,
        budget=budget,
        memory_bytes=memory_bytes,
        engine=engine,
        sizes=sizes,
        popularity_from=training,
    )
    learning = replace(case, trace=training)
    options = _budget_options(case, memory_bytes, formulation)
    costs = arc_costs(learning, options)
    problem = _problem(costs, learning, memory_bytes, formulation=formulation)
    solution = _solve(problem, formulation, backend, time_limit_s=time_limit_s, gap=gap)
    final = prepare(
        whole,
        profile,
        policy="tide",
        interval=solution.interval,
        budget=solution.budget[0],
        engine=engine,
        sizes=sizes,
        popularity_from=training,
    )
    trained = run_fast(replace(final, trace=training))
    other = None if heldout is None else run_fast(replace(final, trace=heldout))
    results = Predictions(
        train=_prediction(trained, training),
        heldout=None if heldout is None or other is None else _prediction(other, heldout),
    )
    schedule = _schedule(final, solution, profile, results, steps=costs.steps, name=trace_name)
    return Optimised(
        schedule=schedule, solution=solution, costs=costs, training=trained, heldout=other
    )


def in_memory(trace: Trace) -> Trace:
    """Return a trace whose passes are read and checked once, for work that reads them often."""
    return Trace(trace.meta, list(trace), sha256=trace.sha256)


def splits(trace: Trace) -> tuple[Trace, Trace | None]:
    """Return the training requests, all where none is marked so, and the held-out ones, if any."""
    marked = {info.split for info in trace.meta.requests}
    if "train" not in marked:
        return trace, None
    return trace.split("train"), trace.split("heldout") if "heldout" in marked else None


def closed_form_terms(case: Case, budget: int) -> ClosedFormTerms:
    """Fit the terms of the paper's closed form to the requests of a case.

    - drift d: mean share of the B busiest experts that were not among them one step before.
    - miss share f(τ): share of token-expert pairs that residents of interval τ miss, over all
      denoise steps of all blocks, made non-decreasing by a running maximum.
    - C_IO: seconds of one expert's copy to the GPU, alone on the link.
    - C_CPU: the slope through the origin that fits C_CPU · B · f(τ) best, by least squares over
      τ = 1..T, to the CPU's mean seconds per step and layer (transfers included, nothing hidden).

    Raises
    ------
    SettingError, FormatError
        As `arc_costs`.

    Notes
    -----
    Source of the equations: TIDE, arXiv 2605.20179, equations 5 and 6. How the authors fit their
    terms is not published; this is ours.
    """
    blocks = TrainingBlocks.of(case)
    profile = _PaperProfile(case, budget, blocks.steps)
    for block in blocks:
        if block.steps:
            profile.add(block)
    share, cpu_s = profile.by_interval(blocks.steps)
    load = budget * share
    return ClosedFormTerms(
        promotion_s=profile.fast.promotion_s,
        miss_s=float(load @ cpu_s / (load @ load)) if load.any() else 0.0,
        budget=budget,
        drift=profile.drift,
        miss_share=share,
    )


class _PaperProfile:
    """Sums over blocks that the closed form's terms follow from, at one budget."""

    def __init__(self, case: Case, budget: int, steps: int) -> None:
        self._budget = budget
        self.fast = LayerTimer(case, budget).fast
        self._promoted = self._possible = self._layer_passes = 0
        self._missed, self._cpu_s = np.zeros((2, steps, steps))  # [last refresh, step]
        self._pairs = 0

    @property
    def drift(self) -> float:
        """d, kept below 1."""
        return min(self._promoted / max(self._possible, 1), 1 - 1e-12)

    def add(self, block: Block) -> None:
        """Add the steps of one block."""
        counts, resident = block.counts, busiest(block.counts, self._budget)
        self._promoted += int((resident[1:] & ~resident[:-1]).sum())
        self._possible += resident[1:, :, 0].size * self._budget
        first, later = np.triu_indices(len(block.steps))
        missed = counts[later] * ~resident[first]
        work = self.fast.work(
            np.zeros_like(missed),
            missed,
            tokens=np.array([[block.steps[step].tokens] for step in later]),
            shared_s=np.zeros(1),
        )
        self._missed[first, later] += missed.sum(axis=(1, 2))
        self._cpu_s[first, later] += (work.hidden + work.cpu + work.result).sum(axis=1)
        self._pairs += int(counts.sum())
        self._layer_passes += counts.shape[0] * counts.shape[1]

    def by_interval(self, steps: int) -> tuple[FloatArray, FloatArray]:
        """Return f, and CPU seconds per step and layer, of τ = 1..T; [T] each."""
        step = np.arange(steps)
        refreshed = [step - step % interval for interval in range(1, steps + 1)]
        missed = np.array([self._missed[last, step].sum() for last in refreshed])
        cpu_s = np.array([self._cpu_s[last, step].sum() for last in refreshed])
        share: FloatArray = np.maximum.accumulate(missed / self._pairs)
        return share, cpu_s / self._layer_passes


def _check_formulation(formulation: str) -> None:
    if formulation not in set(Formulation):
        raise SettingError(
            f"formulation {formulation!r} is not known; use one of: {', '.join(Formulation)}"
        )


def _budget_options(case: Case, memory_bytes: int | None, formulation: str) -> list[int]:
    largest, least = case.setup.budget, case.spec.num_experts_per_tok
    if memory_bytes is None or formulation == Formulation.CLOSED_FORM:
        return [largest]
    options = np.unique(np.linspace(least, largest, BUDGET_OPTIONS).round().astype(int))
    return [int(option) for option in options]


def _problem(
    costs: CostTable, case: Case, memory_bytes: int | None, *, formulation: str
) -> Problem:
    """Return the problem to solve; its memory is what is left for slots."""
    others = case.memory.total_bytes - case.memory.slots_bytes
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
    try:
        solution = solve(
            problem,
            formulation=Formulation(formulation),
            backend=backend,
            time_limit_s=time_limit_s,
            gap=gap,
        )
    except SolverError as error:
        raise SettingError(str(error)) from error
    if solution.status is Status.INFEASIBLE:
        raise CapacityError(solution.message)
    return solution


def _prediction(result: SimulationResult, requests: Trace) -> Prediction:
    return Prediction(
        requests=len(requests.meta.requests),
        tokens_per_s=result.tokens_per_s,
        seconds_per_block=result.seconds_per_block,
        step_ms=StepMs(**result.step_ms),
        bottleneck=result.bottleneck,
    )

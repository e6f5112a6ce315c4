"""The schedule file of a solution: what the runtime obeys, what it came from, what to expect."""

import numpy as np

import tidesim
from solver import Solution
from tidesim.hardware import HardwareProfile, describe
from tidesim.optimize.job import Job
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
from tidesim.simulate import Case, SimulationResult
from tidesim.trace.passes import Trace


def layers_of(solution: Solution) -> tuple[LayerSchedule, ...]:
    """Return what a solution says of every layer; initial residents are the engine's choice."""
    parts = zip(solution.budget, solution.refresh_steps, solution.promotions, strict=True)
    return tuple(
        LayerSchedule(budget=budget, refresh_steps=steps, most_promotions=most)
        for budget, steps, most in parts
    )


def schedule_of(
    job: Job,
    case: Case,
    solution: Solution,
    *,
    steps: int,
    training: SimulationResult,
    heldout: SimulationResult | None,
) -> Schedule:
    """Return the file: its initial residents are those that were simulated."""
    model = case.trace.meta.model
    initial = case.policy(case.setup).initial(case.setup)  # [L, E]
    layers = [
        layer.model_copy(update={"initial": tuple(np.flatnonzero(row).tolist())})
        for layer, row in zip(layers_of(solution), initial, strict=True)
    ]
    return Schedule(
        format="tidesim-schedule",
        version=VERSION,
        tool_version=tidesim.__version__,
        model=Routing(**{key: getattr(model, key) for key in Routing.model_fields}),
        sizes=sizes_source(case.spec),
        trace=Source(
            name=job.trace_name, sha256=job.whole.sha256, provenance=job.whole.meta.provenance
        ),
        profile=_machine(job.profile),
        engine=case.setup.engine.name,
        policy="tide",
        settings={"interval": solution.interval},
        promotion=job.search.promotion.value,
        steps=steps,
        interval=solution.interval,
        layers=tuple(layers),
        memory_bytes=case.memory.total_bytes,
        predictions=Predictions(
            train=_prediction(training, job.training),
            heldout=_prediction(heldout, job.heldout) if heldout and job.heldout else None,
        ),
        solver=_report(solution),
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

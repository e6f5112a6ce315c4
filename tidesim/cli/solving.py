"""``tidesim solve``: find the refresh schedule."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    Budget,
    Hardware,
    Json,
    MemoryGb,
    MostPromotions,
    Overrides,
    Sizes,
    TraceName,
    check_writable,
    limits,
    number,
    print_json,
    print_pairs,
    print_table,
    read_profile,
    read_sizes,
    read_trace,
    to_bytes,
)
from tidesim.cli.simulation import Engine
from tidesim.optimize import judge, optimize
from tidesim.optimize.job import ROUNDS
from tidesim.schedule import save_schedule

Formulation = Annotated[
    str,
    typer.Option(
        "--formulation",
        help="uniform (one interval and budget), layered (an interval and budget per layer), "
        "free (any refresh steps and budget per layer) or closed-form.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("solve")(solve)


def solve(
    trace: TraceName,
    *,
    hardware: Hardware,
    out: Annotated[Path, typer.Option("--out", help="The schedule file to write (JSON).")],
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    formulation: Formulation = "uniform",
    backend: Annotated[str, typer.Option("--backend", help="MILP solver: cbc or highs.")] = "cbc",
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds for the solver.")
    ] = 60.0,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap at which to stop.")] = 1e-3,
    promotion: Annotated[
        str,
        typer.Option(
            "--promotion",
            help="When promoted experts serve: blocking (this pass) or background (the next).",
        ),
    ] = "blocking",
    most_promotions: MostPromotions = "all",
    copies_per_step: Annotated[
        float | None,
        typer.Option(
            "--copies-per-step",
            metavar="N",
            help="Promote at most so many experts in a denoise pass, all layers together, on "
            "average over blocks.",
        ),
    ] = None,
    robust: Annotated[
        float,
        typer.Option(
            "--robust",
            metavar="LAMBDA",
            help="Minimise the mean plus LAMBDA times the slowest training request.",
        ),
    ] = 0.0,
    rounds: Annotated[
        int,
        typer.Option("--rounds", help="Most solutions, each from costs around the one before."),
    ] = ROUNDS,
    judged: Annotated[
        bool,
        typer.Option(
            "--judge/--no-judge",
            help="Also simulate every fixed interval, and search in hindsight on the held-out "
            "requests for the regret.",
        ),
    ] = True,
    engine: Engine = "tidesim",
    sizes: Sizes = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Choose the refresh schedule on training requests; report it on held-out ones.

    Example: tidesim solve tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16
    --sizes llada2.0-mini --formulation free --out schedule.json

    JSON: status, interval, budget, budgets, refresh_steps, most_promotions, promotion,
    objective_s, bound_s, gap, seconds, solver_seconds, rounds, formulation, backend, train_tokens_per_s,
    heldout_tokens_per_s, simulated_s_per_block, difference, unfilled, variables, constraints,
    sizes, provenance, hardware, message, schedule; judged: best_fixed_interval,
    best_fixed_tokens_per_s, hindsight_tokens_per_s, regret.
    """
    check_writable(out)
    solved = optimize(
        read_trace(trace),
        read_profile(hardware, set_),
        engine=engine,
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        sizes=read_sizes(sizes),
        formulation=formulation,
        backend=backend,
        time_limit_s=time_limit,
        gap=gap,
        promotion=promotion,
        most_promotions=limits(most_promotions),
        copies_per_step=copies_per_step,
        risk=robust,
        rounds=rounds,
        trace_name=trace,
    )
    save_schedule(solved.schedule, out)
    answer = solved.to_json() | {"schedule": str(out)}
    if judged:
        answer |= judge(solved).to_json()
    if json:
        print_json(answer)
        return
    _print(trace, answer)


def _print(trace: str, answer: dict[str, Any]) -> None:
    print_table(
        f"schedule for {trace}, round by round",
        ["round", "status", "objective, s", "simulated, s", "gap", "variables", "seconds"],
        [
            [
                str(number_),
                one["status"],
                number(one["objective_s"], 6),
                number(one["simulated_s"], 6),
                f"{one['gap']:.2%}",
                str(one["variables"]),
                number(one["seconds"], 1),
            ]
            for number_, one in enumerate(answer["rounds"], start=1)
        ],
        caption="seconds per block on the training requests; the closed form's objective is what "
        "offloading adds per block and layer",
        aside=True,
    )
    shown = {
        key: value for key, value in answer.items() if not isinstance(value, list) and value != ""
    }
    print_pairs(
        "chosen",
        [
            (key.replace("_", " "), number(value, 6) if isinstance(value, float) else str(value))
            for key, value in shown.items()
        ],
    )

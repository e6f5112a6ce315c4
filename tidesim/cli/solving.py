"""``tidesim solve``: find the refresh schedule."""

from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import (
    Budget,
    Hardware,
    Json,
    MemoryGb,
    Overrides,
    Sizes,
    TraceName,
    check_writable,
    number,
    print_json,
    print_pairs,
    read_profile,
    read_sizes,
    read_trace,
    to_bytes,
)
from tidesim.cli.simulation import Engine
from tidesim.optimize import optimize
from tidesim.schedule import save_schedule


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
    formulation: Annotated[
        str,
        typer.Option(
            "--formulation",
            help="uniform (one interval and budget), layered (an interval and budget per layer), "
            "free (any refresh steps and budget per layer) or closed-form.",
        ),
    ] = "uniform",
    backend: Annotated[str, typer.Option("--backend", help="MILP solver: cbc or highs.")] = "cbc",
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds for the solver.")
    ] = 60.0,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap at which to stop.")] = 1e-3,
    engine: Engine = "tidesim",
    sizes: Sizes = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Choose the refresh schedule on training requests; report it on held-out ones.

    Example: tidesim solve tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16
    --sizes llada2.0-mini --out schedule.json
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
        trace_name=trace,
    )
    save_schedule(solved.schedule, out)
    answer = solved.to_json() | {"schedule": str(out)}
    if json:
        print_json(answer)
        return
    print_pairs(
        f"schedule for {trace}",
        [
            (key.replace("_", " "), number(value, 6) if isinstance(value, float) else str(value))
            for key, value in answer.items()
        ],
    )

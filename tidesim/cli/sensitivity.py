"""``tidesim sensitivity``: which inputs move the answer."""

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
    integers,
    number,
    print_json,
    print_table,
    read_profile,
    read_sizes,
    read_trace,
    share,
    to_bytes,
)
from tidesim.cli.simulation import Engine
from tidesim.contest import INTERVALS
from tidesim.sensitivity import BY, Sensitivity
from tidesim.sensitivity import sensitivity as find_sensitivity


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    trace: TraceName,
    *,
    hardware: Hardware,
    budget: Budget = None,
    memory_gb: MemoryGb = None,
    engine: Engine = "tidesim",
    sizes: Sizes = None,
    intervals: Annotated[
        str | None, typer.Option("--intervals", help="Intervals to try, with commas.")
    ] = None,
    by: Annotated[
        float, typer.Option("--by", help="Share by which inputs change, above 0 and below 1.")
    ] = BY,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write a tornado chart as an HTML page.")
    ] = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Change each number of the machine, one at a time: what moves the answer, what turns it round.

    Example: tidesim sensitivity tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16
    --sizes llada2.0-mini --out tornado.html

    JSON: best, tokens_per_s, by, swings, requests, budgets, engine, hardware, sizes, provenance,
    report.
    """
    if out is not None:
        check_writable(out)
    found = find_sensitivity(
        read_trace(trace),
        read_profile(hardware, set_),
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        engine=engine,
        sizes=read_sizes(sizes),
        intervals=integers(intervals, "--intervals") or INTERVALS,
        by=by,
    )
    if out is not None:
        from tidesim.report.sensitivity_figures import (  # noqa: PLC0415 (imports plotly)
            write_sensitivity_page,
        )

        write_sensitivity_page(out, found, trace=trace)
    if json:
        print_json(found.to_json() | {"report": str(out) if out else None})
        return
    _print(trace, found)


def _print(trace: str, found: Sensitivity) -> None:
    best = found.base.best.name
    print_table(
        f"{trace}, {found.requests} requests, on {found.run.hardware}\n"
        f"{best}: {number(found.base.tokens_per_s[best], 2)} tokens/s",
        ["input", "known", "value", f"-{found.by:.0%}", f"+{found.by:.0%}", "then fastest"],
        [
            [
                swing.name,
                swing.kind,
                f"{swing.value:.3g}",
                share(swing.changes[0]),
                share(swing.changes[1]),
                ", ".join(swing.flips) or "–",
            ]
            for swing in found.swings
        ],
        texts=(0, 1),
        caption=f"changes of {best}'s tokens/s; then fastest: where it is another",
    )

"""``tidesim regimes``: where interval refresh pays and where static residents do."""

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
    print_json,
    print_table,
    read_profile,
    read_sizes,
    read_trace,
    to_bytes,
)
from tidesim.cli.simulation import Engine
from tidesim.contest import INTERVALS, Standing
from tidesim.hardware import load_profile, profile_names
from tidesim.regimes import RegimeMap, has_link, regime_map


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("regimes")(regimes)


def regimes(
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
    marks: Annotated[
        str | None,
        typer.Option(
            "--marks",
            help="Machines to place on the map, with commas; by default the bundled ones that have "
            "a link.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the map as an HTML page.")
    ] = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Map the fastest policy and interval over link rate and CPU rate.

    Example: tidesim regimes tide-tiny-mixed --hardware a100-40gb-pcie4-xeon48 --budget 16
    --sizes llada2.0-mini --out regimes.html

    JSON: cells, marks, requests, budgets, engine, hardware, sizes, provenance, report.
    """
    if out is not None:
        check_writable(out)
    machines = [
        load_profile(name) for name in (profile_names() if marks is None else marks.split(","))
    ]
    if marks is None:
        machines = [machine for machine in machines if has_link(machine)]
    found = regime_map(
        read_trace(trace),
        read_profile(hardware, set_),
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        engine=engine,
        sizes=read_sizes(sizes),
        intervals=integers(intervals, "--intervals") or INTERVALS,
        marks=machines,
    )
    if out is not None:
        from tidesim.report.regime_figures import write_regime_page  # noqa: PLC0415 (plotly)

        write_regime_page(out, found, trace=trace)
    if json:
        print_json(found.to_json() | {"report": str(out) if out else None})
        return
    _print(trace, found)


def _print(trace: str, found: RegimeMap) -> None:
    base, rates = found.base, found.cells[0]
    print_table(
        f"{trace}, {found.requests} requests, on {base.hardware} with other rates\n"
        f"{base.sizes} ({base.provenance})",
        ["link \\ CPU, GB/s", *(f"{cell.cpu_bytes_per_s / 1e9:.3g}" for cell in rates)],
        [
            [
                f"{row[0].link_bytes_per_s / 1e9:.3g}",
                *(_short(cell.standing) for cell in row),
            ]
            for row in reversed(found.cells)
        ],
        caption="fastest of static residents, τ=N (blocking refresh) and bg N (refresh in the "
        "background), and its gain over static residents",
    )
    for mark in found.marks:
        typer.echo(
            f"{mark.hardware}: link {mark.link_bytes_per_s / 1e9:.3g} GB/s, "
            f"CPU {mark.cpu_bytes_per_s / 1e9:.3g} GB/s"
        )


def _short(standing: Standing) -> str:
    short = standing.best.name.replace("tide in the background τ=", "bg ").replace("tide ", "")
    return f"{short} {100 * standing.gain:+.0f}%" if standing.best.interval else "static"

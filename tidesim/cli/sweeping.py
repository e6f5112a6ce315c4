"""``tidesim sweep``: every point of a grid, as rows of a Parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import (
    Json,
    check_writable,
    number,
    print_json,
    print_pairs,
    progress,
    shown_late,
)
from tidesim.sweep import Progress, Swept, load_grid
from tidesim.sweep import sweep as run_sweep


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("sweep")(sweep)


def sweep(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="The grid, a TOML file.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Processes; by default one per core."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Instead: run on the workers of this Dask scheduler, such as tcp://host:8786.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with a sweep that did not end, and with what the output already holds.",
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep results here, for other sweeps to find."),
    ] = None,
    json: Json = False,
) -> None:
    """Simulate, or solve for a schedule, at every point of a grid.

    Values of overrides are numbers, or texts as --set takes them. Where one of a key's values is a
    text, the column of that key holds texts as the grid writes them, and numbers as Python does.

    Example: tidesim sweep notebooks/grid.toml --out r.parquet --workers 2

    JSON: out, points, failed, computed, seconds, points_per_s.
    """
    check_writable(out)
    with shown_late(progress(rate="points/s"), "sweep") as update:

        def watch(seen: Progress) -> None:
            description = f"sweep, {seen.failed} failed" if seen.failed else "sweep"
            update(description=description, total=seen.total, completed=seen.computed)

        swept = run_sweep(
            load_grid(grid),
            out,
            workers=workers,
            dask=dask,
            resume=resume,
            cache=cache,
            watch=watch,
        )
    if json:
        print_json(swept.to_json())
        return
    _print(swept)


def _print(swept: Swept) -> None:
    known = swept.points - swept.computed
    print_pairs(
        str(swept.path),
        [
            ("points", f"{swept.points:,} ({known:,} known before or alike)"),
            ("failed", f"{swept.failed:,}"),
            ("seconds", number(swept.seconds, 1)),
            ("points per second", number(swept.points_per_s, 2)),
        ],
    )

"""``tidesim report``: a page of a timeline file."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tidesim.cli.common import Json, check_writable, number, print_json, print_table, share
from tidesim.errors import SettingError
from tidesim.resources import sha256_file
from tidesim.timeline import load_timeline

Block = Annotated[
    int | None,
    typer.Option("--block", help="By default the first decoded block; -1 is the prefill."),
]
StepRange = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="A:B",
        help="Steps A to B - 1 of the block, as in Python; either may be left out. The commit "
        "is the step after the last denoise step. By default the first 3.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("report")(report)


def report(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A timeline file, as tidesim simulate --timeline writes it."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")],
    request: Annotated[
        int | None, typer.Option("--request", help="By default the first that decodes a block.")
    ] = None,
    block: Block = None,
    steps: StepRange = None,
    json: Json = False,
) -> None:
    """Draw what each resource does in some steps, with the critical path and the counters.

    Example: tidesim report run.json --out report.html --block 5 --steps 4:8

    JSON: report, request, block, steps, operations, seconds, critical_path.
    """
    from tidesim.report.extract import extract  # noqa: PLC0415 (imports networkx)
    from tidesim.report.timeline_page import write_timeline_page  # noqa: PLC0415 (imports plotly)

    wanted = read_steps(steps)
    if out.resolve() == file.resolve():
        raise SettingError(f"--out {out} is the timeline itself; name another file for the page")
    check_writable(out)
    timeline = load_timeline(file)
    chosen = extract(timeline, str(file), request=request, block=block, steps=wanted)
    write_timeline_page(
        out, chosen, metadata=timeline.metadata, source=file.name, sha256=sha256_file(file)
    )
    if json:
        print_json({"report": str(out)} | chosen.to_json())
        return
    print_table(
        f"critical path of {chosen.label}",
        ["resource", "operation", "ms", "share"],
        [[row[0], row[1], number(1e3 * row[2]), share(row[3])] for row in chosen.path_rows()],
        caption=f"{number(1e3 * chosen.seconds)} ms in all; the page is {out}",
    )


def read_steps(text: str | None) -> tuple[int, int | None] | None:
    """Read ``A:B``, of which either may be left out.

    Raises
    ------
    SettingError
        Something else, or a range that holds nothing.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{0,9}):([0-9]{0,9})", text)
    first, last = (int(part) if part else None for part in match.groups()) if match else (0, 0)
    if last is not None and last <= (first or 0):
        raise SettingError(
            f"--steps {text}: not a range of steps; write --steps A:B with 0 <= A < B, such as "
            "--steps 4:8"
        )
    return first or 0, last

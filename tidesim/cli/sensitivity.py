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
from tidesim.errors import SettingError
from tidesim.model_spec import load_model_spec
from tidesim.sensitivity import BY, Remake, Sensitivity, remakes_of
from tidesim.sensitivity import sensitivity as find_sensitivity
from tidesim.trace.passes import Trace
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import Parameters, load_parameters

REQUESTS, GEN_LENGTH = 4, 96  # of the synthetic traces; one request is held out


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("sensitivity")(sensitivity)


def sensitivity(
    trace: Annotated[
        str | None,
        typer.Argument(metavar="[TRACE]", help="A bundled trace's name or a Parquet file."),
    ] = None,
    *,
    hardware: Hardware,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Instead of TRACE: draw synthetic traces of this model (or parameter file), and "
            "change each number of their process as well.",
        ),
    ] = None,
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
    routing, remakes = _routing(trace, model)
    found = find_sensitivity(
        routing,
        read_profile(hardware, set_),
        budget=budget,
        memory_bytes=to_bytes(memory_gb),
        engine=engine,
        sizes=read_sizes(sizes),
        intervals=integers(intervals, "--intervals") or INTERVALS,
        remakes=remakes,
        by=by,
    )
    name = trace or f"synthetic {model}"
    if out is not None:
        from tidesim.report.sensitivity_figures import (  # noqa: PLC0415 (imports plotly)
            write_sensitivity_page,
        )

        write_sensitivity_page(out, found, trace=name)
    if json:
        print_json(found.to_json() | {"report": str(out) if out else None})
        return
    _print(name, found)


def _routing(trace: str | None, model: str | None) -> tuple[Trace, list[Remake]]:
    """Return the trace, and what of it can be made anew at other values.

    Raises
    ------
    SettingError
        Both are given, or neither.
    """
    if (trace is None) == (model is None):
        raise SettingError("give a TRACE, or --model NAME to draw synthetic ones; not both")
    if trace is not None:
        return read_trace(trace), []
    assert model is not None
    parameters = load_parameters(model)
    spec = load_model_spec(parameters.model)

    def draw(changed: Parameters) -> Trace:
        return synthesize(changed, spec, requests=REQUESTS, gen_length=GEN_LENGTH, seed=0)

    return draw(parameters), remakes_of(parameters, draw)


def _print(trace: str, found: Sensitivity) -> None:
    best = found.base.best.name
    print_table(
        f"{trace}, {found.requests} requests, on {found.run.hardware}\n"
        f"{best}: {number(found.base.tokens_per_s[best], 2)} tokens/s",
        ["input", "value", f"-{found.by:.0%}", f"+{found.by:.0%}", "then fastest"],
        [
            [
                swing.name,
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

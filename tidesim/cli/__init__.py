"""The command line: parse, call, print.

The only place that turns a `TidesimError` into one sentence on stderr and exit status 2.
"""

import os
import sys

import typer

import tidesim
from tidesim.cli import (
    decoding,
    demo,
    hardware,
    model,
    regimes,
    replaying,
    report,
    schedule,
    sensitivity,
    simulation,
    solving,
    trace,
    validation,
)
from tidesim.errors import TidesimError

app = typer.Typer(
    name="tidesim",
    help="How fast a diffusion mixture-of-experts model runs on a machine that its experts do not "
    "fit, what bounds it, and which refresh schedule is best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (
    demo,
    decoding,
    simulation,
    solving,
    regimes,
    sensitivity,
    replaying,
    validation,
    report,
):
    module.register(app)
app.add_typer(trace.app, name="trace")
app.add_typer(hardware.app, name="hardware")
app.add_typer(model.app, name="model")
app.add_typer(schedule.app, name="schedule")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"tidesim {tidesim.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and stop.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; errors made on purpose end in one sentence and status 2."""
    try:
        app()
    except TidesimError as error:
        if os.environ.get("TIDESIM_DEBUG"):
            raise
        typer.echo(f"tidesim: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

"""``tidesim trace synth`` and ``tidesim trace fit``: synthetic traces and their parameters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    Json,
    TraceName,
    check_writable,
    number,
    print_json,
    print_pairs,
    print_table,
    progress,
    read_trace,
)
from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.trace.io import save_trace
from tidesim.trace.passes import Kind, Pass, Trace
from tidesim.trace.synth.fit import ROUNDS, Fitted, fit
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.observed import parameters_of
from tidesim.trace.synth.parameters import MIXED, Parameters, load_parameters, save_parameters


def register(app: typer.Typer) -> None:
    """Add the commands to ``tidesim trace``."""
    app.command("synth")(synth)
    app.command("fit")(fit_)


def synth(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Trace to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A model whose geometry to use; by default the one of --parameters.",
        ),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            "--parameters",
            metavar="FILE",
            help="Parameters of the process, such as trace fit writes; by default the model's.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="Requests to draw.")] = 8,
    gen_length: Annotated[
        int, typer.Option("--gen-length", help="Tokens that every request generates.")
    ] = 256,
    seed: Annotated[
        int, typer.Option("--seed", help="Draws requests; equal seed, equal file.")
    ] = 0,
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            help="mbpp, humaneval, gsm8k, ifeval or mixed; of other parameters what they name.",
        ),
    ] = MIXED,
    block_length: Annotated[
        int | None,
        typer.Option("--block-length", help="Positions of a block; by default the model's."),
    ] = None,
    json: Json = False,
) -> None:
    """Draw a synthetic trace whose routing behaves as measurements of the model say.

    Example: tidesim trace synth --model llada2.0-mini --requests 2 --gen-length 256 --out m.parquet

    JSON: trace, model, provenance, workload, seed, requests, passes, blocks.
    """
    trace = synthesize(
        *_parameters_and_model(parameters, model),
        requests=requests,
        gen_length=gen_length,
        seed=seed,
        workload=workload,
        block_length=block_length,
    )
    check_writable(out)
    with progress() as bar:
        task = bar.add_task("synthesise", total=requests)
        watched = _Watched(trace, lambda request: bar.update(task, completed=request))
        save_trace(Trace(trace.meta, watched), out)
    answer = {
        "trace": str(out),
        "model": trace.meta.model.name,
        "provenance": trace.meta.provenance,
        "workload": workload,
        "seed": seed,
        "requests": requests,
        "passes": watched.passes,
        "blocks": watched.blocks,
    }
    if json:
        print_json(answer)
        return
    print_pairs("synthetic trace", [(key, str(value)) for key, value in answer.items()])


def _parameters_and_model(
    parameters: str | None, model: str | None
) -> tuple[Parameters, ModelSpec]:
    if model is None and parameters is None:
        raise SettingError("give --model, such as llada2.0-mini, or --parameters")
    if model is None:
        chosen = load_parameters(str(parameters))
        return chosen, load_model_spec(chosen.model)
    spec = load_model_spec(model)
    return load_parameters(parameters or spec.name), spec


@dataclass(slots=True)
class _Watched:
    """The passes of a trace, counted while they are written."""

    trace: Trace
    observe: Callable[[int], None]
    passes: int = 0
    blocks: int = 0

    def __iter__(self) -> Iterator[Pass]:
        for pass_ in self.trace:
            self.passes += 1
            self.blocks += pass_.kind is Kind.COMMIT
            self.observe(pass_.request)
            yield pass_


def fit_(
    trace: TraceName,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Parameters to write.")],
    requests: Annotated[
        int, typer.Option("--requests", help="Requests of the trace to look at, evenly spaced.")
    ] = 12,
    rounds: Annotated[int, typer.Option("--rounds", help="Steps of the search at most.")] = ROUNDS,
    json: Json = False,
) -> None:
    """Fit the parameters of synthetic traces to a captured trace; takes minutes.

    Example: tidesim trace fit tide-tiny-mixed --out tiny.toml

    JSON: parameters, loss, routing, targets.
    """
    check_writable(out)
    start, seen, effort = parameters_of(
        read_trace(trace), name=trace, requests=requests, rounds=rounds
    )
    with progress() as bar:
        task = bar.add_task("fit", total=rounds)
        fitted = fit(
            start,
            seen.meta.model,
            effort,
            observe=lambda done, _fitted: bar.update(task, completed=done),
        )
    save_parameters(fitted.parameters, out)
    rows = _rows(fitted)
    if json:
        values = {name: item.value for name, item in fitted.parameters.routing}
        print_json(
            {"parameters": str(out), "loss": fitted.loss, "routing": values, "targets": rows}
        )
        return
    print_table(
        f"{trace}: the trace and the fitted process",
        ["statistic", "trace", "synthetic", "difference"],
        [
            [row["figure"], number(row["target"]), number(row["synthetic"]), number(row["error"])]
            for row in rows
        ],
        caption=f"written to {out}",
    )


def _rows(fitted: Fitted) -> list[dict[str, Any]]:
    return [
        {
            "figure": target.figure,
            "target": target.value,
            "synthetic": value,
            "error": value - target.value,
        }
        for target, value in zip(fitted.parameters.targets, fitted.reached, strict=True)
    ]

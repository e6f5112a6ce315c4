"""``tidesim reproduce``: the TIDE paper's throughputs beside predictions."""

import typer

from tidesim.cli.common import Json, number, out, print_json, print_table
from tidesim.reproduce import Reproduction, Row
from tidesim.reproduce import reproduce as run_reproduction


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("reproduce")(reproduce)


def reproduce(*, json: Json = False) -> None:
    """Predict the TIDE paper's throughputs, and what the same machines could do; a few minutes.

    Example: tidesim reproduce --json

    JSON: rows, ratios, fitted_costs_s, provenance.
    """
    found = run_reproduction()
    if json:
        print_json(found.to_json())
        return
    _print(found)


def _print(found: Reproduction) -> None:
    published = [row for row in found.rows if row.published is not None]
    print_table(
        "engine tide-reference on an A100 40 GB, mini, MBPP (synthetic routing),\nmean of 256 and 1024 tokens",
        ["policy", "slots", "τ", "published", "predicted", "error", ""],
        [
            [
                row.policy,
                str(row.budget),
                _interval(row),
                number(row.published, 2),
                number(row.predicted, 2),
                f"{row.error:+.1%}" if row.error is not None else "–",
                "fitted" if row.fitted else "predicted",
            ]
            for row in published
        ],
    )
    print_table(
        "tide over the others",
        ["over", "slots", "published", "predicted", "error"],
        [
            [
                ratio["over"],
                str(ratio["budget"]),
                number(ratio["published"], 2),
                number(ratio["predicted"], 2),
                f"{ratio['error']:+.1%}",
            ]
            for ratio in found.ratios()
        ],
    )
    for engine in dict.fromkeys(row.engine for row in found.rows):
        _print_beyond(
            engine, [row for row in found.rows if row.engine == engine and row.published is None]
        )
    costs = ", ".join(f"{name} {1e3 * cost:.3f} ms" for name, cost in found.costs_s.items())
    out.print(f"fitted: {costs}", highlight=False)


def _print_beyond(engine: str, rows: list[Row]) -> None:
    print_table(
        f"beyond the published rows: engine {engine}",
        ["policy", "model", "slots", "τ", "tokens", "block", "t/fwd", "tokens/s"],
        [
            [
                row.policy,
                row.model.removeprefix("llada2.0-"),
                str(row.budget),
                _interval(row),
                ", ".join(map(str, row.gen_lengths)),
                str(row.block_length),
                number(row.tokens_per_forward, 1),
                number(row.predicted, 2) + (f" ({row.bottleneck})" if row.bottleneck else ""),
            ]
            for row in rows
        ],
        caption="t/fwd: tokens decoded per forward; 3.4 (mini) and 4.0 (flash) at threshold 0.95",
    )


def _interval(row: Row) -> str:
    return ", ".join("–" if interval is None else str(interval) for interval in row.intervals)

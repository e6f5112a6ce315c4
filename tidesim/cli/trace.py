"""``tidesim trace``: what a trace holds, how stable its routing is, traces from elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli import synthesis
from tidesim.cli.common import (
    Json,
    Split,
    TraceName,
    check_writable,
    integers,
    number,
    print_json,
    print_pairs,
    print_table,
    read_trace,
    share,
    tell,
)
from tidesim.errors import FormatError
from tidesim.model_spec import load_model_spec
from tidesim.trace.importers import FORMATS, ImportOptions, Missing, get_format, import_trace
from tidesim.trace.info import trace_info
from tidesim.trace.passes import Trace, Window
from tidesim.trace.stats import trace_stats

app = typer.Typer(
    help="Look into traces, import others' and draw synthetic ones.", no_args_is_help=True
)
synthesis.register(app)


@app.command("info")
def info(trace: TraceName, *, json: Json = False) -> None:
    """Say what a trace holds, and check every row of it.

    Example: tidesim trace info tide-tiny-mixed

    JSON: model, provenance, requests, passes, blocks, steps_per_block, tokens, routing, sha256,
    checkpoint_sha256, source, settings, seed, tool_version.
    """
    summary = trace_info(read_trace(trace))
    if json:
        print_json(summary)
        return
    print_pairs(trace, [(key, _flat(value)) for key, value in summary.items()])


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)


@app.command("stats")
def stats(
    trace: TraceName,
    *,
    lags: Annotated[str, typer.Option("--lags", help="Steps apart, with commas.")] = "0,1,2,5",
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets", help="Slots, with commas; by default 1/8, 1/4, 1/2 of the experts."
        ),
    ] = None,
    window: Annotated[
        Window | None,
        typer.Option("--window", help="Tokens a pass computes; by default both are reported."),
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Which requests.")] = Split.ALL,
    masked_at_most: Annotated[
        int | None,
        typer.Option("--masked-at-most", help="Only passes with at most so many masked positions."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the statistics into this HTML file.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how stable routing is between denoise steps.

    Example: tidesim trace stats tide-tiny-mixed --lags 0,1,2,5 --budgets 8,16,32

    JSON: model, provenance, window, masked_at_most, num_experts, top_k, requests, blocks, passes,
    steps_per_block, distinct_experts, cosine, jaccard, token_overlap, hit_ratio, between_blocks,
    popularity, popularity_in_block, single_token_share, masked, decoded, just_decoded, by_layer; of both windows:
    windows.
    """
    chosen_lags = integers(lags, "--lags") or ()
    chosen_budgets = integers(budgets, "--budgets")
    if plot:
        check_writable(plot)
    requests = read_trace(trace).split(split.value)

    def measure(which: Window) -> Any:
        return trace_stats(
            requests,
            window=which,
            lags=chosen_lags,
            budgets=chosen_budgets,
            masked_at_most=masked_at_most,
        )

    both = {window or Window.BLOCK: measure(window or Window.BLOCK)}
    if window is None:
        try:
            both[Window.FULL] = measure(Window.FULL)
        except FormatError as error:  # such as a trace without commit passes
            tell(f"window full is left out: {error}")
    first = both[window or Window.BLOCK]
    if plot:
        block = both.get(Window.BLOCK) or measure(Window.BLOCK)
        _plot(plot, trace, requests, first, block, both.get(Window.FULL))
    if json:
        windows = {str(which): item.to_json() for which, item in both.items()}
        print_json(first.to_json() | ({"windows": windows} if len(both) > 1 else {}))
        return
    for which, item in both.items():
        _print_stats(f"{trace}, window {which}", item.to_json())


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What was recorded; a folder for flame-moe.")
    ],
    *,
    form: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help=f"One of: {', '.join(FORMATS)}.")
    ],
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Whose routing was recorded.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="T", help="Where the trace goes, as Parquet.")
    ],
    tokens_per_pass: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-pass", help="Cut the tokens so; by default the model's block length."
        ),
    ] = None,
    steps_per_block: Annotated[
        int | None,
        typer.Option(
            "--steps-per-block",
            help="Consecutive passes that are steps of one block; by default 1.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option("--prompt-tokens", help="The first tokens are a prompt's; by default none."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens before the first recorded one; by default none."),
    ] = None,
    first_tokens: Annotated[
        int | None, typer.Option("--first-tokens", help="Read only so many tokens.")
    ] = None,
    missing: Annotated[
        Missing | None,
        typer.Option("--missing", help="Where a pass lacks layers; by default it is refused."),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", help="Where the file comes from, for the trace's metadata.")
    ] = "",
    prompt_kind: Annotated[
        str, typer.Option("--prompt-kind", help="Kind of the prompts, such as humaneval.")
    ] = "",
    json: Json = False,
) -> None:
    """Make a trace from what another project recorded; nothing is unpickled or skipped silently.

    Example: tidesim trace import moe_trace.csv --from llama.cpp --model config.json --out t.parquet

    JSON: file, model, mixture_layers, requests, passes, source, settings.
    """
    asked = {
        "tokens_per_pass": tokens_per_pass,
        "steps_per_block": steps_per_block,
        "prompt_tokens": prompt_tokens,
        "context": context,
        "first_tokens": first_tokens,
        "missing": missing,
    }
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    get_format(form, given)
    spec = load_model_spec(model)
    check_writable(out)
    options = ImportOptions(model=spec, **({"tokens_per_pass": spec.block_length} | given))
    done = import_trace(
        file, out, form=form, options=options, source=source, prompt_kind=prompt_kind
    )
    answer = {
        "file": str(out),
        "model": done.meta.model.name,
        "mixture_layers": done.meta.model.moe_layers,
        "requests": len(done.meta.requests),
        "passes": done.passes,
        "source": done.meta.source,
        "settings": dict(done.meta.settings),
    }
    if json:
        print_json(answer)
        return
    print_pairs(f"imported {file}", [(key, _flat(value)) for key, value in answer.items()])


def _plot(path: Path, name: str, trace: Trace, shown: Any, block: Any, full: Any | None) -> None:
    from tidesim.report import trace_figures as figures  # noqa: PLC0415
    from tidesim.report.html import Section, write_report  # noqa: PLC0415

    sections = [
        Section("Stability of routing", figures.stability_figure(block, full)),
        Section("Hit ratio by budget and lag", figures.hit_ratio_figure(shown)),
        Section("Distinct experts by layer", figures.distinct_by_layer_figure(shown)),
        Section("Popularity", figures.popularity_figure(shown)),
    ]
    write_report(
        path,
        title=f"Routing of {name}",
        sections=sections,
        footer=[("trace", f"{name} ({trace.meta.provenance})"), ("sha256", trace.sha256)],
    )


def _print_stats(title: str, values: dict[str, Any]) -> None:
    print_pairs(title, _summary(values))
    lags = list(values["cosine"])
    measures = [("cosine", values["cosine"]), ("Jaccard", values["jaccard"])]
    measures += [("per-token overlap", values["token_overlap"] or {})]
    measures += [(f"hit ratio, {b} slots", by_lag) for b, by_lag in values["hit_ratio"].items()]
    measures += [(f"cosine, layer {row['layer']}", row["cosine"]) for row in values["by_layer"]]
    print_table(
        "by lag (steps)",
        ["", *lags],
        [[name, *(number(by_lag.get(lag)) for lag in lags)] for name, by_lag in measures],
    )


def _summary(values: dict[str, Any]) -> list[tuple[str, str]]:
    distinct, masked, decoded = (values[key] for key in ("distinct_experts", "masked", "decoded"))
    between = values["between_blocks"]
    top = {k: v for k, v in values["popularity"].items() if int(k) in (1, 8, 16, 32)}
    by_layer = (number(row["distinct_experts"]["mean"], 1) for row in values["by_layer"])
    return [
        (
            "distinct experts per layer and step",
            f"{number(distinct['mean'], 1)} ± {number(distinct['std'], 1)}",
        ),
        ("by layer", ", ".join(by_layer)),
        (
            "of masked, decoded positions",
            f"{number(masked['distinct_experts'], 1)}, {number(decoded['distinct_experts'], 1)}",
        ),
        (
            "lag-1 overlap, masked, decoded",
            f"{number(masked['token_overlap'])}, {number(decoded['token_overlap'])}",
        ),
        ("single-token experts", share(values["single_token_share"])),
        ("hits of the k most used", ", ".join(f"{k}: {share(v)}" for k, v in top.items())),
        ("last step to next first, cosine", number(between["last_to_next_first"])),
        ("same step of next block, cosine", number(between["same_step"])),
    ]

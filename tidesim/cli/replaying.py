"""``tidesim replay``: a schedule and a trace drive real copies and real matrix products."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tidesim.cli import offloading
from tidesim.cli.common import (
    CpuWorkers,
    Force,
    Json,
    LinkRate,
    Requests,
    Sizes,
    SplitOption,
    TraceName,
    check_writable,
    choose_split,
    integers,
    number,
    only_requests,
    print_json,
    print_pairs,
    progress,
    read_schedule,
    read_sizes,
    read_trace,
    share,
)
from tidesim.errors import SettingError
from tidesim.measured import MeasuredRun
from tidesim.measured_io import save_measured
from tidesim.model_spec import ModelSpec
from tidesim.optimize import splits
from tidesim.records import busy_s
from tidesim.schedule import Schedule
from tidesim.schedule import first_layers as first_layers_of_schedule
from tidesim.simulate import sized_spec
from tidesim.simulate.case import sizes_label
from tidesim.timeline import save_timeline
from tidesim.trace.layers import first_layers
from tidesim.trace.passes import Kind, Trace
from tidesim.trace.windows import windowed


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("replay")(replay)


def replay(
    schedule: Annotated[
        Path, typer.Argument(metavar="SCHEDULE", help="A schedule that tidesim solve wrote.")
    ],
    trace: TraceName,
    *,
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.")],
    backend: Annotated[
        str, typer.Option("--backend", help="cpu (a stand-in of threads) or cuda.")
    ] = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Runs to time.")] = 3,
    split: SplitOption = None,
    only: Requests = None,
    sizes: Sizes = None,
    layers: Annotated[
        int | None,
        typer.Option(
            "--layers", metavar="N", help="Only the first mixture layers, to save memory."
        ),
    ] = None,
    cpu_workers: CpuWorkers = None,
    link_gb_per_s: LinkRate = None,
    force: Force = False,
    timeline: offloading.TimelineFile = None,
    json: Json = False,
) -> None:
    """Run a schedule for real with random weights: any model's sizes, the trace's routing.

    Example: tidesim replay schedule.json tide-tiny-mixed --requests 0 --sizes llada2.0-mini
    --layers 2 --out measured.parquet

    JSON: policy, engine, promotion, interval, backend, machine, sizes, provenance, seconds,
    budgets, repeat_s, passes, steps, step_ms, hit_rate, promotions, counters, busy, split,
    measured.
    """
    if repeats < 1:
        raise SettingError(f"--repeats is {repeats} but must be at least 1")
    for path in (out, timeline):
        if path is not None:
            check_writable(path)
    whole, model_sizes = read_trace(trace), read_sizes(sizes)
    spec = sized_spec(whole.meta.model, model_sizes)
    plan = read_schedule(schedule, whole.meta.model, trace=whole, sizes=spec, force=force)
    if layers is not None:
        whole, plan = first_layers(whole, layers), first_layers_of_schedule(plan, layers)
        spec = sized_spec(whole.meta.model, model_sizes)
    requests, split_name = choose_split(whole, split)
    requests = only_requests(requests, integers(only, "--requests"), split_name)
    run = _run(
        plan, requests, spec, splits(whole)[0],
        repeats=repeats, backend=backend, cpu_workers=cpu_workers, link_gb_per_s=link_gb_per_s,
    )  # fmt: skip
    save_measured(run, out)
    if timeline is not None and run.records is not None:
        save_timeline(timeline, run.records, metadata=_about(run, trace, split_name))
    answer = _answer(run) | {"split": split_name, "measured": str(out)}
    if json:
        print_json(answer)
    else:
        _print(f"{trace} ({split_name} requests) on backend {backend}", answer)


def _run(
    plan: Schedule,
    requests: Trace,
    spec: ModelSpec,
    training: Trace,
    *,
    repeats: int,
    backend: str,
    cpu_workers: int | None,
    link_gb_per_s: float | None,
) -> MeasuredRun:
    from tidesim.runtime.generate import obey  # noqa: PLC0415
    from tidesim.runtime.replay import About, Replayer  # noqa: PLC0415

    model = requests.meta.model
    placing = obey(plan, model, training=training, forced=True)
    passes = list(windowed(requests, placing.setup.engine.window))
    machine = offloading.real_backend(backend, cpu_workers=cpu_workers, link_gb_per_s=link_gb_per_s)
    about = About(
        sizes=sizes_label(model, spec),
        provenance=requests.meta.provenance,
        trace_sha256=requests.sha256,
    )
    with machine, progress() as bar:
        task = bar.add_task("replay", total=repeats * len(passes))
        return Replayer(spec, machine).run(
            passes,
            placing.make,
            placing.setup,
            repeats=repeats,
            about=about,
            observe=lambda: bar.advance(task),
        )


def _about(run: MeasuredRun, trace: str, split: str) -> dict[str, Any]:
    names = (
        "policy", "interval", "promotion", "engine", "backend", "machine", "sizes", "provenance",
        "trace_sha256",
    )  # fmt: skip
    named = {name: getattr(run, name) for name in names}
    return {"times": "measured", **named, "trace": trace, "split": split}


def _answer(run: MeasuredRun) -> dict[str, Any]:
    names = (
        "policy", "engine", "promotion", "interval", "backend", "machine", "sizes", "provenance",
        "seconds",
    )  # fmt: skip
    steps = [at for at, key in enumerate(run.keys) if key.kind is Kind.DENOISE]
    percentiles = np.percentile(1e3 * run.median_pass_s[steps], (50, 90, 99)).tolist()
    worked = {} if run.records is None else busy_s(run.records)
    return {name: getattr(run, name) for name in names} | {
        "budgets": list(run.budgets),
        "repeat_s": run.run_s.tolist(),
        "passes": len(run.keys),
        "steps": len(steps),
        "step_ms": dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
        "hit_rate": run.counters.hit_rate,
        "promotions": run.counters.promotions,
        "counters": asdict(run.counters),
        "busy": {str(name): value / float(run.run_s[-1]) for name, value in worked.items()},
    }


def _print(title: str, answer: dict[str, Any]) -> None:
    counters = answer["counters"]
    copied, returned = (sum(counters[f"{way}_bytes_by_purpose"].values()) for way in ("h2d", "d2h"))
    print_pairs(
        title,
        [
            ("routing and sizes", f"{answer['sizes']} ({answer['provenance']})"),
            ("machine", answer["machine"]),
            (
                "policy",
                (
                    f"{answer['policy']}, interval {answer['interval'] or '–'}, "
                    f"{answer['promotion']} promotion, engine {answer['engine']}"
                ),
            ),
            ("seconds per repeat", " / ".join(number(each) for each in answer["repeat_s"])),
            ("passes", f"{answer['passes']:,}, of which {answer['steps']:,} denoise"),
            (
                "step, ms at P50 / P90 / P99",
                " / ".join(number(each) for each in answer["step_ms"].values()),
            ),
            ("hit rate", share(answer["hit_rate"])),
            ("hits, misses", f"{counters['hits']:,}, {counters['misses']:,}"),
            (
                "promotions, evictions",
                (
                    f"{counters['promotions']:,}, {counters['evictions']:,}, in "
                    f"{counters['refreshes']:,} refreshes of a layer"
                ),
            ),
            ("copied to the GPU", f"{copied / 1e9:,.3f} GB"),
            ("copied to the host", f"{returned / 1e9:,.3f} GB"),
            ("busy", ", ".join(f"{k} {share(v)}" for k, v in answer["busy"].items())),
            ("measured run", answer["measured"]),
        ],
    )

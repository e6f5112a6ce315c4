"""``tidesim validate``: predictions against real runs; status 1 where they are too far apart."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from tidesim.cli.common import (
    CpuWorkers,
    Force,
    Hardware,
    Json,
    LinkRate,
    Overrides,
    Requests,
    Sizes,
    SplitOption,
    TraceName,
    bytes_per_s,
    check_writable,
    choose_split,
    integers,
    number,
    only_requests,
    print_json,
    print_pairs,
    print_table,
    progress,
    read_profile,
    read_schedule,
    read_sizes,
    read_trace,
    share,
)
from tidesim.configurations import (
    Configuration,
    calibration_configurations,
    default_configurations,
)
from tidesim.hardware_write import save_profile
from tidesim.harness import (
    REPEATS,
    SCORED,
    Outcome,
    replaying,
    run_validation,
    some_requests,
)
from tidesim.model_spec import ModelSpec
from tidesim.optimize import in_memory, splits
from tidesim.policies.scheduled import follow
from tidesim.schedule import Schedule
from tidesim.simulate import sized_spec
from tidesim.validate import Tolerances, Trial

USUAL = Tolerances()


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("validate")(validate)


def validate(
    schedule: Annotated[
        Path,
        typer.Argument(metavar="SCHEDULE", help="A schedule file, as tidesim solve writes it."),
    ],
    trace: TraceName,
    *,
    hardware: Hardware,
    backend: Annotated[
        str, typer.Option("--backend", help="What runs for real: cpu or cuda.")
    ] = "cpu",
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Real runs of every configuration.")
    ] = REPEATS,
    at_most: Annotated[
        int,
        typer.Option(
            "--configurations",
            metavar="N",
            help="Configurations to score: the schedule, and those predicted furthest apart.",
        ),
    ] = SCORED,
    only: Requests = None,
    split: SplitOption = None,
    sizes: Sizes = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Fit the profile's per-call costs to some configurations, which are then not scored.",
        ),
    ] = True,
    max_run_error: Annotated[
        float,
        typer.Option("--max-run-error", help="Largest error of a run that passes, as a share."),
    ] = USUAL.run_error,
    max_pass_mape: Annotated[
        float, typer.Option("--max-pass-mape", help="Largest mean error of passes, as a share.")
    ] = USUAL.pass_mape,
    min_kendall_tau: Annotated[
        float, typer.Option("--min-kendall-tau", help="Least rank agreement of configurations.")
    ] = USUAL.kendall_tau,
    cpu_workers: CpuWorkers = None,
    link_gb_per_s: LinkRate = None,
    save_profile_to: Annotated[
        Path | None,
        typer.Option(
            "--save-profile", metavar="FILE", help="Write the calibrated profile as TOML."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the whole report as an HTML page.")
    ] = None,
    set_: Overrides = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the schedule and other configurations for real and compare with their predictions.

    Example: tidesim validate schedule.json tide-tiny-mixed --hardware box.toml --out report.html

    JSON: counters_match, run_error, mean_run_error, pass_mape, p90_error, kendall_tau,
    repeat_spread, pass_spread, passed, failures, tolerances, configurations, calibrated,
    worst_passes, machine, backend, hardware, sizes, provenance, trace_sha256, profile_sha256,
    skipped, not_run, report.
    """
    for path in (out, save_profile_to):
        if path is not None:
            check_writable(path)
    tolerances = Tolerances(
        run_error=max_run_error, pass_mape=max_pass_mape, kendall_tau=min_kendall_tau
    )
    whole, profile = in_memory(read_trace(trace)), read_profile(hardware, set_)
    model_sizes = read_sizes(sizes)
    spec = sized_spec(whole.meta.model, model_sizes)
    plan = read_schedule(
        schedule, whole.meta.model, trace=whole, profile=profile, sizes=spec, force=force
    )
    requests, split_name = choose_split(whole, split)
    chosen = only_requests(requests, integers(only, "--requests"), split_name)
    with ExitStack() as stack:
        replay = stack.enter_context(
            replaying(
                spec,
                backend,
                cpu_workers=cpu_workers,
                link_bytes_per_s=bytes_per_s(link_gb_per_s),
            )
        )
        bar = progress()
        task = bar.add_task("", total=None)

        def stage(text: str) -> None:
            if not bar.live.is_started:  # nothing is shown before the settings are checked
                stack.enter_context(bar)
            bar.update(task, description=text, advance=1)

        outcome = run_validation(
            chosen if only else some_requests(chosen),
            profile,
            replay=replay,
            configurations=_configurations(plan, whole.meta.model),
            at_most=at_most,
            calibration=calibration_configurations(whole.meta.model) if calibrate else (),
            sizes=model_sizes,
            popularity_from=splits(whole)[0],
            repeats=repeats,
            tolerances=tolerances,
            stage=stage,
        )
    if save_profile_to is not None:
        save_profile(outcome.profile, save_profile_to)
    if out is not None:
        from tidesim.report.validate_page import write_validate_page  # noqa: PLC0415 (plotly)

        write_validate_page(out, outcome.report, skipped=outcome.skipped)
    _print(trace, outcome, out, as_json=json)
    if not outcome.report.passed:
        raise typer.Exit(1)


def _configurations(plan: Schedule, model: ModelSpec) -> tuple[Configuration, ...]:
    """Return the schedule and what it is ranked among."""
    scheduled = Configuration(
        policy=follow(plan),
        budget=max(plan.budgets),
        interval=plan.interval,
        promotion=plan.promotion,
        engine=plan.engine,
        label="schedule",
    )
    return scheduled, *default_configurations(model)


def _print(trace: str, outcome: Outcome, page: Path | None, *, as_json: bool) -> None:
    report = outcome.report
    answer: dict[str, Any] = report.to_json() | {
        "skipped": outcome.skipped,
        "not_run": list(outcome.not_run),
        "report": None if page is None else str(page),
    }
    if as_json:
        print_json(answer)
        return
    first = report.trials[0]
    print_table(
        f"{trace} on {first.predicted.hardware}, predicted and run on backend "
        f"{first.measured.backend} ({', '.join(report.machines)})\n"
        f"{first.predicted.sizes} ({first.predicted.provenance})",
        ["configuration", "predicted", "measured", "error %", "MAPE %", "spread %"],
        [_row(trial) for trial in report.trials],
        caption="seconds; MAPE of passes; spread: (slowest - fastest) / median of the repeats; "
        "*: used for calibration, not scored",
    )
    print_pairs("", _summary(outcome, page))


def _row(trial: Trial) -> list[str]:
    return [
        f"{trial.name}{' *' * trial.calibration}",
        number(trial.predicted_s),
        number(trial.measured_s),
        f"{100 * trial.run_error:+.1f}",
        number(100 * trial.passes.mape, 1),
        "–" if trial.repeat_spread is None else number(100 * trial.repeat_spread, 1),
    ]


def _summary(outcome: Outcome, page: Path | None) -> list[tuple[str, str]]:
    report = outcome.report
    fitted = (
        f"{key} {1e6 * before:.3g} → {1e6 * after:.3g} µs"
        if key.endswith("_s")
        else f"{key} {before:.3g} → {after:.3g}"
        for key, (before, after) in report.calibrated.items()
    )
    return [
        ("counters", "as predicted" if report.counters_match else "differ"),
        (
            "run error",
            f"{share(report.run_error)} at most, {share(report.mean_run_error)} on average",
        ),
        ("pass error", f"{share(report.pass_mape)} on average, {share(report.p90_error)} at P90"),
        ("Kendall's tau", number(report.kendall_tau)),
        ("spread of repeats", f"{share(report.repeat_spread)} at most"),
        ("calibrated", ", ".join(fitted) or "nothing"),
        *(("left out", f"{name}: {reason}") for name, reason in outcome.skipped.items()),
        ("not run", f"{len(outcome.not_run)} more: those above are predicted furthest apart"),
        *(("failed", reason) for reason in report.failures),
        *([("report", str(page))] if page is not None else []),
        ("passed", "yes" if report.passed else "no"),
    ]

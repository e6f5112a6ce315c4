"""The page of a validation: predicted against measured, step by step, worst passes explained."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tidesim.report.html import Section, Table, write_report
from tidesim.report.validate_figures import (
    errors_figure,
    operations_figure,
    passes_figure,
    runs_figure,
    spread_in_words,
)
from tidesim.validate import Report, operations

Rows = list[list[str | float | None]]


def write_validate_page(
    path: Path, report: Report, *, skipped: Mapping[str, str] | None = None
) -> None:
    """Write a self-contained page of a validation.

    Parameters
    ----------
    path : Path
    report : Report
    skipped : mapping of str to str, optional
        Configurations that did not run, with the reason.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    first = report.trials[0]
    write_report(
        path,
        title="tidesim: predicted against measured",
        lead=_lead(report),
        sections=list(_sections(report, skipped or {})),
        footer=[
            ("profile", f"{first.predicted.hardware}, sha256 {first.predicted.profile_sha256}"),
            ("measured on", "; ".join(report.machines)),
            ("backend", first.measured.backend),
            ("routing and sizes", f"{first.predicted.sizes} ({first.predicted.provenance})"),
            ("trace sha256", first.predicted.trace_sha256),
        ],
    )


def _lead(report: Report) -> str:
    tau = "not defined" if report.kendall_tau is None else f"{report.kendall_tau:.2f}"
    counters = "as predicted" if report.counters_match else "not as predicted"
    return (
        f"{'Passed' if report.passed else 'Not passed'}: over {len(report.scored)} scored "
        f"configurations runs are {report.mean_run_error:.1%} off on average and "
        f"{report.run_error:.1%} at most, passes {report.pass_mape:.1%} on average and "
        f"{report.p90_error:.1%} at the 90th percentile; Kendall's τ {tau}; counters {counters}."
    )


def _sections(report: Report, skipped: Mapping[str, str]) -> Iterator[Section]:
    if report.failures:
        yield Section(
            "Why it did not pass",
            table=Table(columns=["reason"], rows=[[reason] for reason in report.failures]),
        )
    yield Section("Runs", runs_figure(report), spread_in_words(report))
    yield Section(
        "Configurations",
        text="Errors are predicted / measured - 1; a pass is measured by its median over the repeats, a run by their sum.",
        table=_configurations(report),
    )
    if report.calibrated:
        yield _calibration(report)
    yield Section(
        "Step by step",
        passes_figure(report),
        "The menu chooses a configuration. Passes stand in order: prefill, denoise steps and "
        "commit of each block.",
    )
    yield Section("Errors", errors_figure(report), "All passes of scored configurations.")
    yield from _resources(report)
    yield Section(
        "Worst passes",
        text="Milliseconds, predicted → measured, of the operations that differ most in each; idle "
        "is time in which no resource works. Operations are those of the last repeat.",
        table=_worst(report),
    )
    if skipped:
        rows = [[name, reason] for name, reason in skipped.items()]
        yield Section("Left out", table=Table(columns=["configuration", "reason"], rows=rows))


def _configurations(report: Report) -> Table:
    columns = [
        "configuration", "used for", "predicted s", "measured s", "error %", "pass MAPE %",
        "pass P90 %", "block MAPE %", "spread of runs %", "spread of passes %", "counters",
    ]  # fmt: skip
    rows: Rows = [
        [
            trial.name,
            "calibration" if trial.calibration else "score",
            trial.predicted_s,
            trial.measured_s,
            100 * trial.run_error,
            100 * trial.passes.mape,
            100 * trial.passes.p90,
            100 * trial.blocks.mape,
            _percent(trial.repeat_spread),
            _percent(trial.pass_spread),
            f"{len(trial.mismatches)} differ" if trial.mismatches else "as predicted",
        ]
        for trial in report.trials
    ]
    return Table(columns=columns, rows=rows)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _calibration(report: Report) -> Section:
    names = ", ".join(trial.name for trial in report.trials if trial.calibration)
    rows: Rows = [[key, before, after] for key, (before, after) in report.calibrated.items()]
    return Section(
        "Calibration",
        text=f"These numbers of the profile were fitted to {names}, which are not scored.",
        table=Table(columns=["key", "before", "after"], rows=rows),
    )


def _resources(report: Report) -> Iterator[Section]:
    causes = operations(report.scored)
    if not causes:
        return
    columns = ["configuration", "resource", "predicted s", "measured s"]
    rows: Rows = [
        [trial.name, str(resource), *seconds]
        for trial in report.scored
        for resource, seconds in trial.busy.items()
    ]
    yield Section(
        "Where the seconds are",
        operations_figure(causes),
        "Over all scored runs, from predicted records and those of the last repeat.",
    )
    yield Section("Busy seconds by resource", table=Table(columns=columns, rows=rows))


def _worst(report: Report) -> Table:
    columns = ["configuration", "pass", "predicted ms", "measured ms", "error %", "differs most"]
    rows: Rows = [
        [
            one.configuration,
            one.place,
            1e3 * one.predicted_s,
            1e3 * one.measured_s,
            100 * one.error,
            "; ".join(
                f"{cause.resource} {cause.operation} {1e3 * cause.predicted_s:.3g} → "
                f"{1e3 * cause.measured_s:.3g}"
                for cause in one.causes
            )
            or "no records",
        ]
        for one in report.worst_passes
    ]
    return Table(columns=columns, rows=rows)

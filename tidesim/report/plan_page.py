"""The page of a plan: which machine to get, what each does and costs, and how sure that is."""

from collections.abc import Iterator
from pathlib import Path

from tidesim.hardware import what_if_label
from tidesim.plan import Plan, Row
from tidesim.plan.band import CALL_SPREAD, RATE_SPREAD
from tidesim.plan.upgrades import PARTS
from tidesim.plan.words import answers, scope
from tidesim.report.html import Section, Table, write_report
from tidesim.report.plan_figures import cost_figure, machines_figure, memory_figure


def write_plan_page(path: Path, found: Plan, *, trace: str) -> None:
    """Write a self-contained page of a plan.

    Parameters
    ----------
    path : Path
    found : Plan
    trace : str
        Name of the trace.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_report(
        path,
        title="tidesim: a capacity plan",
        lead=_lead(found),
        sections=list(_sections(found)),
        footer=_footer(found, trace),
    )


def _sections(found: Plan) -> Iterator[Section]:
    if found.rows:
        yield Section("How fast", machines_figure(found), _band(found), table=_speeds(found))
        yield Section(
            "The best schedules",
            text="Found by the solver on the training requests; hits are token-expert pairs that "
            "residents serve. All experts also take host memory.",
            table=_schedules(found),
        )
        yield Section("What it costs", cost_figure(found), _money(found), table=_prices(found))
    if any(row.found.upgrades for row in found.rows):
        yield Section(
            "What one upgrade gives",
            text="Tokens per second more, with one part twice as good and the schedule kept or "
            "solved anew, whichever is faster. More cores read weights no faster than the memory; "
            "more channels are taken to speed up the expert kernels as much. GPU memory is offered "
            "where all of it is used. Prices of parts are not known here.",
            table=_upgrades(found),
        )
    if found.rows:
        yield Section("What the GPU holds", memory_figure(found))
    if found.not_assessable:
        yield Section(
            "Not assessable",
            text="Profiles that lack numbers a run needs; measure the machine with `tidesim "
            "hardware measure`, or add the numbers to its profile.",
            table=Table(
                columns=["machine", "missing"],
                rows=[[name, ", ".join(missing)] for name, missing in found.not_assessable],
            ),
        )
    if found.left_out:
        yield Section(
            "Left out",
            table=Table(
                columns=["machine", "memory, GB", "why"],
                rows=[[name, size, reason] for name, size, reason in found.left_out],
            ),
        )


def _lead(found: Plan) -> str:
    told = dict(answers(found))
    words = f"Asked for: {told['asked for']}. The cheapest machine: {told['cheapest']}."
    if "cheapest to be sure" in told:
        words += f" To be sure, at the low end of the band: {told['cheapest to be sure']}."
    if "helps it most" in told:
        words += f" What would help it most: {told['helps it most']}."
    return f"{found.model}. {words}"


def _band(found: Plan) -> str:
    words = (
        f"{scope(found)}. The band holds the simulator's own error ({100 * found.method.run_error:.3g} % "
        "of a run; unless yours is given, that of a validation on a two-core machine without a GPU) and "
        "what may be wrong with numbers that nobody measured: all published and estimated rates off "
        f"by a factor of {RATE_SPREAD:g} and costs per call by {CALL_SPREAD:g}, all in one direction. "
        "A measured profile has the first alone. Requests unlike these are beyond it."
    )
    shared = [row.hardware for row in found.rows if row.found.site.profile.machine.unified_memory]
    if shared:
        words += (
            f" In {', '.join(dict.fromkeys(shared))} GPU and CPU share one memory's rate, which the "
            "simulator does not know: experts on the CPU beside a busy GPU come out too fast."
        )
    return words


def _speeds(found: Plan) -> Table:
    return Table(
        columns=[
            "machine", "tokens/s", "low", "high", "measured, %", "meets", "block P50, s", "P95, s",
            "waits for",
        ],
        rows=[
            [
                row.name,
                row.tokens_per_s,
                row.found.band.low,
                row.found.band.high,
                100 * row.found.band.measured,
                row.meets or "–",
                *row.found.block_s,
                row.found.result.bottleneck,
            ]
            for row in found.rows
        ],
        chosen=_chosen(found),
    )  # fmt: skip


def _schedules(found: Plan) -> Table:
    return Table(
        columns=["machine", "refresh", "promotion", "slots", "hits, %", "host memory, GB"],
        rows=[
            [
                row.name,
                _refresh(row),
                row.found.result.promotion if row.found.result.refreshes else "–",
                sum(row.found.result.budgets),
                100 * row.found.result.hit_rate,
                row.found.host_bytes / 1e9,
            ]
            for row in found.rows
        ],
        chosen=_chosen(found),
    )


def _refresh(row: Row) -> str:
    interval = row.found.schedule.interval
    if interval:
        return "every step" if interval == 1 else f"every {interval} steps"
    return "by layer" if row.found.result.refreshes else "never"


def _chosen(found: Plan) -> int | None:
    return None if found.choice is None else found.rows.index(found.choice)


def _money(found: Plan) -> str:
    assumed = found.assumed
    return (
        f"Bought: written off over {assumed.years:g} years of which the machine decodes "
        f"{100 * assumed.use:.3g} %, and electricity at {assumed.usd_per_kwh:g} USD/kWh at the power "
        "limit (all assumed); of the GPU alone, without a host, unless GPU and CPU share one memory. "
        "Rented: the whole machine, at the profile's price of an hour, which may be a spot price."
    )


def _prices(found: Plan) -> Table:
    return Table(
        columns=[
            "machine", "tokens/s", "USD to buy", "USD/h owned", "USD/h rented",
            "USD/Mtoken owned", "USD/Mtoken rented", "Wh/Mtoken",
        ],
        rows=[
            [
                row.name,
                row.tokens_per_s,
                None if row.costs.price_usd is None else round(row.costs.price_usd),
                row.costs.owned_usd_per_h,
                row.costs.cloud_usd_per_h,
                row.costs.owned_usd_per_mtoken,
                row.costs.cloud_usd_per_mtoken,
                row.costs.wh_per_mtoken,
            ]
            for row in found.rows
        ],
        chosen=_chosen(found),
    )  # fmt: skip


def _upgrades(found: Plan) -> Table:
    names = [part.name for part in PARTS]
    gains = [
        {one.name: round(100 * one.gain, 1) for one in row.found.upgrades} for row in found.rows
    ]
    return Table(
        columns=["machine", "helps most", *(f"{name}, %" for name in names)],
        rows=[
            [
                row.name,
                row.best_upgrade.name if row.best_upgrade else "none of these",
                *(gain.get(name) for name in names),
            ]
            for row, gain in zip(found.rows, gains, strict=True)
        ],
        chosen=_chosen(found),
    )


def _footer(found: Plan, trace: str) -> list[tuple[str, str]]:
    lines = [("times", "simulated"), ("prices", "published or estimated, as each profile says")]
    if found.rows:
        run = found.rows[0].found.result
        lines += [
            ("routing", f"{run.sizes}, {run.provenance}, {trace}"),
            ("trace sha256", run.trace_sha256 or "– (never a file)"),
            ("engine, formulation", f"{found.method.engine}, {found.method.formulation}"),
        ]
    profiles = {what_if_label(row.found.site.profile): row.found for row in found.rows}
    for label, one in profiles.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in one.result.hardware_kinds.items())
        lines.append((label, f"{kinds}; profile sha256 {one.result.profile_sha256}"))
    return lines

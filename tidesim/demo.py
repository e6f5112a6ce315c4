"""The whole main job in one call: capture, solve, simulate, compare, report."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidesim.compare import Comparison, Row, compare
from tidesim.critical_path import critical_path
from tidesim.errors import OutputError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.model_spec import load_model_spec
from tidesim.optimize import Optimised
from tidesim.policies.scheduled import follow
from tidesim.records import Record, Records
from tidesim.report.html import Section, Table, write_report
from tidesim.report.run_figures import interval_figure, policies_figure, timeline_figure
from tidesim.report.trace_figures import stability_figure
from tidesim.runtime.capture import Captured, capture
from tidesim.runtime.checkpoint import checkpoint_digest, load_model, load_tokenizer
from tidesim.runtime.decode import DecodeSettings, PassEvent
from tidesim.runtime.device import set_up_torch
from tidesim.runtime.prompts import Prompt, load_prompts
from tidesim.schedule import save_schedule
from tidesim.simulate import simulate
from tidesim.trace.io import load_trace
from tidesim.trace.passes import Kind, Trace, Window
from tidesim.trace.stats import trace_stats

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHECKPOINT, HARDWARE, SIZES = "tide-tiny", "a100-40gb-pcie4-xeon48", "llada2.0-mini"
SETTINGS = DecodeSettings(gen_length=128, temperature=1.0, threshold=0.9, top_p=0.95)
TIMELINE_STEPS = 3

Stage = Callable[[str], None]
Watch = Callable[[int, PassEvent], None]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demonstration produced; the files lie in its folder."""

    trace: Path
    schedule: Path
    report: Path
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """Return paths, the chosen interval and tokens per second by policy."""
        return {
            "trace": str(self.trace),
            "schedule": str(self.schedule),
            "report": str(self.report),
            "interval": self.comparison.chosen.interval,
            "tokens_per_s": {row.name: row.tokens_per_s for row in self.comparison.rows},
        }


def demo_prompts() -> list[Prompt]:
    """Return one bundled prompt of each kind: two to train on, one held out."""
    prompts = load_prompts()
    kinds = list(dict.fromkeys(prompt.kind for prompt in prompts))
    wanted = dict(zip(kinds, ("train", "train", "heldout"), strict=True))
    return [
        next(p for p in prompts if p.kind == kind and p.split == split)
        for kind, split in wanted.items()
    ]


def run_demo(folder: Path, *, stage: Stage, watch: Watch, prompts: list[Prompt]) -> Demo:
    """Run the demonstration.

    Parameters
    ----------
    folder : Path
        Created if need be; receives ``trace.parquet``, ``schedule.json`` and ``report.html``.
    stage : callable
        Told what begins, in a few words.
    watch : callable
        Sees every pass while text is written.
    prompts : list of Prompt
        From `demo_prompts`.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created ({error.strerror})") from None
    path = folder / "trace.parquet"
    stage(f"1/3 capture: {CHECKPOINT} writes {len(prompts)} texts")
    set_up_torch(device="cpu", threads=1, dtype=None)  # its products are too small to share
    _capture(path, load_tokenizer(CHECKPOINT), prompts, watch)
    trace, profile, sizes = load_trace(path), load_profile(HARDWARE), load_model_spec(SIZES)
    budget = trace.meta.model.num_experts // 4
    stage(f"2/3 solve for {budget} experts per layer on {HARDWARE}, compare with every policy")
    comparison = compare(trace, profile, budget=budget, sizes=sizes)
    save_schedule(comparison.solved.schedule, folder / "schedule.json")
    stage("3/3 report")
    report = folder / "report.html"
    _write_report(report, trace, profile, comparison)
    return Demo(
        trace=path,
        schedule=folder / "schedule.json",
        report=report,
        comparison=comparison,
    )


def _capture(path: Path, tokenizer: "Tokenizer", prompts: list[Prompt], watch: Watch) -> Captured:
    return capture(
        load_model(CHECKPOINT),
        [(prompt, prompt.tokens(tokenizer)) for prompt in prompts],
        SETTINGS,
        path,
        checkpoint_sha256=checkpoint_digest(CHECKPOINT),
        source="bundled prompts",
        observe=watch,
    )


def timeline_records(
    trace: Trace, profile: HardwareProfile, solved: Optimised, *, steps: int
) -> list[Record]:
    """Return the records of the first denoise steps of a request's second block, as scheduled."""
    plan = solved.schedule
    request = trace.meta.requests[-1].request
    result = simulate(
        trace.only([request]),
        profile,
        policy=follow(plan),
        budget=max(plan.budgets),
        interval=plan.interval,
        promotion=plan.promotion,
        engine=plan.engine,
        sizes=load_model_spec(SIZES),
        popularity_from=trace.split("train"),
        keep_records=True,
    )
    blocks = sorted({p.block for p in trace if p.request == request and p.kind is Kind.DENOISE})
    chosen = blocks[min(1, len(blocks) - 1)]
    return [r for r in result.records or () if r.block == chosen and r.step < steps]


def how_often(row: Row) -> str:
    """Say when a schedule refreshes."""
    return f"every {row.interval} steps" if row.interval else "never"


def _percent(difference: float | None) -> str:
    """Write the simulated time above the objective, from the objective's relative error."""
    return "–" if difference is None else f"{100 * (1 / (1 + difference) - 1):+.1f} %"


def _write_report(
    path: Path, trace: Trace, profile: HardwareProfile, comparison: Comparison
) -> None:
    rows = sorted(comparison.rows, key=lambda row: -row.tokens_per_s)
    solved, chosen = comparison.solved, comparison.chosen
    simulated = {
        row.interval: row.seconds_per_block
        for row in comparison.rows
        if row.policy == "tide" and row.interval
    }
    stats = [trace_stats(trace, window=window) for window in Window]
    budget = trace.meta.model.num_experts // 4
    operations = timeline_records(trace, profile, solved, steps=TIMELINE_STEPS)
    sections = [
        Section(
            "How stable routing is",
            stability_figure(*stats),
            "Experts chosen by neighbouring denoise steps of a block are nearly the same, which "
            "is why their placement need not follow every step.",
        ),
        Section(
            "Time by refresh interval",
            interval_figure(solved.cost_by_interval_s, simulated, chosen=chosen.interval or 1),
            "The solver weighs copies against experts computed on the CPU, on the training "
            f"requests; simulated, their time differs from its objective by "
            f"{_percent(solved.difference)}.",
        ),
        Section(
            "Policies compared",
            policies_figure(
                {row.name: row.tokens_per_s for row in rows},
                bounds=[row.name for row in rows if row.is_bound],
                chosen=chosen.name,
            ),
            f"Held-out request, {budget} of {trace.meta.model.num_experts} experts per layer on "
            "the GPU. Hatched bars are limits, not runtimes.",
            table=Table(
                columns=[
                    "policy", "tokens/s", "ms per block", "hit rate %", "promotions", "bound by",
                ],
                rows=[
                    [
                        row.name, row.tokens_per_s, 1e3 * row.seconds_per_block,
                        100 * row.hit_rate, row.promotions, row.bottleneck,
                    ]
                    for row in rows
                ],
                chosen=rows.index(chosen),
            ),
        ),
        Section(
            "What each resource does",
            timeline_figure(operations, path=critical_path(Records(operations))),
            f"The first {TIMELINE_STEPS} denoise steps of a block under the chosen schedule, with "
            "their critical path. Hover for the operation.",
        ),
    ]  # fmt: skip
    write_report(
        path,
        title="tidesim: from a model run to a solved schedule",
        lead=f"Refresh the experts {how_often(chosen)}: {chosen.tokens_per_s:.1f} tokens/s "
        f"simulated on {profile.name}, bound by {chosen.bottleneck}.",
        sections=sections,
        footer=[
            ("routing", f"captured from {CHECKPOINT} in this run, trace sha256 {trace.sha256}"),
            ("checkpoint sha256", trace.meta.checkpoint_sha256),
            ("sizes", f"{solved.training.sizes} (a what-if)"),
            ("machine", f"{profile.name}, published and estimated rates, sha256 {profile.sha256}"),
            ("times", "simulated, not measured"),
        ],
    )

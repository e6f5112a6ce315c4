"""Reproduce: the TIDE paper's throughputs, predicted from synthetic traces and published rates.

Two per-call costs of the authors' engine are fitted to the rows of LLaDA2.0-mini at 128 experts per
layer; every other row is a prediction. The engine runs one operation after another, so that seconds
are linear in those costs. The paper names two generation lengths and does not say which a row is of;
a row is predicted as the mean over both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from tidesim.calibrate import fit
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.latency import Latency
from tidesim.model_spec import load_model_spec
from tidesim.optimize import in_memory
from tidesim.placement import FloatArray
from tidesim.simulate import Case, prepare
from tidesim.simulate.chunks import Chunk, chunked
from tidesim.simulate.fast import run_fast, time_passes
from tidesim.simulate.prices import Prices
from tidesim.trace.passes import Kind, Trace
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import load_parameters

ENGINE = "tide-reference"
MINI, FLASH = "llada2.0-mini", "llada2.0-flash"
MACHINES = {MINI: "a100-40gb-pcie4-xeon48", FLASH: "h100-80gb-sxm-pcie5-xeon48"}
REQUESTS, SEED, WORKLOAD = 4, 0, "mbpp"  # the fourth is held out and judged
# Two costs: an expert's call, on either side, and a copy of one of its three tensors.
FITTED = (("gpu_expert_call_s", "cpu_expert_call_s"), ("expert_copy_call_s",))
NAMES = ("expert_call_s", "expert_copy_call_s")
UNIT_S, MOST_CALL_S = 1e-4, 0.1  # where the fit starts; no call is believed to take longer
SOLVED, EVERY_STEP, RANDOM, FIDDLER = "tide", "mixtral-offload", "random interval", "fiddler"
FLASH_BUDGETS, BLOCK_LENGTHS, LENGTHS = (64, 32), (64, 128), (256, 1024)
FASTER_DECODING = (1.25, 1.5)


class Published(NamedTuple):
    """A throughput of the paper."""

    model: str
    budget: int
    policy: str
    tokens_per_s: float
    is_fitted: bool


# TIDE, arXiv 2605.20179: tokens/s on an A100 40 GB with a 48-core host, sanitized MBPP, block 32.
PUBLISHED = (
    Published(MINI, 128, SOLVED, 2.44, True),
    Published(MINI, 128, EVERY_STEP, 1.91, True),
    Published(MINI, 128, RANDOM, 2.14, True),
    Published(MINI, 64, SOLVED, 2.11, False),
    Published(MINI, 64, EVERY_STEP, 1.69, False),
    Published(MINI, 64, FIDDLER, 1.81, False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One throughput.

    Attributes
    ----------
    model, hardware : str
    budget : int
        Slots per mixture layer.
    policy : str
    intervals : tuple of (int or None)
        For each generation length; None where there is no interval.
    gen_lengths : tuple of int
        Tokens per second are the mean over these.
    block_length : int
    tokens_per_forward : float
    engine : str
    published : float or None
        Tokens per second in the paper.
    predicted : float
        Tokens per second, simulated.
    error : float or None
        Relative, of the prediction.
    fitted : bool
        The published number was used to fit per-call costs.
    bottleneck : str or None
        Of engine ``tidesim``.
    """

    model: str
    hardware: str
    budget: int
    policy: str
    intervals: tuple[int | None, ...]
    gen_lengths: tuple[int, ...]
    block_length: int
    tokens_per_forward: float
    engine: str
    published: float | None
    predicted: float
    error: float | None
    fitted: bool
    bottleneck: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Published rows, predictions beyond them, and the same machines with engine ``tidesim``.

    Attributes
    ----------
    rows : tuple of Row
    costs_s : dict of float
        Fitted seconds of an expert's call and of a copy of one of its tensors.
    """

    rows: tuple[Row, ...]
    costs_s: dict[str, float]

    def ratios(self) -> list[dict[str, Any]]:
        """Return tide over each other policy, published and predicted, of one model and budget."""
        published = [row for row in self.rows if row.published is not None]
        found = []
        for mine in (row for row in published if row.policy == SOLVED):
            for row in published:
                if row is mine or (row.model, row.budget) != (mine.model, mine.budget):
                    continue
                assert mine.published is not None
                assert row.published is not None
                theirs, ours = mine.published / row.published, mine.predicted / row.predicted
                found.append(
                    {
                        "model": row.model,
                        "budget": row.budget,
                        "over": row.policy,
                        "published": theirs,
                        "predicted": ours,
                        "error": ours / theirs - 1,
                        "fitted": row.fitted,
                    }
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "ratios": self.ratios(),
            "fitted_costs_s": self.costs_s,
            "provenance": "synthetic",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is decoded, and where.

    Attributes
    ----------
    model : str
    gen_length, block_length : int
    faster : float
        How many times as many tokens a forward decodes as at threshold 0.95.
    """

    model: str
    gen_length: int = LENGTHS[0]
    block_length: int = 32
    faster: float = 1.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens that a denoise pass decodes on average."""
        return load_parameters(self.model).workloads[WORKLOAD].tokens_per_forward * self.faster

    def trace(self) -> Trace:
        """Draw the synthetic trace."""
        parameters = load_parameters(self.model)
        workload = parameters.workloads[WORKLOAD]
        workload = workload.model_copy(update={"tokens_per_forward": self.tokens_per_forward})
        parameters = parameters.model_copy(update={"workloads": {WORKLOAD: workload}})
        return in_memory(
            synthesize(
                parameters,
                load_model_spec(self.model),
                requests=REQUESTS,
                gen_length=self.gen_length,
                seed=SEED,
                workload=WORKLOAD,
                block_length=self.block_length,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The seconds of a run, linear in the engine's per-call costs.

    Attributes
    ----------
    base_s : float
        With calls that cost nothing.
    calls : [costs] float64
        How many of each kind.
    tokens : int
    """

    base_s: float
    calls: FloatArray
    tokens: int

    @classmethod
    def of(cls, case: Case) -> Self:
        """Place a run of an engine that runs one operation after another, and count its calls."""
        chunks, profile = list(chunked(case.placed())), case.latency.profile
        free = {_key(key): 0.0 for keys in FITTED for key in keys}
        dear = [free | {_key(key): 1.0 for key in keys} for keys in FITTED]
        base_s = _seconds(case, chunks, profile.with_overrides(free))
        each_s = [_seconds(case, chunks, profile.with_overrides(costs)) for costs in dear]
        return cls(
            base_s=base_s,
            calls=np.array(each_s) - base_s,
            tokens=sum(info.generated_tokens for info in case.trace.meta.requests),
        )

    def seconds(self, costs: FloatArray) -> float:
        """Return seconds at per-call costs, [costs]."""
        return float(self.base_s + self.calls @ costs)

    def tokens_per_s(self, costs: FloatArray) -> float:
        """Return the throughput at per-call costs, [costs]."""
        return self.tokens / self.seconds(costs)


def _key(name: str) -> str:
    return f"engine.{ENGINE}.{name}"


def _seconds(case: Case, chunks: Sequence[Chunk], profile: HardwareProfile) -> float:
    engine = case.setup.engine
    prices = Prices(Latency(profile, case.spec, engine=engine.name), engine, case.spec)
    return time_passes(chunks, prices).seconds


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A setting's trace on its machine; runs of engine ``tide-reference`` are placed once.

    Attributes
    ----------
    setting : Setting
    trace : Trace
    profile : HardwareProfile
    steps : int
        T: denoise steps of the longest block.
    lines : dict
        Runs placed so far.
    """

    setting: Setting
    trace: Trace
    profile: HardwareProfile
    steps: int
    lines: dict[tuple[str, int, int | None, str], Line]

    @classmethod
    def of(cls, setting: Setting) -> Self:
        """Draw the trace and load the machine."""
        trace = setting.trace()
        return cls(
            setting=setting,
            trace=trace,
            profile=load_profile(MACHINES[setting.model]),
            steps=1 + max(pass_.step for pass_ in trace if pass_.kind is Kind.DENOISE),
            lines={},
        )

    def case(self, policy: str, budget: int, *, interval: int | None, **settings: Any) -> Case:
        """Return a run of all requests, popularity from the training ones."""
        return prepare(
            self.trace,
            self.profile,
            policy=policy,
            budget=budget,
            interval=interval,
            popularity_from=self.trace.split("train"),
            **settings,
        )

    def line(
        self,
        policy: str,
        budget: int,
        *,
        interval: int | None = None,
        split: Literal["train", "heldout"],
    ) -> Line:
        """Return how the seconds of a run of the authors' engine follow from its per-call costs."""
        key = (policy, budget, interval, split)
        if key not in self.lines:
            case = self.case(policy, budget, interval=interval, engine=ENGINE)
            self.lines[key] = Line.of(replace(case, trace=self.trace.split(split)))
        return self.lines[key]

    def intervals(self) -> tuple[int, ...]:
        """Return the intervals that the paper chooses from, 1 to T - 1."""
        return tuple(range(1, max(2, self.steps)))

    def solved(self, budget: int, costs: FloatArray, intervals: Sequence[int]) -> int:
        """Return the interval that is fastest on the training requests."""
        lines = {tau: self.line("tide", budget, interval=tau, split="train") for tau in intervals}
        return min(lines, key=lambda tau: lines[tau].seconds(costs))

    def speed(self, policy: str, budget: int, costs: FloatArray) -> tuple[float, int | None]:
        """Return tokens per second on the held-out request, and the interval, by the paper's names."""
        judged = partial(self.line, split="heldout")
        if policy == SOLVED:
            interval = self.solved(budget, costs, self.intervals())
            return judged("tide", budget, interval=interval).tokens_per_s(costs), interval
        if policy == RANDOM:
            lines = [judged("tide", budget, interval=tau) for tau in self.intervals()]
            mean_s = float(np.mean([line.seconds(costs) for line in lines]))
            return lines[0].tokens / mean_s, None
        if policy == EVERY_STEP:
            return judged("tide", budget, interval=1).tokens_per_s(costs), 1
        return judged(policy, budget).tokens_per_s(costs), None


def reproduce() -> Reproduction:
    """Fit, predict the paper's rows and others, and say what the same machines could do."""
    mini = [Bench.of(Setting(model=MINI, gen_length=length)) for length in LENGTHS]
    flash = [Bench.of(Setting(model=FLASH, gen_length=length)) for length in LENGTHS]
    costs = fitted_costs(mini)
    rows = [predict(mini, each.policy, each.budget, costs, published=each) for each in PUBLISHED]
    rows += _beyond(mini, (128, 64), costs)
    rows += _beyond(flash, FLASH_BUDGETS, costs)
    others = [Setting(model=FLASH, block_length=length) for length in BLOCK_LENGTHS]
    others += [Setting(model=FLASH, faster=faster) for faster in FASTER_DECODING]
    for setting in others:
        rows += _beyond([Bench.of(setting)], FLASH_BUDGETS, costs)
    rows += _with_tidesim(mini[0], (128, 64))
    rows += _with_tidesim(flash[0], FLASH_BUDGETS)
    return Reproduction(rows=tuple(rows), costs_s=dict(zip(NAMES, costs.tolist(), strict=True)))


def fitted_costs(benches: Sequence[Bench]) -> FloatArray:
    """Return the per-call costs, [costs], that bring the rows to be fitted nearest."""
    rows = [row for row in PUBLISHED if row.is_fitted]

    def errors(scaled: FloatArray) -> FloatArray:
        costs = scaled * UNIT_S
        found = [_mean(benches, row.policy, row.budget, costs) for row in rows]
        return np.array(found) / [row.tokens_per_s for row in rows] - 1

    ones = np.ones(len(FITTED))
    return np.asarray(fit(errors, ones, 0 * ones, ones * MOST_CALL_S / UNIT_S) * UNIT_S)


def _mean(benches: Sequence[Bench], policy: str, budget: int, costs: FloatArray) -> float:
    return float(np.mean([bench.speed(policy, budget, costs)[0] for bench in benches]))


def predict(
    benches: Sequence[Bench],
    policy: str,
    budget: int,
    costs: FloatArray,
    *,
    published: Published | None = None,
) -> Row:
    """Predict one throughput of the authors' engine, the mean over generation lengths."""
    predicted = _mean(benches, policy, budget, costs)
    there = published.tokens_per_s if published else None
    return _make_row(
        benches,
        budget=budget,
        policy=policy,
        intervals=tuple(bench.speed(policy, budget, costs)[1] for bench in benches),
        engine=ENGINE,
        published=there,
        predicted=predicted,
        error=predicted / there - 1 if there else None,
        fitted=published is not None and published.is_fitted,
    )


def _make_row(benches: Sequence[Bench], **values: Any) -> Row:
    setting = benches[0].setting
    return Row(
        model=setting.model,
        hardware=benches[0].profile.name,
        gen_lengths=tuple(bench.setting.gen_length for bench in benches),
        block_length=setting.block_length,
        tokens_per_forward=setting.tokens_per_forward,
        **values,
    )


def _beyond(benches: Sequence[Bench], budgets: Sequence[int], costs: FloatArray) -> Iterator[Row]:
    """Predict each length by itself: what the paper names without a number that could be read."""
    for bench in benches:
        for budget in budgets:
            for policy in (SOLVED, EVERY_STEP, FIDDLER):
                yield predict([bench], policy, budget, costs)


def _with_tidesim(bench: Bench, budgets: Sequence[int]) -> Iterator[Row]:
    """Simulate the same machine with our own engine: intervals chosen on the training requests."""
    for budget in budgets:
        for promotion in ("blocking", "background"):
            runs = {
                tau: bench.case("tide", budget, interval=tau, promotion=promotion)
                for tau in (1, 2, 4, 8, 16)
            }
            train, heldout = bench.trace.split("train"), bench.trace.split("heldout")
            tau = min(runs, key=lambda tau: run_fast(replace(runs[tau], trace=train)).seconds)
            result = run_fast(replace(runs[tau], trace=heldout))
            yield _make_row(
                [bench],
                budget=budget,
                policy=f"tide, {promotion}",
                intervals=(tau,),
                engine="tidesim",
                published=None,
                predicted=result.tokens_per_s,
                error=None,
                fitted=False,
                bottleneck=result.bottleneck,
            )

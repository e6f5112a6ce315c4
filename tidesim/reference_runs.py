"""Reference runs: the TIDE authors' engine on synthetic traces, seconds as a function of its costs.

The engine runs one operation after another, so that seconds are linear in its per-call costs and a
run is placed once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from tidesim.hardware import HardwareProfile, load_profile
from tidesim.latency import Latency
from tidesim.model_spec import load_model_spec
from tidesim.optimize import in_memory
from tidesim.placement import FloatArray
from tidesim.simulate import Case, prepare
from tidesim.simulate.chunks import Chunk, chunked
from tidesim.simulate.fast import time_passes
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
SOLVED, EVERY_STEP, RANDOM, FIDDLER = "tide", "mixtral-offload", "random interval", "fiddler"


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
    gen_length: int = 256
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

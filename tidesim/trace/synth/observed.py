"""What a trace gives a fit: its workloads by moments, its statistics as targets."""

from collections import Counter
from dataclasses import replace

import numpy as np

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.trace.passes import Kind, RequestInfo, Trace
from tidesim.trace.stats import default_budgets
from tidesim.trace.synth.figures import figures
from tidesim.trace.synth.fit import ROUNDS, Effort
from tidesim.trace.synth.parameters import (
    FORMAT,
    VERSION,
    Parameters,
    Routing,
    Spread,
    Target,
    Workload,
    load_parameters,
)

_START = "llada2.0-flash"  # bundled parameters whose routing numbers a fit starts from
_UNNAMED = "captured"
_REPEAT_SHARE = 0.2  # the bundled one is 0, which is the end of its range
_SHARE = 0.05  # tolerance, of a value


def parameters_of(
    trace: Trace, *, name: str, requests: int, rounds: int = ROUNDS
) -> tuple[Parameters, Trace, Effort]:
    """Return where a fit to a trace starts, what of the trace it looks at, and how much to draw.

    Parameters
    ----------
    trace : Trace
        With experts and masked positions recorded.
    name : str
        What to call it in the parameters.
    requests : int
        How many of its requests to look at, evenly spaced.
    rounds : int
        Steps of the fit at most.

    Raises
    ------
    SettingError
        No requests or rounds asked for, or the trace does not record what a fit needs.
    """
    effort = Effort(requests=requests, gen_length=1, rounds=rounds)
    seen = _evenly(trace, requests)
    model, infos = trace.meta.model, seen.meta.requests
    workloads = _workloads(seen, name)
    found = figures(seen)
    targets = _targets(found, model, name)
    start = load_parameters(_START)
    parameters = Parameters(
        format=FORMAT,
        version=VERSION,
        model=model.name,
        note=f"Fitted to {name} by tidesim trace fit.",
        model_seed=start.model_seed,
        routing=_routing(start.routing, name),
        spread_by_layer=_spread(found, model, name),
        workloads=workloads,
        targets=targets,
    )
    written = sum(info.generated_tokens for info in infos) / len(infos)
    effort = replace(effort, requests=len(infos), gen_length=max(1, round(written)))
    return parameters, seen, effort


def _routing(start: Routing, name: str) -> Routing:
    values = {key: number.value for key, number in start} | {"repeat_share": _REPEAT_SHARE}
    source = f"all targets, of {name}"
    return Routing.model_validate(
        {key: {"value": value, "fitted_to": source} for key, value in values.items()}
    )


def _evenly(trace: Trace, requests: int) -> Trace:
    numbers = [info.request for info in trace.meta.requests]
    places = np.linspace(0, len(numbers) - 1, min(requests, len(numbers))).round().astype(int)
    return trace.only([numbers[place] for place in places])


def _kind(info: RequestInfo) -> str:
    return info.prompt_kind or _UNNAMED


def _workloads(trace: Trace, name: str) -> dict[str, Workload]:
    """Return decoded positions per denoise pass and mean prompt by kind of prompt."""
    kinds = {info.request: _kind(info) for info in trace.meta.requests}
    decoded: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    for pass_ in trace:
        if pass_.kind is not Kind.DENOISE:
            continue
        if pass_.masked is None or pass_.experts is None:
            raise SettingError(
                f"{name}: request {pass_.request}, block {pass_.block}, step {pass_.step} does not "
                "record experts and masked positions, which a fit needs; capture the trace anew"
            )
        kind = kinds[pass_.request]
        passes[kind] += 1
        decoded[kind] += int(pass_.masked.sum()) if pass_.step == 0 else 0
    return {
        kind: Workload(
            tokens_per_forward=round(max(1.0, decoded[kind] / passes[kind]), 4),
            prompt_tokens=max(1, round(_mean_prompt(trace, kind))),
            source=f"mean of {name}",
        )
        for kind in passes
    }


def _mean_prompt(trace: Trace, kind: str) -> float:
    return float(
        np.mean([info.prompt_tokens for info in trace.meta.requests if _kind(info) == kind])
    )


def _spread(found: dict[str, float], model: ModelSpec, name: str) -> Spread:
    names = [f"late.by_layer.{n}.distinct_experts.mean" for n in range(model.moe_layers)]
    shown = all(name in found for name in names)
    return Spread(
        value=(1.0,) * model.moe_layers,
        distinct_experts=tuple(round(found[each], 3) for each in names) if shown else (),
        fitted_to=f"distinct experts of every layer in late steps of {name}",
    )


def _targets(found: dict[str, float], model: ModelSpec, name: str) -> tuple[Target, ...]:
    return tuple(
        Target(
            figure=figure,
            value=round(found[figure], 5),
            tolerance=round(_tolerance(figure, found[figure]), 5),
            source=name,
        )
        for figure in _names(model)
        if found.get(figure)
    )


def _tolerance(figure: str, value: float) -> float:
    """Return a twentieth; of cosines, which are near 1, a fifth of what they lack."""
    return max(0.01, (1 - value) / 5) if "cosine" in figure else _SHARE * value


def _names(model: ModelSpec) -> list[str]:
    E, budgets = model.num_experts, default_budgets(model)
    sizes = [size for size in (E // 32, E // 16, E // 8, E // 4, E // 8 * 3) if size]
    return [
        "block.distinct_experts.mean",
        "late.distinct_experts.mean",
        "block.masked.distinct_experts",
        "block.token_overlap.1",
        "late.token_overlap.1",
        "late.masked.token_overlap",
        "block.decoded.token_overlap",
        "block.just_decoded.token_overlap",
        "late.single_token_share",
        *(f"block.cosine.{lag}" for lag in (1, 5)),
        *(f"late.{measure}.{lag}" for measure in ("cosine", "jaccard") for lag in (1, 2, 3)),
        *(f"full.cosine.{lag}" for lag in (1, 5)),
        *(f"late.popularity_in_block.{size}" for size in sizes),
        *(f"late.hit_ratio.{budget}.{lag}" for budget in budgets for lag in range(4)),
        f"block.popularity.{1 << max(E // 8, 1).bit_length() - 1}",
        "block.between_blocks.same_step",
    ]

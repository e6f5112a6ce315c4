"""Scenes of a measurement: what the runtime's engines take for every piece of a pass, over grids."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tidesim.engines import TIDE_REFERENCE, TIDESIM, Engine
from tidesim.hardware import Curve
from tidesim.hardware_schema import (
    AttentionCurve,
    CombineCurve,
    DenseMlpCurve,
    ExpertCurve,
    HeadCurve,
    OneExpertCurve,
    RouterCurve,
    SharedCurve,
)
from tidesim.model_spec import ModelSpec
from tidesim.policies.tide import Tide
from tidesim.runtime.bench import Bench, Scene, Timing, even_routes
from tidesim.trace.passes import PassKey

INTERVAL = 4
STEPS = 8
SEED = 0
Observe = Callable[[float], None]


def _doubled(first: int, last: int) -> tuple[int, ...]:
    """Return first, 2 first, 4 first … and last."""
    points = {min(first << power, last) for power in range(64)}
    return tuple(sorted(points))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the curves of a model have their points.

    Attributes
    ----------
    tokens, context : tuple of int
        Of passes.
    decoded : tuple of int
        Positions of the output head.
    each : tuple of int
        Tokens per expert of the grouped calls.
    alone : tuple of int
        Tokens of one expert by itself.
    """

    tokens: tuple[int, ...]
    context: tuple[int, ...]
    decoded: tuple[int, ...]
    each: tuple[int, ...]
    alone: tuple[int, ...]

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """Choose the points: up to 16 blocks, which is what prompts and whole windows take."""
        block = spec.block_length
        most = min(16 * block, max(1, spec.max_position_embeddings // 2))
        low = max(1, min(block, most) // 4)
        contexts = (0, *(blocks * block for blocks in (2, 8, 32)))
        room = spec.max_position_embeddings - most
        tokens = tuple(sorted({low, *_doubled(min(block, most), most)}))
        return cls(
            tokens=tokens,
            context=tuple(context for context in contexts if context <= room),
            decoded=tuple(count for count in tokens if count <= 4 * block),
            each=(1, 2, 4, 8, 16, 32, 64),
            alone=(1, 2, 4, 8, 16, 32, 64, 128),
        )

    @property
    def longest(self) -> int:
        """Most tokens that a pass and its context have together."""
        return self.tokens[-1] + self.context[-1]

    @property
    def most_tokens(self) -> int:
        """More tokens than any pass of a scene has."""
        return max(self.tokens[-1], 4096)


@dataclass(kw_only=True)
class Findings:
    """Curves of a scene, seconds by name, and bytes with seconds of transfers there and back.

    `spreads` are the interquartile ranges of all its times over their medians.
    """

    spreads: list[float]

    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    transfers: list[tuple[int, float]] = field(default_factory=list)

    def at(self, name: str) -> float:
        """Return seconds by name; 0 where nobody saw it."""
        return self.seconds.get(name, 0.0)


def make_curve(
    kind: type[Curve],
    spec: ModelSpec,
    axes: Mapping[str, Sequence[int]],
    timings: Sequence[Timing | None],
    how: str,
) -> dict[str, Any]:
    """Return a curve as parsed TOML, with the sizes of the spec that it depends on."""
    seen = [timing for timing in timings if timing]
    spread, least = max(each.spread for each in seen), min(each.repeats for each in seen)
    sizes = {key: getattr(spec, key) for key in kind.model_fields if key in ModelSpec.model_fields}
    said = f"{how}, median of {least} passes or more, interquartile range up to {spread:.0%}"
    seconds = [max(1e-9, float(f"{each.seconds:.4g}")) for each in seen]
    return {**sizes, **axes, "seconds": seconds, "source": said, "kind": "measured"}


def pieces(bench: Bench, grid: Grid, seconds: float, observe: Observe) -> Findings:
    """Run whole passes with every expert resident: all pieces but the experts."""
    spec, block = bench.spec, bench.spec.block_length
    places = list(product(grid.tokens, grid.context))

    def run(scene: Scene, tokens: int, context: int, key: PassKey) -> None:
        last = tokens if tokens in grid.decoded else min(block, tokens)
        scene.forward(key, tokens, context, last)

    with bench.scene(TIDESIM, spec.num_experts) as scene:
        points = [partial(run, scene, *place) for place in places]
        samples = bench.sweep(points, seconds, observe)
    how = "inside whole passes of engine tidesim, all experts resident"

    def over(name: str, counts: Sequence[int]) -> list[Timing | None]:
        return [
            samples.timing(name, [at for at, place in enumerate(places) if place[0] == count])
            for count in counts
        ]

    attention = [samples.timing("attention", [at]) for at in range(len(places))]
    axes = {"tokens": grid.tokens, "context": grid.context}
    found = Findings(spreads=samples.spreads())
    found.curves["attention"] = make_curve(AttentionCurve, spec, axes, attention, how)
    for name, label, kind, counts in (
        ("dense_mlp", "dense MLP", DenseMlpCurve, grid.tokens),
        ("router", "router", RouterCurve, grid.tokens),
        ("shared", "shared", SharedCurve, grid.tokens),
        ("combine", "combine", CombineCurve, grid.tokens),
        ("head", "head", HeadCurve, grid.decoded),
    ):
        if name == "shared" and not spec.num_shared_experts:
            continue
        timings = over(label, counts)
        if all(timings):
            axis = {"tokens": counts}
            found.curves[name] = make_curve(kind, spec, axis, timings, how)
    usual = [at for at, place in enumerate(places) if place[0] == min(block, grid.tokens[-1])]
    found.seconds = {name: samples.seconds(name, usual) for name in ("wait", "shared")}
    return found


def together(bench: Bench, grid: Grid, seconds: float, observe: Observe) -> Findings:
    """Run mixture layers whose experts are all hits, or all misses: one call of either side."""
    spec, budget = bench.spec, max(1, bench.spec.num_experts // 2)
    sides = {"gpu": range(budget), "cpu": range(budget, spec.num_experts)}
    sides = {side: ids for side, ids in sides.items() if ids}
    axes = {side: _doubled(1, len(ids)) for side, ids in sides.items()}
    places = [
        (side, each, number) for side in sides for each, number in product(grid.each, axes[side])
    ]
    rng = np.random.default_rng(SEED)

    def run(scene: Scene, side: str, each: int, number: int, key: PassKey) -> None:
        filler = sides["cpu" if side == "gpu" and "cpu" in sides else "gpu"][0]
        scene.layers(key, _routes(bench, rng, sides[side], number, each, filler))

    with bench.scene(TIDESIM, budget) as scene:
        points = [partial(run, scene, *place) for place in places]
        samples = bench.sweep(points, seconds, observe)
    found = Findings(spreads=samples.spreads())
    for side in sides:
        at = [number for number, place in enumerate(places) if place[0] == side]
        timings = [samples.timing(f"experts {side}", [number]) for number in at]
        axis = {"tokens_per_expert": grid.each, "experts": axes[side]}
        how = "one call inside mixture layers of engine tidesim"
        found.curves[f"{side}_experts"] = make_curve(ExpertCurve, spec, axis, timings, how)
        found.seconds[f"shared {side}"] = samples.seconds("shared", _near_block(spec, places, at))
        if side == "cpu":
            found.seconds["chain"] = samples.seconds("chain", at)
    return found


def _near_block(
    spec: ModelSpec, places: Sequence[tuple[str, int, int]], at: Sequence[int]
) -> list[int]:
    """Return the points with about as many pairs as a block has."""
    pairs = spec.block_length * spec.num_experts_per_tok
    near = [number for number in at if pairs / 2 < places[number][1] * places[number][2] <= pairs]
    return near or list(at)


def looped(bench: Bench, grid: Grid, seconds: float, observe: Observe) -> Findings:
    """Run mixture layers expert by expert, some of them hits and some misses."""
    spec, budget = bench.spec, max(1, bench.spec.num_experts // 2)
    hits = min(8, budget)
    misses = min(8, spec.num_experts - budget)
    rng = np.random.default_rng(SEED)

    def run(scene: Scene, each: int, key: PassKey) -> None:
        routes = []
        for _ in range(spec.moe_layers):
            there = rng.choice(budget, hits, replace=False)
            here = budget + rng.choice(spec.num_experts - budget, misses, replace=False)
            ids = np.concatenate((there, here)).tolist()
            routes.append(_on(bench, ids, each, ids[0]))
        scene.layers(key, routes)

    with bench.scene(TIDE_REFERENCE, budget) as scene:
        points = [partial(run, scene, each) for each in grid.alone]
        samples = bench.sweep(points, seconds, observe)
    found = Findings(spreads=samples.spreads(), seconds={"wait": samples.seconds("wait")})
    for side in ("gpu", "cpu"):
        timings = [samples.timing(f"expert {side}", [at]) for at in range(len(grid.alone))]
        if all(timings):
            how = f"one of {hits + misses} experts inside mixture layers of engine tide-reference"
            curve = make_curve(OneExpertCurve, spec, {"tokens": grid.alone}, timings, how)
            found.curves[f"{side}_expert"] = curve
    row_bytes = spec.hidden_size * spec.dtype_bytes
    found.transfers = [
        (each * row_bytes, samples.seconds("hidden", [at]) + samples.seconds("result", [at]))
        for at, each in enumerate(grid.alone)
    ]
    return found


def moving(bench: Bench, engine: Engine, seconds: float, observe: Observe) -> Findings:
    """Run mixture layers under policy ``tide``, whose refreshes decide and copy."""
    spec = bench.spec
    budget = max(1, spec.num_experts // 4)
    rng = np.random.default_rng(SEED)
    weights = (np.arange(spec.num_experts) + 1.0) ** -1
    held = [rng.permutation(spec.num_experts) for _ in range(spec.moe_layers)]

    def run(scene: Scene, key: PassKey) -> None:
        if key.step % INTERVAL == 0:  # other experts are popular
            held[:] = [rng.permutation(spec.num_experts) for _ in range(spec.moe_layers)]
        routes = [_popular(bench, rng, order, weights) for order in held]
        scene.layers(key, routes)

    with bench.scene(engine, budget, Tide, interval=INTERVAL) as scene:
        samples = bench.sweep([partial(run, scene)] * STEPS, seconds, observe)
    steps = [samples.seconds("decide", [step]) for step in range(STEPS)]
    found = Findings(spreads=samples.spreads(), seconds={"decide": sum(steps) / STEPS})
    found.seconds |= {name: samples.seconds(name) for name in ("gap", "promote")}
    return found


def _popular(
    bench: Bench, rng: np.random.Generator, order: np.ndarray[Any, Any], weights: Any
) -> Tensor:
    """Route a block's tokens to experts whose popularity falls with their place in an order."""
    spec = bench.spec
    shape = (spec.block_length, spec.num_experts)
    keys = rng.exponential(size=shape) / weights  # the least K of a row: drawn without repeats
    places = keys.argpartition(spec.num_experts_per_tok - 1, axis=1)[:, : spec.num_experts_per_tok]
    return torch.from_numpy(order[places]).to(bench.backend.device)


def _routes(
    bench: Bench, rng: np.random.Generator, side: range, number: int, each: int, filler: int
) -> list[Tensor]:
    """Route `each` tokens to every one of `number` experts of a side, others in every layer."""
    drawn = (rng.choice(side, number, replace=False) for _ in range(bench.spec.moe_layers))
    return [_on(bench, ids.tolist(), each, filler) for ids in drawn]


def _on(bench: Bench, ids: list[int], each: int, filler: int) -> Tensor:
    routes = even_routes(ids, each, top_k=bench.spec.num_experts_per_tok, filler=filler)
    return routes.to(bench.backend.device)

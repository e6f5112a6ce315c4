"""Prices of a pass's operations: one engine, one machine, one set of sizes. No clock."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from tidesim.engines import Engine
from tidesim.latency import Direction, Latency, Numbers, Seconds
from tidesim.model_spec import ModelSpec
from tidesim.placement import PassPlacement
from tidesim.records import Resource
from tidesim.simulate.operations import IDS, Critical, Operation, Part, operation, single, unnamed
from tidesim.trace.passes import Kind, WindowedPass

ID_BYTES = 2  # expert ids travel as uint16
SIZES = 1024  # sizes of passes whose prices are kept


def hidden_bytes(spec: ModelSpec, rows: int) -> int:
    """Return the bytes of `rows` hidden states in the model's dtype."""
    return rows * spec.hidden_size * spec.dtype_bytes


def ids_bytes(spec: ModelSpec, tokens: int) -> int:
    """Return the bytes of one layer's expert ids."""
    return tokens * spec.num_experts_per_tok * ID_BYTES


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassPrices:
    """Operations of a pass that do not depend on placement.

    Attributes
    ----------
    fronts : tuple of Operation
        One per mixture layer: what the GPU runs from the experts before to this layer's router
        (combine of the layer before, dense layers, attention, router).
    ids : tuple of Operation
        One per mixture layer: the copy of its expert ids to the host.
    shared : tuple of Operation
        One per mixture layer: the shared experts.
    tail : Operation
        After the last experts: combine and, in denoise passes, head and sampling.
    shared_s : tuple of float
        Seconds of `shared`.
    gpu_s, ids_s, host_s : float
        Seconds of all fronts and the tail, of all ids, and of the host's syncs and decisions.
    critical_s : dict
        The same seconds by resource and operation: all of it is on the critical path.
    """

    fronts: tuple[Operation, ...]
    ids: tuple[Operation, ...]
    shared: tuple[Operation, ...]
    tail: Operation
    shared_s: tuple[float, ...]
    gpu_s: float
    ids_s: float
    host_s: float
    critical_s: Mapping[Critical, float]


class Prices:
    """Seconds of every operation of a run.

    Parameters
    ----------
    latency : Latency
    engine : Engine
    spec : ModelSpec
        The sizes simulated.

    Attributes
    ----------
    layers : range
        Indices of the mixture layers in the model.
    to_gpu_s, to_host_s : float
        Seconds of copying one expert.
    host : tuple of Operation
        One per mixture layer: host sync and the policy's decision.
    sync : Operation
        Host sync after the last layer.
    """

    def __init__(self, latency: Latency, engine: Engine, spec: ModelSpec) -> None:
        self.latency, self.engine, self.spec = latency, engine, spec
        copies, pinned = engine.copies_per_expert, engine.pinned
        self.to_gpu_s = latency.expert_copy_s(copies, Direction.H2D, pinned=pinned)
        self.to_host_s = latency.expert_copy_s(copies, Direction.D2H, pinned=pinned)
        self.layers = range(spec.first_k_dense_replace, spec.num_hidden_layers)
        self.host = tuple(
            operation(
                [Part("sync", latency.sync_s, layer), Part("decide", latency.decide_s, layer)]
            )
            for layer in self.layers
        )
        self.sync = single("sync", latency.sync_s, -1)
        self._of_size = lru_cache(maxsize=SIZES)(self._price)

    def of_pass(self, pass_: WindowedPass) -> PassPrices:
        """Return the prices of a pass, whatever its placement."""
        decodes = pass_.kind is Kind.DENOISE
        return self._of_size(pass_.tokens, pass_.context, pass_.requests, decodes)

    def of_passes(self, placements: Iterable[PassPlacement]) -> list[PassPrices]:
        """Return the prices of placed passes."""
        return [self.of_pass(placement.pass_) for placement in placements]

    def copy(self, verb: str, expert: int, layer: int, *, to_host: bool = False) -> Part:
        """Return the copy of one expert: its promotion, streaming or write-back."""
        seconds = self.to_host_s if to_host else self.to_gpu_s
        return Part(f"{verb} {expert}", seconds, layer, 1, self.spec.expert_bytes)

    def transfer(self, label: str, rows: int, direction: Direction, layer: int) -> Operation:
        """Return the copy of some hidden states."""
        num_bytes = hidden_bytes(self.spec, rows)
        return single(label, float(self.hidden_s(rows, direction)), layer, num_bytes=num_bytes)

    def hidden_s(self, rows: Numbers, direction: Direction) -> Seconds:
        """Return the seconds of copying some hidden states."""
        num_bytes = rows * hidden_bytes(self.spec, 1)
        return self.latency.copy_s(num_bytes, direction, pinned=self.engine.pinned)

    def _price(self, tokens: int, context: int, requests: int, decodes: bool) -> PassPrices:
        latency, layers = self.latency, self.layers
        combine_s, shared_s = latency.combine_s(tokens), latency.shared_s(tokens)
        num_bytes = ids_bytes(self.spec, tokens)
        ids_s = float(latency.copy_s(num_bytes, Direction.D2H, pinned=self.engine.pinned))
        tail = [Part("combine", combine_s, layers[-1])]
        if decodes:
            tail.append(Part("head", latency.head_s(tokens), -1))
        attention_s = latency.attention_s(tokens, context, requests=requests)
        fronts = tuple(self._fronts(tokens, attention_s, combine_s))
        ids = tuple(single("ids", ids_s, layer, num_bytes=num_bytes) for layer in layers)
        ids = ids if self.engine.overlap else tuple(unnamed(0.0) for _ in layers)
        own = ((Resource.GPU, (*fronts, operation(tail))), (Resource.D2H, ids))
        critical = _by_operation((*own, (Resource.HOST, (*self.host, self.sync))))
        return PassPrices(
            fronts=fronts,
            ids=ids,
            shared=tuple(single("shared", shared_s, layer) for layer in layers),
            tail=operation(tail),
            shared_s=(shared_s,) * len(layers),
            gpu_s=sum(s for key, s in critical.items() if key.resource is Resource.GPU),
            ids_s=critical.get(IDS, 0.0),
            host_s=sum(s for key, s in critical.items() if key.resource is Resource.HOST),
            critical_s=critical,
        )

    def _fronts(self, tokens: int, attention_s: float, combine_s: float) -> list[Operation]:
        router_s = self.latency.router_s(tokens)
        before = []
        for layer in range(self.layers[0]):
            before.append(Part("attention", attention_s, layer))
            before.append(Part("dense MLP", self.latency.dense_mlp_s(tokens), layer))
        fronts = []
        for layer in self.layers:
            own = [Part("attention", attention_s, layer), Part("router", router_s, layer)]
            fronts.append(operation([*before, *own]))
            before = [Part("combine", combine_s, layer)]
        return fronts


def _by_operation(
    groups: Iterable[tuple[Resource, Iterable[Operation]]],
) -> dict[Critical, float]:
    """Add the seconds of operations up by resource and label."""
    seconds: dict[Critical, float] = {}
    for resource, operations in groups:
        for part in (part for each in operations for part in each.parts):
            key = Critical(resource, part.label)
            seconds[key] = seconds.get(key, 0.0) + part.seconds
    return seconds

"""Prices of a pass's operations: one engine, one machine, one set of sizes. No clock."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

from tidesim.engines import Engine
from tidesim.latency import Direction, Latency
from tidesim.model_spec import ModelSpec
from tidesim.placement import Decision, PassPlacement
from tidesim.simulate.operations import Operation, Part, operation, single
from tidesim.trace.passes import Kind, WindowedPass

ID_BYTES = 2  # expert ids travel as uint16


def hidden_bytes(spec: ModelSpec, rows: int) -> int:
    """Return the bytes of `rows` hidden states in the model's dtype."""
    return rows * spec.hidden_size * spec.dtype_bytes


def ids_bytes(spec: ModelSpec, tokens: int) -> int:
    """Return the bytes of one layer's expert ids."""
    return tokens * spec.num_experts_per_tok * ID_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """

    fronts: tuple[Operation, ...]
    ids: tuple[Operation, ...]
    shared: tuple[Operation, ...]
    tail: Operation


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
    host : tuple of Operation
        One per mixture layer: host sync and the policy's decision.
    sync : Operation
        Host sync after the last layer.
    """

    def __init__(self, latency: Latency, engine: Engine, spec: ModelSpec) -> None:
        self.latency, self.engine, self.spec = latency, engine, spec
        copies, pinned = engine.copies_per_expert, engine.pinned
        self._to_gpu_s = latency.expert_copy_s(copies, Direction.H2D, pinned=pinned)
        self._to_host_s = latency.expert_copy_s(copies, Direction.D2H, pinned=pinned)
        self.layers = range(spec.first_k_dense_replace, spec.num_hidden_layers)
        self.host = tuple(
            operation(
                [Part("sync", latency.sync_s, layer), Part("decide", latency.decide_s, layer)]
            )
            for layer in self.layers
        )
        self.sync = single("sync", latency.sync_s, -1)
        self.gpu_expert_s: Callable[[int], float] = cache(latency.gpu_expert_s)
        self.cpu_expert_s: Callable[[int], float] = cache(latency.cpu_expert_s)
        self.hidden_s: Callable[[int, Direction], float] = cache(self._hidden_s)
        self._gpu_call_s: Callable[[int, int], float] = cache(latency.gpu_call_s)
        self._of_size = lru_cache(maxsize=256)(self._price)

    def of_pass(self, pass_: WindowedPass) -> PassPrices:
        """Return the prices of a pass, whatever its placement."""
        return self._of_size(pass_.tokens, pass_.context, pass_.kind is Kind.DENOISE)

    def gpu_experts_s(self, placement: PassPlacement, index: int) -> float:
        """Return the GPU's seconds for the experts of mixture layer `index`."""
        if self.engine.looped:
            tokens = placement.gpu_tokens[index].tolist()
            return sum(self.gpu_expert_s(count) for count in tokens if count)
        load = placement.gpu_load
        return self._gpu_call_s(load.experts[index], load.pairs[index])

    def cpu_experts_s(self, placement: PassPlacement, index: int) -> float:
        """Return the CPU's seconds for the experts of mixture layer `index`."""
        tokens = placement.cpu_tokens[index]
        if self.engine.looped:
            return sum(self.cpu_expert_s(count) for count in tokens.tolist() if count)
        return self.latency.cpu_experts_s(tokens)

    def write_backs(self, decision: Decision, layer: int) -> Operation:
        """Return the copies of evicted experts to the host: none unless the engine makes them."""
        experts = decision.evict if self.engine.write_back else ()
        return operation(Part(f"write back {e}", self._to_host_s, layer) for e in experts)

    def promotions(self, decision: Decision, layer: int) -> Operation:
        """Return the copies of promoted experts to the GPU."""
        return operation(Part(f"promote {e}", self._to_gpu_s, layer) for e in decision.promote)

    def streams(self, decision: Decision, layer: int) -> Operation:
        """Return the copies of streamed experts to the GPU."""
        return operation(self.stream(e, layer).parts[0] for e in decision.stream)

    def stream(self, expert: int, layer: int) -> Operation:
        """Return the copy of one streamed expert to the GPU."""
        return single(f"stream {expert}", self._to_gpu_s, layer)

    def _hidden_s(self, rows: int, direction: Direction) -> float:
        num_bytes = hidden_bytes(self.spec, rows)
        return self.latency.copy_s(num_bytes, direction, pinned=self.engine.pinned)

    def _price(self, tokens: int, context: int, decodes: bool) -> PassPrices:
        latency, layers = self.latency, self.layers
        combine_s, shared_s = latency.combine_s(tokens), latency.shared_s(tokens)
        ids_s = latency.copy_s(
            ids_bytes(self.spec, tokens), Direction.D2H, pinned=self.engine.pinned
        )
        tail = [Part("combine", combine_s, layers[-1])]
        if decodes:
            tail.append(Part("head", latency.head_s(tokens), -1))
        return PassPrices(
            fronts=tuple(self._fronts(tokens, context, combine_s)),
            ids=tuple(single("ids", ids_s, layer) for layer in layers),
            shared=tuple(single("shared", shared_s, layer) for layer in layers),
            tail=operation(tail),
        )

    def _fronts(self, tokens: int, context: int, combine_s: float) -> list[Operation]:
        attention_s = self.latency.attention_s(tokens, context)
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

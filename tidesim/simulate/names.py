"""Names: the operations of placed experts, told apart where somebody records them."""

from tidesim.engines import Promotion
from tidesim.latency import Direction
from tidesim.placement import PassPlacement
from tidesim.records import Resource
from tidesim.simulate.machine import LayerWork, Step
from tidesim.simulate.operations import Operation, Part, operation, single, unnamed
from tidesim.simulate.prices import Prices


class Names:
    """Operations of placed experts, named part by part where records are kept.

    Parameters
    ----------
    prices : Prices
    recorded : bool
        Whether anybody reads the names.
    """

    def __init__(self, prices: Prices, *, recorded: bool) -> None:
        self.recorded = recorded
        self._prices = prices

    def write_backs(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the copies of evicted experts to the host."""
        if not (self.recorded and work.write_backs):
            return unnamed(work.write_backs)
        return self._copies(
            "write back", placement.decisions[work.number].evict, work, to_host=True
        )

    def promotions(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the copies of promoted experts to the GPU."""
        return self._copies("promote", placement.decisions[work.number].promote, work)

    def copies(
        self, work: LayerWork, placement: PassPlacement, *, promotion: Promotion
    ) -> Operation:
        """Return the copies that the pass waits for."""
        if not (self.recorded and work.copies):
            return unnamed(work.copies)
        streams = self._copies("stream", placement.decisions[work.number].stream, work)
        if promotion is Promotion.BACKGROUND:
            return streams
        return operation(self.promotions(work, placement).parts + streams.parts)

    def gpu_experts(self, work: LayerWork, placement: PassPlacement) -> Operation:
        """Return the GPU's experts of a layer."""
        if not self.recorded:
            return unnamed(work.gpu)
        experts = placement.gpu_load.experts[work.number]
        layer = self._prices.layers[work.number]
        return single(f"experts gpu ({experts})", work.gpu, layer, experts=experts)

    def misses(self, work: LayerWork, placement: PassPlacement) -> tuple[Step, ...]:
        """Return the CPU's experts of a layer with their transfers: nothing without misses."""
        if not (work.hidden or work.cpu or work.result):
            return ()
        if not self.recorded:
            hidden, cpu, result = unnamed(work.hidden), unnamed(work.cpu), unnamed(work.result)
        else:
            experts = placement.cpu_load.experts[work.number]
            rows, layer = placement.cpu_load.pairs[work.number], self._prices.layers[work.number]
            down = self._prices.transfer("hidden", placement.pass_.tokens, Direction.D2H, layer)
            hidden = down._replace(seconds=work.hidden)
            cpu = single(f"experts cpu ({experts})", work.cpu, layer, experts=experts)
            result = self._prices.transfer("result", rows, Direction.H2D, layer)
        return (
            (Resource.D2H, hidden),
            (Resource.CPU, cpu),
            (Resource.H2D, result),
        )

    def _copies(
        self, verb: str, experts: tuple[int, ...], work: LayerWork, *, to_host: bool = False
    ) -> Operation:
        layer = self._prices.layers[work.number]
        return operation(self.copy(verb, expert, layer, to_host=to_host) for expert in experts)

    def copy(self, verb: str, expert: int, layer: int, *, to_host: bool = False) -> Part:
        """Return the copy of one expert."""
        return self._prices.copy(verb, expert, layer, to_host=to_host)

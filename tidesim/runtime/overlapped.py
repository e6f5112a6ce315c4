"""Overlapped: device, CPU workers and link at the same time, as engine ``tidesim`` executes."""

from typing import Any

import torch
from torch import Tensor

from tidesim.placement import Decision, Policy, Setup
from tidesim.records import Resource
from tidesim.runtime.backends import Backend, Misses
from tidesim.runtime.backends.base import ID_BYTES, Ids
from tidesim.runtime.experts import PROMOTE, STREAM, Move, Offload, Stale, keep
from tidesim.runtime.model import MixtureOfExperts, Transformer
from tidesim.runtime.products import combine, expert_products, groupable
from tidesim.runtime.slots import Sorted, sort_pairs


class Overlapped(Offload):
    """Let device, CPU workers and link work beside one another.

    While the CPU computes a layer's misses and the link copies its promotions, the device computes
    the shared experts and then, once the copies it needs have landed, the hits. Promotions in the background are copied after them, behind everything urgent; a later pass
    waits for those it uses. An eviction copies nothing.
    """

    def __init__(
        self,
        model: Transformer,
        policy: Policy,
        setup: Setup,
        backend: Backend,
        *,
        stale: Stale = keep,
    ) -> None:
        super().__init__(model, policy, setup, backend, stale=stale)
        self._under_way: list[dict[int, Any]] = [{} for _ in self._mixtures]

    def finish(self) -> None:
        """Wait for promotions that are still under way."""
        for copies in self._under_way:
            self._backend.await_copies(copies.values())
            copies.clear()

    def run(
        self, number: int, x: Tensor, experts: Tensor, weights: Tensor, mixture: MixtureOfExperts
    ) -> Tensor:
        """Compute routed and shared experts of a mixture layer; see `Offload.run`."""
        backend, layer = self._backend, self._first_layer + number
        flat = backend.ids(experts, layer)
        decision = self._decide(number, flat)
        moves = self._claim(number, decision)
        pairs = sort_pairs(flat, experts.shape[1], self._slots[number], self._scratch)
        self._count_pairs(pairs)
        self._count_transfers(pairs, x)
        missed = None
        if pairs.on_gpu < len(flat):
            missed = backend.start_misses(self._misses(number, x, pairs), layer)
        copies = [self._start(move) for move in moves]
        backend.mark("decide", layer, resource=Resource.HOST)
        shared = None if mixture.shared_experts is None else mixture.shared_experts(x)
        backend.mark("shared", layer)
        backend.await_copies(copies + self._needed(number, flat))
        products = self._on_device(number, x, pairs)
        backend.mark(f"experts gpu ({pairs.distinct})", layer, experts=pairs.distinct)
        if self._late:
            self._promote(number, decision)
        if missed is not None:
            products.append(backend.result(missed))
        y = self._combine(products, pairs, weights).to(x.dtype)
        y = y if shared is None else y + shared
        self._scratch.release_all()
        backend.mark("combine", layer)
        return y

    def _claim(self, number: int, decision: Decision) -> list[Move]:
        """Free and take the slots of experts that leave or serve in this very pass."""
        moves = []
        if not self._late:
            self._evict(number, decision)
            moves = [self._take(number, each, PROMOTE) for each in decision.promote]
        return moves + [self._take(number, each, STREAM) for each in decision.stream]

    def _promote(self, number: int, decision: Decision) -> None:
        """Change the residents from the next pass on; their copies start now."""
        under_way = self._under_way[number]
        self._evict(number, decision)
        for expert in decision.evict:
            under_way.pop(expert, None)
        for expert in decision.promote:
            move = self._take(number, expert, PROMOTE)
            under_way[expert] = self._start(move, background=True)

    def _needed(self, number: int, flat: Ids) -> list[Any]:
        """Return the copies from earlier passes that this one's hits need."""
        under_way = self._under_way[number]
        if not under_way:
            return []
        for expert in [e for e, copy in under_way.items() if self._backend.landed(copy)]:
            del under_way[expert]
        used = set(flat.tolist())
        return [copy for expert, copy in under_way.items() if expert in used]

    def _misses(self, number: int, x: Tensor, pairs: Sorted) -> Misses:
        gate_up, down = self._views[number]
        rows = pairs.rows[pairs.on_gpu :]
        return Misses(x=x, rows=rows, ends=pairs.miss_ends, gate_up=gate_up, down=down)

    def _on_device(self, number: int, x: Tensor, pairs: Sorted) -> list[Tensor]:
        """Compute hits and streamed experts: one grouped call each."""
        products = []
        parts = (
            (slice(pairs.hits), self._slots[number], pairs.slot_ends),
            (slice(pairs.hits, pairs.on_gpu), self._scratch, pairs.scratch_ends),
        )
        for part, held, ends in parts:
            rows = pairs.rows[part]
            if len(rows):
                taken = x[self._backend.to_device(rows)]
                grouped = groupable(held.gate_up)  # a loop reads the ends, so they stay here
                there = self._backend.to_device(ends) if grouped else torch.from_numpy(ends)
                products.append(expert_products(taken, held.gate_up, held.down, there))
        return products

    def _combine(self, products: list[Tensor], pairs: Sorted, weights: Tensor) -> Tensor:
        computed = torch.cat(products)
        order = self._backend.to_device(pairs.order)
        return combine(torch.empty_like(computed).index_copy_(0, order, computed), weights)

    def _count_transfers(self, pairs: Sorted, x: Tensor) -> None:
        row_bytes, missed = x[0].nbytes, len(pairs.order) - pairs.on_gpu
        self.tally.d2h["ids"] += len(pairs.order) * ID_BYTES
        self.tally.d2h["hidden"] += len(x) * row_bytes if missed else 0
        self.tally.h2d["results"] += missed * row_bytes

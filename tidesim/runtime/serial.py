"""Serial: one operation at a time, as the TIDE authors' code executes (engine ``tide-reference``).

Written anew from its description: experts run one by one in id order; those on the CPU cost a
synchronous copy each way; promotions and evictions are synchronous copies of three tensors, and an
evicted expert is written back before others come. The driving thread does all of it itself.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tidesim.placement import Decision
from tidesim.records import Resource
from tidesim.runtime.backends.base import Ids
from tidesim.runtime.experts import PROMOTE, STREAM, Offload
from tidesim.runtime.model import MixtureOfExperts
from tidesim.runtime.products import combine, expert_product
from tidesim.runtime.slots import NOWHERE, Slots

TENSORS = 3  # an expert is copied as gate, up and down


class Serial(Offload):
    """Run one operation after another; nothing overlaps."""

    def finish(self) -> None:
        """Do nothing: no copy outlives its pass."""

    def run(
        self, number: int, x: Tensor, experts: Tensor, weights: Tensor, mixture: MixtureOfExperts
    ) -> Tensor:
        """Compute routed and shared experts of a mixture layer; see `Offload.run`."""
        backend, layer = self._backend, self._first_layer + number
        backend.mark("router", layer)
        flat = backend.read(experts).reshape(-1)
        backend.mark("sync", layer, resource=Resource.HOST)
        decision = self._decide(number, flat)
        backend.mark("decide", layer, resource=Resource.HOST)
        if not self._late:
            self._move(number, decision)
        outputs = self._one_by_one(number, decision, x, flat)
        if self._late:
            self._move(number, decision)
        y = combine(outputs, weights).to(x.dtype)
        backend.mark("combine", layer)
        if mixture.shared_experts is not None:
            y = y + mixture.shared_experts(x)
            backend.mark("shared", layer)
        return y

    def _move(self, number: int, decision: Decision) -> None:
        """Write evicted experts back, then promote."""
        bank, layer = self._banks[number], self._first_layer + number
        for expert in decision.evict:
            slot = self._slots[number].weights[self._slots[number].slot_of[expert]]
            if self._setup.engine.write_back:
                self._copy(bank[expert], slot, Resource.D2H, f"write back {expert}", layer)
                self.tally.d2h["write_backs"] += slot.nbytes
        self._evict(number, decision)
        for expert in decision.promote:
            self._load(number, expert, PROMOTE)

    def _load(self, number: int, expert: int, verb: str) -> None:
        source, slot = self._banks[number][expert], self._take(number, expert, verb).slot
        label = f"{verb} {expert}"
        self._copy(slot, source, Resource.H2D, label, self._first_layer + number)
        self.tally.count_copy(verb, source.nbytes)

    def _copy(
        self, target: Tensor, source: Tensor, resource: Resource, label: str, layer: int
    ) -> None:
        """Copy an expert tensor by tensor, waiting for each."""
        for into, part in zip(target.chunk(TENSORS), source.chunk(TENSORS), strict=True):
            into.copy_(part)
        size = source.nbytes
        self._backend.mark(label, layer, resource=resource, experts=1, num_bytes=size)

    def _one_by_one(self, number: int, decision: Decision, x: Tensor, flat: Ids) -> Tensor:
        """Compute the experts that have tokens in id order; [T * K, H] in the order of the pairs."""
        top_k, streamed = len(flat) // len(x), set(decision.stream)
        outputs = x.new_empty(len(flat), x.shape[1])
        for expert, pairs in self._by_expert(flat):
            if expert in streamed:
                self._load(number, expert, STREAM)
            rows = pairs // top_k
            held = self._holder(number, expert)
            if held is None:
                self.tally.misses += len(pairs)
                outputs[pairs] = self._on_host(number, expert, x[rows])
            else:
                hit = held is not self._scratch
                self.tally.hits += len(pairs) * hit
                self.tally.misses += len(pairs) * (not hit)
                outputs[pairs] = self._on_device(number, expert, x[rows], held)
        self._scratch.release_all()
        return outputs

    def _by_expert(self, flat: Ids) -> Iterator[tuple[int, Tensor]]:
        """Yield every expert that has tokens with its pairs, on the device."""
        ids = torch.from_numpy(flat)
        order = ids.argsort(stable=True).to(self._backend.device)
        counts = torch.bincount(ids, minlength=self._setup.num_experts).tolist()
        start = 0
        for expert, count in enumerate(counts):
            if count:
                yield expert, order[start : start + count]
                start += count

    def _holder(self, number: int, expert: int) -> Slots | None:
        """Return the slots that hold an expert, if it is on the device."""
        for held in (self._slots[number], self._scratch):
            if held.slot_of[expert] != NOWHERE:
                return held
        return None

    def _on_device(self, number: int, expert: int, x: Tensor, held: Slots) -> Tensor:
        slot = held.slot_of[expert]
        y = expert_product(x, held.gate_up[slot], held.down[slot])
        layer = self._first_layer + number
        self._backend.mark(f"expert {expert} gpu", layer, experts=1)
        return y

    def _on_host(self, number: int, expert: int, x: Tensor) -> Tensor:
        """Copy hidden states to the host, compute there, copy the result back."""
        backend, layer = self._backend, self._first_layer + number
        hidden = torch.empty_like(x, device="cpu").copy_(x)
        backend.mark(f"hidden {expert}", layer, resource=Resource.D2H, num_bytes=x.nbytes)
        gate_up, down = self._views[number]
        product = expert_product(hidden, gate_up[expert], down[expert])
        backend.mark(f"expert {expert} cpu", layer, resource=Resource.CPU, experts=1)
        returned = torch.empty_like(x).copy_(product)
        backend.mark(f"result {expert}", layer, resource=Resource.H2D, num_bytes=product.nbytes)
        self.tally.d2h["hidden"] += x.nbytes
        self.tally.h2d["results"] += product.nbytes
        return returned

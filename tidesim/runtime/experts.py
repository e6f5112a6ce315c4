"""Offload: a model's experts in GPU slots and on the CPU, as a policy places them.

The host keeps the master copy of every expert, one contiguous blob each: gate, up, down. Each
mixture layer has slots on the device and a map from expert to slot. A promotion is a copy into a
free slot; an eviction frees a slot. The decisions are those of the simulator: the same
`placement.Residency`, the same policies. How a layer's experts run is the engine's:
`overlapped.Overlapped`, `serial.Serial`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tidesim.engines import Promotion
from tidesim.errors import CapacityError, SettingError
from tidesim.measured import D2H_PURPOSES, H2D_PURPOSES, Counters
from tidesim.memory import gigabytes
from tidesim.placement import BoolArray, Decision, Policy, Residency, Setup
from tidesim.runtime.backends import Backend
from tidesim.runtime.backends.base import Ids
from tidesim.runtime.model import MixtureOfExperts, Transformer, unmarked
from tidesim.runtime.slots import Slots, Sorted
from tidesim.trace.passes import Kind, PassKey

PROMOTE, STREAM, LOAD = "promote", "stream", "load"  # why an expert is copied
Stale = Callable[[Tensor], None]


class Move(NamedTuple):
    """A copy of an expert into its slot, of a mixture layer counted from 0."""

    number: int
    expert: int
    verb: str
    slot: Tensor


def keep(_weights: Tensor) -> None:
    """Leave the weights of a freed slot as they are."""


@dataclass(slots=True)
class Tally:
    """Counts of a run so far; `counters` gives them as they are now."""

    hits: int = 0
    misses: int = 0
    promotions: int = 0
    evictions: int = 0
    streams: int = 0
    refreshes: int = 0
    h2d: dict[str, int] = field(default_factory=lambda: dict.fromkeys(H2D_PURPOSES, 0))
    d2h: dict[str, int] = field(default_factory=lambda: dict.fromkeys(D2H_PURPOSES, 0))

    def count_copy(self, verb: str, num_bytes: int) -> None:
        """Count the copy of an expert to the device; first residents are not counted."""
        if verb == PROMOTE:
            self.promotions += 1
            self.h2d["promotions"] += num_bytes
        elif verb == STREAM:
            self.streams += 1
            self.h2d["streams"] += num_bytes

    def counters(self) -> Counters:
        """Return the counts."""
        return Counters(
            hits=self.hits,
            misses=self.misses,
            promotions=self.promotions,
            evictions=self.evictions,
            streams=self.streams,
            refreshes=self.refreshes,
            h2d_bytes_by_purpose=dict(self.h2d),
            d2h_bytes_by_purpose=dict(self.d2h),
        )


class Offload(ABC):
    """Runs the experts of a model's mixture layers where a policy wants them.

    `attach` connects it to the model; `begin` and `end` frame every pass; `finish` ends the run.

    Parameters
    ----------
    model : Transformer
        Its banks are in host memory, everything else on the backend's device.
    policy : Policy
        Fresh, made from `setup`.
    setup : Setup
    backend : Backend
        Entered by the caller.
    stale : callable
        Called with the weights of every slot that is freed; tests fill them with NaN.

    Attributes
    ----------
    tally : Tally
    routes : sequence of [T, K] int64, or None
        Experts of the pass, one tensor per mixture layer, instead of the router's choice.

    Raises
    ------
    SettingError
        The policy is for another model, or is a limit that no runtime can obey.
    CapacityError
        The slots do not fit the device's memory, or the host cannot pin the experts.
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
        check_setup(model, policy, setup)
        self.tally = Tally()
        self.routes: Sequence[Tensor] | None = None
        self._model, self._backend, self._setup = model, backend, setup
        self._mixtures = model.mixtures()
        self._first_layer = model.spec.first_k_dense_replace
        self._residency = Residency(policy, setup)
        self._late = policy.promotion is Promotion.BACKGROUND
        pinned = setup.engine.pinned
        self._banks = [backend.host_bank(m.experts.bank, pinned=pinned) for m in self._mixtures]
        banks = zip(self._mixtures, self._banks, strict=True)
        self._views = [mixture.experts.views(bank) for mixture, bank in banks]
        self._slots = [self._allocate(count, stale) for count in self._residency.budgets]
        self._scratch = self._allocate(policy.scratch_slots(setup), stale)
        self._decodes = False
        self._fill(self._residency.resident)

    def attach(self) -> None:
        """Let the model call this for its experts."""
        self._model.mark = self._backend.mark
        for number, mixture in enumerate(self._mixtures):
            mixture.run = partial(self._run, number)

    def detach(self) -> None:
        """Give the model its own experts back."""
        self._model.mark = unmarked
        for mixture in self._mixtures:
            mixture.run = None

    def begin(self, key: PassKey) -> None:
        """Begin a pass."""
        self._residency.begin(key)
        self._backend.begin(key)
        self._decodes = key.kind is Kind.DENOISE

    def end(self) -> float:
        """End the pass in progress; return its seconds."""
        if self._decodes:
            self._backend.mark("head", -1)
        return self._backend.end()

    @abstractmethod
    def finish(self) -> None:
        """Wait for what is still under way."""

    @abstractmethod
    def run(
        self, number: int, x: Tensor, experts: Tensor, weights: Tensor, mixture: MixtureOfExperts
    ) -> Tensor:
        """Compute routed and shared experts of a mixture layer.

        Parameters
        ----------
        number : int
            The mixture layer, counted from 0.
        x : [T, H]
        experts : [T, K]
        weights : [T, K] float32
        mixture : MixtureOfExperts

        Returns
        -------
        [T, H] in the dtype of x
        """

    def _run(
        self, number: int, x: Tensor, experts: Tensor, weights: Tensor, mixture: MixtureOfExperts
    ) -> Tensor:
        routed = experts if self.routes is None else self.routes[number]
        return self.run(number, x, routed, weights, mixture)

    def _decide(self, number: int, flat: Ids) -> Decision:
        """Let the policy decide a layer; `flat` holds the expert of every pair."""
        counts = np.bincount(flat, minlength=self._setup.num_experts)
        decision = self._residency.decide(number, counts)
        self.tally.refreshes += decision.refresh
        return decision

    def _evict(self, number: int, decision: Decision) -> None:
        for expert in decision.evict:
            self._slots[number].release(expert)
        self.tally.evictions += len(decision.evict)

    def _count_pairs(self, pairs: Sorted) -> None:
        self.tally.hits += pairs.hits
        self.tally.misses += len(pairs.order) - pairs.hits

    def _allocate(self, count: int, stale: Stale) -> Slots:
        bank, device = self._banks[0], self._backend.device
        try:
            weights = torch.empty(count, bank.shape[1], dtype=bank.dtype, device=device)
        except (MemoryError, RuntimeError) as error:
            needed = gigabytes(count * bank[0].nbytes, up=True)
            raise CapacityError(
                f"{count} slots of a layer need {needed}, which {device.type} does not have "
                f"({error}); use a smaller budget"
            ) from None
        experts = self._mixtures[0].experts
        return Slots(weights, experts, num_experts=self._setup.num_experts, stale=stale)

    def _fill(self, resident: BoolArray) -> None:
        """Copy the first residents into their slots."""
        for number, row in enumerate(resident):
            moves = [self._take(number, each, LOAD) for each in np.flatnonzero(row).tolist()]
            self._backend.await_copies([self._start(move) for move in moves])

    def _take(self, number: int, expert: int, verb: str) -> Move:
        """Give an expert a free slot, or a scratch slot if it is streamed."""
        held = self._scratch if verb == STREAM else self._slots[number]
        return Move(number, expert, verb, held.take(expert))

    def _start(self, move: Move, *, background: bool = False) -> Any:
        """Start a copy."""
        source, label = self._banks[move.number][move.expert], f"{move.verb} {move.expert}"
        self.tally.count_copy(move.verb, source.nbytes)
        return self._backend.copy_expert(
            source, move.slot, label, self._first_layer + move.number, background=background
        )


def check_setup(model: Transformer, policy: Policy, setup: Setup) -> None:
    """Refuse what no runtime can obey.

    Raises
    ------
    SettingError
        The policy is for another model, or its promotions take no time.
    """
    spec = model.spec
    if (setup.layers, setup.num_experts) != (spec.moe_layers, spec.num_experts):
        raise SettingError(
            f"the policy places {setup.num_experts} experts in {setup.layers} layers but "
            f"{spec.name} has {spec.num_experts} in {spec.moe_layers}; set it up for this model"
        )
    if policy.is_bound and policy.knows_future:
        raise SettingError(
            f"policy {policy.name} is a limit: it knows the future and copies for nothing, so no "
            "runtime can obey it; use another policy"
        )

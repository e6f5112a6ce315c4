"""Residency of experts as a pure state machine: what a policy sees, decides and causes.

No clock and no hardware: hits, misses, promotions and bytes depend on the trace alone.
Dimension letters: L mixture layers, E experts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tidesim.engines import Engine, Promotion
from tidesim.latency import Latency
from tidesim.trace.passes import Counts, Kind, PassKey, Trace, Window, WindowedPass
from tidesim.trace.windows import windowed

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class LayerView(NamedTuple):
    """What a policy may look at once a layer's routing is known.

    Attributes
    ----------
    layer : int
        Mixture layer, counted from 0.
    request, block, generated_block, step, kind
        Those of the pass, as in `WindowedPass`.
    counts : [E] int64
        Tokens of this pass routed to every expert.
    resident : [E] bool
        Experts in a GPU slot now; read only.
    budget : int
        Slots of this layer.
    """

    layer: int
    request: int
    block: int
    generated_block: int
    step: int
    kind: Kind
    counts: IntArray
    resident: BoolArray
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy wants done in one layer before its experts run; the default is nothing.

    Attributes
    ----------
    promote, evict : tuple of int
        Experts to copy into a slot, and experts to free the slot of. Under blocking promotion the
        promoted serve this very pass and the evicted no longer do; in the background both holds
        from the next pass on.
    stream : tuple of int
        Experts copied for this pass only: computed on the GPU from a scratch slot.
    refresh : bool
        The residents were chosen anew, even if nothing changed.
    free : bool
        Promotions take neither time nor bytes and are not counted: for limits only.
    """

    promote: tuple[int, ...] = ()
    evict: tuple[int, ...] = ()
    stream: tuple[int, ...] = ()
    refresh: bool = False
    free: bool = False


KEEP = Decision()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a policy knows before the first pass.

    Attributes
    ----------
    num_experts, layers : int
        E and L.
    budget : int
        Slots of a layer; a policy may spread ``layers * budget`` slots unequally.
    popularity : [L, E] float64
        Tokens per expert over training requests; all zero where unknown.
    engine : Engine
    latency : Latency or None
        For policies that weigh costs.
    interval : int or None
        Steps between refreshes, for policies that have one.
    promotion : Promotion or None
        When promoted experts shall serve; None leaves it to the policy.
    future : callable or None
        Gives the passes that will be placed, for limits that know them.
    """

    num_experts: int
    layers: int
    budget: int
    popularity: FloatArray
    engine: Engine
    latency: Latency | None = None
    interval: int | None = None
    promotion: Promotion | None = None
    future: Callable[[], Iterable[WindowedPass]] | None = None


class Policy(Protocol):
    """Rule that decides refreshes, promotions, evictions and where each active expert runs.

    Attributes
    ----------
    name : str
    interval : int or None
        Steps between refreshes; None where the policy has no such number.
    promotion : Promotion
        When promoted experts serve.
    is_bound : bool
        The policy describes a limit, not a runtime: its budgets ignore the machine's memory.
    knows_future : bool
        The policy reads the setup's future: no runtime can decide as it does.
    """

    name: str
    interval: int | None
    promotion: Promotion
    is_bound: bool
    knows_future: bool

    def budgets(self, setup: Setup) -> IntArray:
        """Return the slots of every layer, [L]."""
        ...

    def initial(self, setup: Setup) -> BoolArray:
        """Return the residents before the first pass, [L, E]."""
        ...

    def scratch_slots(self, setup: Setup) -> int:
        """Return the slots, shared by all layers, that streamed experts may need."""
        ...

    def decide(self, view: LayerView) -> Decision:
        """Decide one layer of one pass; called once for each, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlacement:
    """One layer of a `PassPlacement`; same words, one row."""

    hits: IntArray
    misses: IntArray
    gpu_tokens: IntArray
    cpu_tokens: IntArray
    promoted: tuple[int, ...]
    evicted: tuple[int, ...]
    streamed: tuple[int, ...]
    refresh: bool
    resident: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one side computes in a pass: distinct experts and token-expert pairs, [L] each."""

    experts: tuple[int, ...]
    pairs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PassPlacement:
    """Where the tokens of one pass were served, and what moved for it.

    Attributes
    ----------
    pass_ : WindowedPass
    decisions : tuple of Decision, one per layer
    resident : [L, E] bool
        Residents that served this pass: after its promotions and evictions if they block, before
        them if they are made in the background.
    """

    pass_: WindowedPass
    decisions: tuple[Decision, ...]
    resident: BoolArray = field(repr=False)

    @cached_property
    def hits(self) -> Counts:
        """Tokens served by residents, [L, E]."""
        return self.pass_.counts * self.resident

    @cached_property
    def misses(self) -> Counts:
        """Tokens served by non-residents, [L, E]; with `hits` they are the pass's counts."""
        return self.pass_.counts - self.hits

    @cached_property
    def cpu_tokens(self) -> Counts:
        """Tokens computed on the CPU, [L, E]: misses that were not streamed."""
        if not any(decision.stream for decision in self.decisions):
            return self.misses
        tokens = self.misses.copy()
        for layer, decision in enumerate(self.decisions):
            tokens[layer, list(decision.stream)] = 0
        return tokens

    @cached_property
    def gpu_tokens(self) -> Counts:
        """Tokens computed on the GPU, [L, E]: hits, and misses that were streamed."""
        return self.pass_.counts - self.cpu_tokens

    @cached_property
    def gpu_load(self) -> Load:
        """Sums of `gpu_tokens` by layer."""
        return _load(self.gpu_tokens)

    @cached_property
    def cpu_load(self) -> Load:
        """Sums of `cpu_tokens` by layer."""
        return _load(self.cpu_tokens)

    @property
    def layers(self) -> tuple[LayerPlacement, ...]:
        """The pass layer by layer."""
        return tuple(
            LayerPlacement(
                hits=self.hits[layer],
                misses=self.misses[layer],
                gpu_tokens=self.gpu_tokens[layer],
                cpu_tokens=self.cpu_tokens[layer],
                promoted=decision.promote,
                evicted=decision.evict,
                streamed=decision.stream,
                refresh=decision.refresh,
                resident=self.resident[layer],
            )
            for layer, decision in enumerate(self.decisions)
        )


class Residency:
    """Who is resident as a policy decides, layer by layer: simulator and runtime share it.

    Parameters
    ----------
    policy : Policy
        Fresh: a policy with memory serves one run.
    setup : Setup
        The one the policy was made with.

    Attributes
    ----------
    budgets : list of int
        Slots of every layer.
    resident : [L, E] bool
        After every decision so far.
    serving : [L, E] bool
        Residents that serve this pass: after its promotions and evictions if they block, before
        them if they are made in the background. Read only.

    Raises
    ------
    AssertionError
        The policy broke a rule of residency; the message names it.
    """

    def __init__(self, policy: Policy, setup: Setup) -> None:
        self.budgets: list[int] = policy.budgets(setup).tolist()
        self.resident = self.serving = policy.initial(setup)
        self._policy, self._background = policy, policy.promotion is Promotion.BACKGROUND
        self._key = PassKey(-1, -1, -1, 0, Kind.PREFILL)
        for layer, row in enumerate(self.resident):
            _check_budget(row, self.budgets[layer], layer)

    def begin(self, key: PassKey) -> None:
        """Begin a pass."""
        before, self.resident = self.resident, self.resident.copy()
        self.serving = before if self._background else self.resident
        self._key = key

    def decide(self, layer: int, counts: IntArray) -> Decision:
        """Let the policy decide a layer, once for each, in order; counts is [E]."""
        view = _view(
            self._key,
            layer,
            counts=counts,
            resident=self.resident[layer],
            budget=self.budgets[layer],
        )
        decision = self._policy.decide(view)
        if decision is not KEEP:
            _apply(decision, view)
        return decision


def replay(passes: Iterable[WindowedPass], policy: Policy, setup: Setup) -> Iterator[PassPlacement]:
    """Let a policy place the experts of every pass in turn.

    Parameters
    ----------
    passes : iterable of WindowedPass
    policy : Policy
        Fresh: a policy with memory serves one replay.
    setup : Setup
        The one the policy was made with.

    Yields
    ------
    PassPlacement
        One per pass; its arrays are read only.

    Raises
    ------
    AssertionError
        The policy broke a rule of residency; the message names it.
    """
    residency = Residency(policy, setup)
    for pass_ in passes:
        residency.begin(pass_.key)
        decisions = tuple(
            residency.decide(layer, counts) for layer, counts in enumerate(pass_.counts)
        )
        yield PassPlacement(pass_=pass_, decisions=decisions, resident=residency.serving)


def popularity(trace: Trace, *, window: Window = Window.BLOCK) -> FloatArray:
    """Count the tokens every expert serves over a training trace.

    Parameters
    ----------
    trace : Trace
    window : Window
        The engine's, so that popularity weighs what the engine computes.

    Returns
    -------
    [L, E] float64
    """
    spec = trace.meta.model
    total = np.zeros((spec.moe_layers, spec.num_experts), dtype=np.int64)
    for pass_ in windowed(trace, window):
        total += pass_.counts
    return total.astype(np.float64)


def _load(tokens: Counts) -> Load:
    return Load(
        experts=tuple(np.count_nonzero(tokens, axis=1).tolist()),
        pairs=tuple(tokens.sum(axis=1).tolist()),
    )


def _view(
    key: PassKey, layer: int, *, counts: IntArray, resident: BoolArray, budget: int
) -> LayerView:
    return LayerView(
        layer=layer,
        request=key.request,
        block=key.block,
        generated_block=key.generated_block,
        step=key.step,
        kind=key.kind,
        counts=counts,
        resident=resident,
        budget=budget,
    )


def _apply(decision: Decision, view: LayerView) -> None:
    """Change the residents of a layer in place as decided, or refuse."""
    row, where = view.resident, f"layer {view.layer} of block {view.block}, step {view.step}"
    _check_distinct(decision, where)
    for expert in decision.evict:
        if not row[expert]:
            raise AssertionError(f"{where}: evicted expert {expert} is not resident")
    for expert in (*decision.promote, *decision.stream):
        if row[expert]:
            raise AssertionError(f"{where}: copied expert {expert} is already resident")
    row[list(decision.evict)] = False
    row[list(decision.promote)] = True
    _check_budget(row, view.budget, view.layer)


def _check_distinct(decision: Decision, where: str) -> None:
    if decision.free and decision.stream:
        raise AssertionError(f"{where}: only promotions may be free, not streamed experts")
    for experts in (decision.evict, decision.promote + decision.stream):
        if len(set(experts)) != len(experts):
            raise AssertionError(f"{where}: an expert is named twice in {experts}")


def _check_budget(row: BoolArray, budget: int, layer: int) -> None:
    if int(row.sum()) > budget:
        raise AssertionError(f"layer {layer}: {int(row.sum())} residents exceed budget {budget}")

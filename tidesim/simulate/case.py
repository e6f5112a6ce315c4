"""Case: everything a simulated run depends on, checked before any work."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from tidesim.engines import Engine, get_engine
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile, count_kinds, what_if_label
from tidesim.latency import Latency
from tidesim.memory import Extent, MemoryPlan, budget_for, extent, gigabytes, plan
from tidesim.model_spec import ModelSpec
from tidesim.placement import PassPlacement, Setup, replay
from tidesim.policies import PolicyFactory, get_policy
from tidesim.policies.settings import check_choices, get_promotion, known_popularity
from tidesim.trace.batches import batched
from tidesim.trace.passes import Trace, WindowedPass
from tidesim.trace.windows import windowed


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run to simulate; `prepare` checks and builds it.

    Attributes
    ----------
    trace : Trace
        Gives the routing.
    spec : ModelSpec
        Gives the sizes.
    latency : Latency
    setup : Setup
    policy : callable
        Makes a fresh policy from `setup`.
    memory : MemoryPlan
    hardware, profile_sha256 : str
    hardware_kinds : mapping of str to int
        How many of the machine's numbers are measured, from a datasheet, or estimated.
    trained_on : tuple of int
        Requests that the policy's popularity comes from.
    batch : int
        Requests decoded in step; 1 runs them one after another.
    """

    trace: Trace
    spec: ModelSpec
    latency: Latency
    setup: Setup
    policy: PolicyFactory
    memory: MemoryPlan
    hardware: str
    hardware_kinds: Mapping[str, int]
    profile_sha256: str = ""
    trained_on: tuple[int, ...] = ()
    batch: int = 1

    @property
    def known(self) -> Setup:
        """The setup, with the passes of this very trace for policies that know the future."""
        return replace(self.setup, future=self.passes)

    def passes(self) -> Iterator[WindowedPass]:
        """Yield the passes that the engine computes."""
        return batched(windowed(self.trace, self.setup.engine.window), self.batch)

    def placed(self, passes: Iterable[WindowedPass] | None = None) -> Iterator[PassPlacement]:
        """Yield the passes as the policy places their experts.

        Parameters
        ----------
        passes : iterable of WindowedPass or None
            Those of `passes`, if somebody counts them on the way.
        """
        setup = self.known
        return replay(self.passes() if passes is None else passes, self.policy(setup), setup)


def prepare(
    trace: Trace,
    profile: HardwareProfile,
    *,
    policy: str | PolicyFactory,
    budget: int | None = None,
    memory_bytes: int | None = None,
    interval: int | None = None,
    engine: str | Engine = "tidesim",
    sizes: ModelSpec | None = None,
    popularity_from: Trace | None = None,
    promotion: str | None = None,
    batch: int = 1,
) -> Case:
    """Check the settings of a run and build its case.

    Parameters
    ----------
    trace : Trace
        Read once for the largest pass it holds.
    profile : HardwareProfile
    policy : str or callable
        A name of `tidesim.policies.POLICIES`, or what makes a policy from a `Setup`.
    budget : int or None
        GPU slots per mixture layer. Bounds need none.
    memory_bytes : int or None
        Instead of `budget`: GPU memory to use, for the largest budget that fits.
    interval : int or None
        Steps between refreshes, for policies that have one.
    engine : str or Engine
    sizes : ModelSpec or None
        Let the trace's routing drive this model's sizes: a what-if, and labelled so.
    popularity_from : Trace or None
        Training requests that policies know; they should not be those of `trace`.
    promotion : str or None
        ``blocking`` or ``background``; None leaves it to the policy.
    batch : int
        Requests decoded in step, so that their tokens share the experts of a pass.

    Raises
    ------
    SettingError
        An option is unknown, out of range, missing or contradicts another.
    CapacityError
        The model does not fit the machine's memory; names what would.
    FormatError
        The profile or the trace lacks what the run needs.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import run
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> settings = {"policy": "tide", "interval": 4, "budget": 16}
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> run(case).refreshes
    20
    """
    check_choices(trace.meta.model, budget=budget, interval=interval)
    if budget is not None and memory_bytes is not None:
        raise SettingError("budget and memory contradict each other; give one of them")
    if batch < 1:
        raise SettingError(f"batch is {batch} but must be at least 1 request")
    if batch > len(trace.meta.requests):
        raise SettingError(
            f"batch is {batch} but only {len(trace.meta.requests)} of the trace's requests are "
            "simulated; use at most as many"
        )
    engine = get_engine(engine) if isinstance(engine, str) else engine
    spec = sized_spec(trace.meta.model, sizes)
    latency = Latency(profile, spec, engine=engine.name)
    roomy = Setup(
        num_experts=spec.num_experts,
        layers=spec.moe_layers,
        budget=spec.num_experts,
        popularity=known_popularity(trace.meta.model, popularity_from, engine.window),
        engine=engine,
        latency=latency,
        interval=interval,
        promotion=get_promotion(promotion),
        future=lambda: batched(windowed(trace, engine.window), batch),
    )
    make = get_policy(policy) if isinstance(policy, str) else policy
    size = extent(trace, engine.window, batch=batch)
    fit = _Fit(spec=spec, size=size, make=make, setup=roomy)
    setup = fit.choose(profile, budget, memory_bytes)
    return Case(
        trace=trace,
        spec=spec,
        latency=latency,
        setup=setup,
        policy=make,
        memory=fit.memory(setup),
        hardware=what_if_label(profile),
        hardware_kinds=count_kinds(profile),
        profile_sha256=profile.sha256,
        trained_on=_requests(popularity_from),
        batch=batch,
    )


def sized_spec(routing: ModelSpec, sizes: ModelSpec | None) -> ModelSpec:
    """Return a model with the routing of one model and the sizes of another.

    Mixture layers, experts, top-k and block length are those of `routing`; hidden and intermediate
    sizes, heads, shared experts, dense layers, vocabulary and dtype are those of `sizes`.

    Raises
    ------
    SettingError
        The two do not make a model.

    Examples
    --------
    >>> from tidesim.model_spec import load_model_spec
    >>> spec = sized_spec(load_model_spec("tide-tiny"), load_model_spec("llada2.0-mini"))
    >>> spec.num_experts, spec.expert_bytes
    (64, 6291456)
    """
    if routing.moe_layers == 0:
        raise SettingError(f"{routing.name} has no mixture layers, so there is nothing to place")
    if sizes is None or sizes == routing:
        return routing
    taken = ("num_experts", "num_experts_per_tok", "n_group", "topk_group", "block_length")
    changed = {name: getattr(routing, name) for name in taken}
    changed["num_hidden_layers"] = sizes.first_k_dense_replace + routing.moe_layers
    try:
        return ModelSpec.model_validate(sizes.model_dump() | changed)
    except ValidationError as error:
        raise SettingError(
            f"the routing of {routing.name} cannot drive the sizes of {sizes.name}: "
            f"{error.errors()[0]['msg']}"
        ) from None


def sizes_label(routing: ModelSpec, spec: ModelSpec) -> str:
    """Say whose routing at whose sizes a run simulates."""
    if spec == routing:
        return routing.name
    return (
        f"routing of {routing.name} ({routing.moe_layers} mixture layers, {routing.num_experts} "
        f"experts, top-{routing.num_experts_per_tok}) at the sizes of {spec.name}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """Search for a budget that fits a machine's memory."""

    spec: ModelSpec
    size: Extent
    make: PolicyFactory
    setup: Setup

    def choose(
        self, profile: HardwareProfile, budget: int | None, memory_bytes: int | None
    ) -> Setup:
        """Return the setup with the budget asked for, or the largest that fits."""
        policy = self.make(self.setup)
        if policy.is_bound:
            if policy.knows_future and memory_bytes is not None:  # a limit on what fits there
                return self.at(self.largest(memory_bytes))
            return self.at(budget or self.spec.num_experts)
        _check_host(profile, self.spec)
        there = int(profile.value("gpu.memory_bytes"))
        if memory_bytes is not None:
            if memory_bytes > there:
                raise CapacityError(
                    f"{gigabytes(memory_bytes)} are more than the {gigabytes(there)} of "
                    f"{profile.name}; ask for less, or choose a machine with more"
                )
            return self.at(self.largest(memory_bytes))
        if budget is None:
            raise SettingError("the policy needs GPU slots; give a budget or a memory size")
        needed = self.memory(self.at(budget)).total_bytes
        if needed > there:
            raise CapacityError(
                f"budget {budget} of {self.spec.name} needs {gigabytes(needed, up=True)} but "
                f"{profile.name} has {gigabytes(there)}; use a budget of at most "
                f"{self.largest(there)}, or a machine with that much memory"
            )
        return self.at(budget)

    def at(self, budget: int) -> Setup:
        """Return the setup with a budget."""
        return replace(self.setup, budget=budget)

    def largest(self, memory_bytes: int) -> int:
        """Return the largest budget that fits some memory."""
        return budget_for(
            self.spec,
            self.size,
            memory_bytes,
            scratch_slots=self._scratch,
            free_percent=self.setup.engine.free_percent,
        )

    def memory(self, setup: Setup) -> MemoryPlan:
        """Return what a setup occupies."""
        slots = int(self.make(setup).budgets(setup).sum())
        return plan(self.spec, self.size, slots=slots, scratch_slots=self._scratch(setup.budget))

    def _scratch(self, budget: int) -> int:
        setup = self.at(budget)
        return self.make(setup).scratch_slots(setup)


def _requests(trace: Trace | None) -> tuple[int, ...]:
    return () if trace is None else tuple(info.request for info in trace.meta.requests)


def _check_host(profile: HardwareProfile, spec: ModelSpec) -> None:
    """Refuse a host that cannot keep the master copy of every expert, where its memory is known."""
    if profile.missing(("cpu.memory_bytes",)):
        return
    there = profile.value("cpu.memory_bytes")
    if spec.all_experts_bytes > there:
        raise CapacityError(
            f"the experts of {spec.name} take {gigabytes(spec.all_experts_bytes, up=True)} of host "
            f"memory but {profile.name} has {gigabytes(there)}; choose a machine with more"
        )

"""Case: everything a simulated run depends on, checked before any work."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from tidesim.engines import Engine, get_engine
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.memory import Extent, MemoryPlan, budget_for, extent, gigabytes, plan
from tidesim.model_spec import ModelSpec
from tidesim.placement import FloatArray, Policy, Setup, popularity
from tidesim.policies import PolicyFactory, get_policy
from tidesim.trace.passes import Trace, Window


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
    """

    trace: Trace
    spec: ModelSpec
    latency: Latency
    setup: Setup
    policy: PolicyFactory
    memory: MemoryPlan
    hardware: str
    profile_sha256: str = ""


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

    Raises
    ------
    SettingError
        An option is unknown, out of range, missing or contradicts another.
    CapacityError
        The model does not fit the machine's memory; names what would.
    FormatError
        The profile or the trace lacks what the run needs.
    """
    _check_settings(trace.meta.model, budget, memory_bytes, interval=interval)
    engine = get_engine(engine) if isinstance(engine, str) else engine
    make = get_policy(policy) if isinstance(policy, str) else policy
    spec = sized_spec(trace.meta.model, sizes)
    latency = Latency(profile, spec, engine=engine.name)
    popular = _popularity(trace, popularity_from, engine.window)
    size = extent(trace, engine.window)

    def setup(slots: int) -> Setup:
        return Setup(
            num_experts=spec.num_experts,
            layers=spec.moe_layers,
            budget=slots,
            popularity=popular,
            engine=engine,
            latency=latency,
            interval=interval,
        )

    def scratch(slots: int) -> int:
        return make(setup(slots)).scratch_slots(setup(slots))

    is_bound = make(setup(spec.num_experts)).is_bound
    if budget is None and memory_bytes is None and not is_bound:
        raise SettingError("the policy needs GPU slots; give a budget or a memory size")
    if memory_bytes is not None:
        _check_memory_bytes(memory_bytes, profile)
        budget = budget_for(spec, size, memory_bytes, scratch_slots=scratch)
    chosen = setup(spec.num_experts if budget is None else budget)
    needed = _memory(make(chosen), chosen, spec, size)
    if not is_bound:
        _check_gpu(needed, chosen.budget, profile, spec, size, scratch=scratch)
        _check_host(profile, spec)
    return Case(
        trace=trace,
        spec=spec,
        latency=latency,
        setup=chosen,
        policy=make,
        memory=needed,
        hardware=profile.name,
        profile_sha256=profile.sha256,
    )


def sized_spec(routing: ModelSpec, sizes: ModelSpec | None) -> ModelSpec:
    """Return a model with the routing of one model and the sizes of another.

    Mixture layers, experts, top-k and block length are those of `routing`; hidden and intermediate
    sizes, heads, shared experts, dense layers, vocabulary and dtype are those of `sizes`.

    Raises
    ------
    SettingError
        The two do not make a model.
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
    return f"routing of {routing.name} at the sizes of {spec.name}"


def _popularity(trace: Trace, training: Trace | None, window: Window) -> FloatArray:
    shape = (trace.meta.model.moe_layers, trace.meta.model.num_experts)
    if training is None:
        return np.zeros(shape, dtype=np.float64)
    counted = popularity(training, window=window)
    if counted.shape != shape:
        raise SettingError(
            f"the training requests are of a model with {counted.shape[0]} layers of "
            f"{counted.shape[1]} experts, the trace's has {shape[0]} of {shape[1]}; "
            "give training requests of the same model"
        )
    return counted


def _check_settings(
    spec: ModelSpec, budget: int | None, memory_bytes: int | None, *, interval: int | None
) -> None:
    if interval is not None and interval < 1:
        raise SettingError(f"interval is {interval} but must be at least 1 step")
    if budget is not None and memory_bytes is not None:
        raise SettingError("budget and memory contradict each other; give one of them")
    top_k = spec.num_experts_per_tok
    if budget is not None and not top_k <= budget <= spec.num_experts:
        raise SettingError(
            f"budget is {budget} but must be {top_k} (one token's experts) to {spec.num_experts} "
            "(all experts of a layer)"
        )


def _check_memory_bytes(memory_bytes: int, profile: HardwareProfile) -> None:
    there = profile.value("gpu.memory_bytes")
    if memory_bytes > there:
        raise CapacityError(
            f"{gigabytes(memory_bytes)} are more than the {gigabytes(there)} of {profile.name}; "
            "ask for less, or choose a machine with more"
        )


def _memory(policy: Policy, setup: Setup, spec: ModelSpec, size: Extent) -> MemoryPlan:
    slots = int(policy.budgets(setup).sum())
    return plan(spec, size, slots=slots, scratch_slots=policy.scratch_slots(setup))


def _check_gpu(
    needed: MemoryPlan,
    budget: int,
    profile: HardwareProfile,
    spec: ModelSpec,
    size: Extent,
    *,
    scratch: Callable[[int], int],
) -> None:
    there = int(profile.value("gpu.memory_bytes"))
    if needed.total_bytes > there:
        largest = budget_for(spec, size, there, scratch_slots=scratch)
        raise CapacityError(
            f"budget {budget} of {spec.name} needs {gigabytes(needed.total_bytes, up=True)} but "
            f"{profile.name} has {gigabytes(there)}; use a budget of at most {largest}, "
            "or a machine with that much memory"
        )


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

"""Generate with offloading: a schedule, or a policy and its settings, places a model's experts."""

from dataclasses import dataclass

import torch
from torch import nn

from tidesim.engines import get_engine
from tidesim.errors import CapacityError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.latency import Latency
from tidesim.measured import Counters
from tidesim.model_spec import ModelSpec
from tidesim.placement import Policy, Setup
from tidesim.policies import PolicyFactory, get_policy
from tidesim.policies.scheduled import follow
from tidesim.policies.settings import check_choices, get_promotion, known_popularity
from tidesim.records import Records
from tidesim.runtime.backends import Backend
from tidesim.runtime.decode import Decoded, DecodeSettings, Observer, decode
from tidesim.runtime.experts import Stale, keep
from tidesim.runtime.model import Transformer
from tidesim.runtime.offloading import make_offload
from tidesim.schedule import Schedule, check_model
from tidesim.trace.passes import Trace


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Which policy places a model's experts, and what it knows.

    Attributes
    ----------
    make : callable
        Makes a fresh policy.
    setup : Setup
    """

    make: PolicyFactory
    setup: Setup

    def policy(self) -> Policy:
        """Make a fresh policy: one with memory serves one run."""
        return self.make(self.setup)


def obey(
    schedule: Schedule, spec: ModelSpec, *, training: Trace | None = None, forced: bool = False
) -> Placing:
    """Let a schedule place a model's experts.

    Parameters
    ----------
    schedule : Schedule
    spec : ModelSpec
        The model that runs.
    training : Trace or None
        Requests whose popularity gives the first residents.
    forced : bool
        Accept a schedule for a model of another name.

    Raises
    ------
    SettingError
        The schedule, or the training requests, are for another model.
    """
    check_model(schedule, spec, forced=forced)
    return place_by(
        follow(schedule),
        spec,
        budget=max(schedule.budgets),
        interval=schedule.interval,
        promotion=schedule.promotion,
        engine=schedule.engine,
        training=training,
    )


def place_by(
    policy: str | PolicyFactory,
    spec: ModelSpec,
    *,
    budget: int | None = None,
    interval: int | None = None,
    promotion: str | None = None,
    engine: str = "tidesim",
    training: Trace | None = None,
    profile: HardwareProfile | None = None,
) -> Placing:
    """Let a policy place a model's experts.

    Parameters
    ----------
    policy : str or callable
        A name of `tidesim.policies.POLICIES`, or what makes a policy from a `Setup`.
    spec : ModelSpec
        The model that runs.
    budget : int or None
        Slots per mixture layer; only ``all-cpu`` and ``all-gpu`` need none.
    interval : int or None
        Steps between refreshes, for policies that have one.
    promotion : str or None
        ``blocking`` or ``background``; None leaves it to the policy.
    engine : str
    training : Trace or None
        Requests whose popularity policies know.
    profile : HardwareProfile or None
        For policies that weigh costs.

    Raises
    ------
    SettingError
        An option is unknown, out of range or missing.
    """
    check_choices(spec, budget=budget, interval=interval)
    kind = get_engine(engine)
    setup = Setup(
        num_experts=spec.num_experts,
        layers=spec.moe_layers,
        budget=budget or spec.num_experts,
        popularity=known_popularity(spec, training, kind.window),
        engine=kind,
        latency=None if profile is None else Latency(profile, spec, engine=kind.name),
        interval=interval,
        promotion=get_promotion(promotion),
    )
    make = get_policy(policy) if isinstance(policy, str) else policy
    if getattr(make, "knows_future", False):
        raise SettingError(
            f"policy {policy} knows the passes to come, and decoding does not; use another policy"
        )
    placing = Placing(make=make, setup=setup)
    is_bound = placing.policy().is_bound  # made once: what it lacks is said before any work
    if budget is None and not is_bound:
        raise SettingError("the policy needs slots on the device; give a budget")
    return placing


@dataclass(frozen=True, kw_only=True)
class Offloaded:
    """What decoding with offloading wrote and moved.

    Attributes
    ----------
    decoded : Decoded
    counters : Counters
    policy, engine, backend, promotion : str
    budgets : tuple of int
        Slots of every mixture layer.
    records : Records or None
        Every operation of the run, where they were kept.
    """

    decoded: Decoded
    counters: Counters
    policy: str
    engine: str
    backend: str
    promotion: str
    budgets: tuple[int, ...]
    records: Records | None


def generate_offloaded(
    model: Transformer,
    prompt: list[int],
    settings: DecodeSettings,
    placing: Placing,
    backend: Backend,
    *,
    observe: Observer | None = None,
    keep_records: bool = False,
    stale: Stale = keep,
) -> Offloaded:
    """Decode one request while a policy places the experts; the tokens are those without it.

    The model has its own experts back when this returns or fails.

    Parameters
    ----------
    model : Transformer
        Its banks in host memory, everything else on the backend's device, as `load_model` gives it
        with ``experts_on="cpu"``.
    prompt : list of int
    settings : DecodeSettings
        Their window is the engine's.
    placing : Placing
    backend : Backend
        Entered by the caller.
    observe : callable, optional
        Called with a `PassEvent` after every pass.
    keep_records : bool
    stale : callable
        As for `Offload`.

    Raises
    ------
    SettingError
        The windows differ; as `make_offload` and `decode`.
    CapacityError
        The device's memory does not hold the slots, or what a pass needs beside them.
    RunError
        A thread died or an operation failed.
    FormatError
        The model computes NaN.
    """
    check_window(settings, placing)
    policy = placing.policy()
    try:
        offload = make_offload(model, policy, placing.setup, backend, stale=stale)
        backend.recorder.take()  # forget the copies of the first residents
        backend.recorder.enabled = keep_records
        offload.attach()
        try:
            decoded = decode(model, prompt, settings, observe=observe, frame=offload)
            offload.finish()
        finally:
            offload.detach()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CapacityError(
            f"a pass does not fit the memory of {backend.device.type} beside the slots ({error}); "
            "use a smaller budget or a shorter prompt"
        ) from None
    records = backend.recorder.take()
    return Offloaded(
        decoded=decoded,
        counters=offload.tally.counters(),
        policy=policy.name,
        engine=placing.setup.engine.name,
        backend=backend.name,
        promotion=str(policy.promotion),
        budgets=tuple(policy.budgets(placing.setup).tolist()),
        records=records if keep_records else None,
    )


def check_window(settings: DecodeSettings, placing: Placing) -> None:
    """Refuse to decode in another window than the engine's.

    Raises
    ------
    SettingError
        The two differ.
    """
    engine = placing.setup.engine
    if settings.window is not engine.window:
        raise SettingError(
            f"engine {engine.name} computes window {engine.window}, not {settings.window}; "
            "leave the window to it, or choose another engine"
        )


def on_device(parameter: nn.Parameter, device: torch.device, *, what: str) -> nn.Parameter:
    """Return a parameter on a device.

    Raises
    ------
    CapacityError
        The device's memory does not hold it; `what` says what is being moved.
    """
    try:
        return nn.Parameter(parameter.to(device), requires_grad=False)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CapacityError(
            f"{what} does not fit the memory of {device.type} ({error}); use a smaller dtype"
        ) from None

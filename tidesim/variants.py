"""Variants: the settings of a run by the names that the command line takes, to change one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile, load_profile
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.overrides import overridden
from tidesim.policies import PolicyFactory
from tidesim.policies.scheduled import follow
from tidesim.schedule import Schedule, check_schedule, load_schedule
from tidesim.simulate import Case, prepare, sized_spec
from tidesim.trace.passes import Trace

DECIDED = ("policy", "interval", "budget", "memory_bytes", "engine", "promotion")  # by a schedule


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Everything a run depends on beside its requests; `dataclasses.replace` makes another.

    Attributes
    ----------
    hardware : HardwareProfile, str or Path
        A profile, a bundled one's name or a file.
    overrides : sequence of str
        What-ifs on the machine, ``KEY=VALUE`` as `overridden` reads them.
    policy, interval, budget, memory_bytes, promotion, batch
        As `prepare`.
    engine : str or None
        ``tidesim`` if None.
    schedule : Schedule, str or Path, or None
        Decides `DECIDED`, all of which are then None.
    sizes : ModelSpec, str or Path, or None
        As `prepare`, or what `load_model_spec` takes.
    force : bool
        Accept a schedule made for another trace, profile, sizes or name of the model.
    """

    hardware: HardwareProfile | str | Path
    overrides: Sequence[str] = ()
    policy: str | PolicyFactory | None = None
    interval: int | None = None
    budget: int | None = None
    memory_bytes: int | None = None
    engine: str | None = None
    promotion: str | None = None
    batch: int = 1
    schedule: Schedule | str | Path | None = None
    sizes: ModelSpec | str | Path | None = None
    force: bool = False

    def case(self, trace: Trace, *, popularity_from: Trace | None = None) -> Case:
        """Read what the settings name, check it and build the case of a run.

        Parameters
        ----------
        trace : Trace
            The requests to simulate.
        popularity_from : Trace or None
            As `prepare`.

        Raises
        ------
        SettingError
            Neither a policy nor a schedule, or a schedule and what it decides; an override or a
            schedule that does not fit; or as `prepare`.
        TidesimError
            As `load_profile`, `load_schedule`, `load_model_spec` and `prepare`.
        """
        hardware, sizes = self.hardware, self.sizes
        profile = hardware if isinstance(hardware, HardwareProfile) else load_profile(hardware)
        profile = overridden(profile, self.overrides)
        spec = load_model_spec(sizes) if isinstance(sizes, str | Path) else sizes
        run = self
        if (plan := self._plan()) is not None:
            model = trace.meta.model
            used = sized_spec(model, spec)
            check_schedule(plan, model, trace=trace, profile=profile, sizes=used, forced=self.force)
            run = _obeying(plan, self)
        if run.policy is None:
            raise SettingError(
                "a run needs a policy or a schedule; give --policy NAME or --schedule FILE"
            )
        return prepare(
            trace,
            profile,
            policy=run.policy,
            interval=run.interval,
            budget=run.budget,
            memory_bytes=run.memory_bytes,
            engine=run.engine or "tidesim",
            promotion=run.promotion,
            batch=run.batch,
            sizes=spec,
            popularity_from=popularity_from,
        )

    def unscheduled(self) -> "Variant":
        """Return the settings that come closest to the schedule, if there is one.

        Its policy, interval, engine and promotion; its slots only where every layer has as many.

        Raises
        ------
        SettingError, FormatError
            As `case`, of the schedule.
        """
        plan = self._plan()
        if plan is None:
            return self
        near = replace(_obeying(plan, self), policy=plan.policy)
        return near if len(set(plan.budgets)) == 1 else replace(near, budget=None)

    @property
    def schedule_name(self) -> str | None:
        """What to call the schedule."""
        if isinstance(self.schedule, Schedule):
            return "the schedule"
        return None if self.schedule is None else f"schedule {self.schedule}"

    def _plan(self) -> Schedule | None:
        if self.schedule is None:
            return None
        if any(getattr(self, name) is not None for name in DECIDED):
            raise SettingError(
                "a schedule decides policy, interval, budget, engine and promotion; leave those out"
            )
        return (
            self.schedule if isinstance(self.schedule, Schedule) else load_schedule(self.schedule)
        )


def _obeying(plan: Schedule, variant: Variant) -> Variant:
    """Return a variant with all that a schedule decides in its place."""
    return replace(
        variant,
        schedule=None,
        policy=follow(plan),
        interval=plan.interval,
        budget=max(plan.budgets),
        engine=plan.engine,
        promotion=plan.promotion,
    )

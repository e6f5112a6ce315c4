"""What commands share that let a schedule or a policy place experts on a real machine."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidesim.cli.common import (
    bytes_per_s,
    check_writable,
    read_profile,
    read_schedule,
    read_trace,
    share,
    tell,
)
from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec, load_model_spec
from tidesim.optimize import splits
from tidesim.resources import find_checkpoint
from tidesim.timeline import save_timeline
from tidesim.trace.passes import Window

if TYPE_CHECKING:
    from tidesim.runtime.backends import Backend
    from tidesim.runtime.decode import DecodeSettings
    from tidesim.runtime.generate import Offloaded, Placing
    from tidesim.runtime.verify import Verification

ScheduleFile = Annotated[
    Path | None, typer.Option("--schedule", help="Let this schedule place the experts.")
]
PolicyName = Annotated[
    str | None, typer.Option("--policy", help="Let this policy place the experts.")
]
Interval = Annotated[
    int | None, typer.Option("--interval", help="Steps between refreshes, for tide.")
]
PromotionName = Annotated[
    str | None,
    typer.Option("--promotion", help="blocking or background; by default as the policy is meant."),
]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="tidesim (the default) or tide-reference.")
]
BackendName = Annotated[
    str | None,
    typer.Option("--backend", help="cpu (a stand-in of threads) or cuda; by default as --device."),
]
TrainingTrace = Annotated[
    str | None,
    typer.Option("--trace", help="A trace whose training requests tell which experts are popular."),
]
Machine = Annotated[
    str | None,
    typer.Option("--hardware", metavar="NAME", help="A profile, for policies that weigh costs."),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Also run without offloading; status 1 if anything differs. The seconds then hold the "
        "comparison, too.",
    ),
]
TimelineFile = Annotated[
    Path | None,
    typer.Option("--timeline", metavar="FILE", help="Write every operation of the run."),
]


@dataclass(frozen=True, kw_only=True)
class Offloading:
    """The options by which ``tidesim generate`` offloads; names are the command's."""

    schedule: Path | None
    policy: str | None
    interval: int | None
    budget: int | None
    promotion: str | None
    engine: str | None
    backend: str | None
    trace: str | None
    hardware: str | None
    set_: list[str] | None
    cpu_workers: int | None
    link_gb_per_s: float | None
    force: bool
    verify: bool
    timeline: Path | None

    @classmethod
    def chosen(cls, options: dict[str, Any]) -> "Offloading | None":
        """Pick the options out of a command's; None where none is given.

        Raises
        ------
        SettingError
            Neither a schedule nor a policy, or a schedule and what it decides.
        """
        picked = cls(**{item.name: options[item.name] for item in fields(cls)})
        if all(value is None or value is False for value in vars(picked).values()):
            return None
        picked._check()
        return picked

    def _check(self) -> None:
        if self.schedule is None and self.policy is None:
            raise SettingError(
                "offloading needs --schedule FILE or --policy NAME; give one of them"
            )
        decided = (self.policy, self.interval, self.budget, self.promotion, self.engine)
        if self.schedule is not None and any(item is not None for item in decided):
            raise SettingError(
                "--schedule decides policy, interval, budget, engine and promotion; "
                "leave those options out"
            )
        if self.set_ and self.hardware is None:
            raise SettingError("--set changes a machine; give --hardware NAME with it")
        if self.timeline is not None:
            check_writable(self.timeline)

    def placing(self, spec: ModelSpec) -> "Placing":
        """Read what the options name and check it against the model."""
        from tidesim.runtime.generate import obey, place_by  # noqa: PLC0415

        trace = None if self.trace is None else read_trace(self.trace)
        training = None if trace is None else splits(trace)[0]
        profile = None if self.hardware is None else read_profile(self.hardware, self.set_)
        if self.schedule is not None:
            plan = read_schedule(
                self.schedule, spec, trace=trace, profile=profile, force=self.force
            )
            return obey(plan, spec, training=training, forced=True)
        return place_by(
            self.policy or "",
            spec,
            budget=self.budget,
            interval=self.interval,
            promotion=self.promotion,
            engine=self.engine or "tidesim",
            training=training,
            profile=profile,
        )

    def make_backend(self, *, device: str, threads: int) -> "Backend":
        """Make the backend, by default the one of ``--device``."""
        return real_backend(
            self.backend or device,
            cpu_workers=self.cpu_workers,
            link_gb_per_s=self.link_gb_per_s,
            device=device,
            threads=threads,
        )


def real_backend(
    name: str,
    *,
    cpu_workers: int | None,
    link_gb_per_s: float | None,
    device: str = "cpu",
    threads: int = 0,
) -> "Backend":
    """Make a backend from a command's options.

    Raises
    ------
    SettingError
        An option contradicts it.
    """
    from tidesim.runtime.backends import make_backend  # noqa: PLC0415

    if (name, device) == ("cpu", "cuda"):
        raise SettingError("--backend cpu and --device cuda contradict each other; leave one out")
    if name == "cpu" and threads > 1:
        raise SettingError(
            f"--threads is {threads} but backend cpu uses 1 thread per operator; leave it out, or "
            "give --cpu-workers"
        )
    rate = bytes_per_s(link_gb_per_s)
    return make_backend(name, cpu_workers=cpu_workers, link_bytes_per_s=rate)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which model runs, and where; names are the options' of ``tidesim generate``."""

    checkpoint: str
    dtype: str | None
    device: str
    threads: int


def generate(
    options: Offloading,
    where: Where,
    ids: list[int],
    settings: "DecodeSettings",
    *,
    window: Window | None,
) -> "tuple[Offloaded, Verification | None]":
    """Decode with offloading as the options say; `window` is the one asked for, if any."""
    from tidesim.runtime import checkpoint as files  # noqa: PLC0415
    from tidesim.runtime.generate import generate_offloaded  # noqa: PLC0415
    from tidesim.runtime.verify import verify  # noqa: PLC0415

    spec = load_model_spec(find_checkpoint(where.checkpoint))
    spec = spec if where.dtype is None else spec.model_copy(update={"dtype": where.dtype})
    placing = options.placing(spec)
    settings = replace(settings, window=window or placing.setup.engine.window)
    backend = options.make_backend(device=where.device, threads=where.threads)
    model = files.load_model(
        where.checkpoint, dtype=where.dtype, device=backend.device.type, experts_on="cpu"
    )
    verification, keep = None, options.timeline is not None
    with backend:
        if options.verify:
            run, verification = verify(model, ids, settings, placing, backend, keep_records=keep)
        else:
            run = generate_offloaded(model, ids, settings, placing, backend, keep_records=keep)
        about = {"model": spec.name, "machine": backend.machine}
    write_timeline(options.timeline, run, about)
    return run, verification


def describe(run: "Offloaded", verification: "Verification | None") -> dict[str, Any]:
    """Return what a run with offloading adds to the answer of ``tidesim generate``."""
    answer = {
        "backend": run.backend,
        "engine": run.engine,
        "policy": run.policy,
        "promotion": run.promotion,
        "budgets": list(run.budgets),
        "promotions": run.counters.promotions,
        "hit_rate": run.counters.hit_rate,
        "counters": asdict(run.counters),
        "identical": None,
        "verification": None,
    }
    if verification is not None:
        found = asdict(verification) | {"differences": list(map(str, verification.differences))}
        answer |= {"identical": verification.identical, "verification": found}
    return answer


def report(run: "Offloaded", verification: "Verification | None") -> None:
    """Say on stderr what moved, and whether it changed anything."""
    counters = run.counters
    tell(
        f"{run.policy} on engine {run.engine}, backend {run.backend}: "
        f"{share(counters.hit_rate)} hits, {counters.promotions:,} promotions"
    )
    if verification is None:
        return
    if verification.identical:
        what = "tokens and routing" if verification.logits_equal is None else (
            "tokens, routing and logits"
        )  # fmt: skip
        tell(f"identical: {what} of {verification.passes} passes are those without offloading")
        return
    verdict = "not identical, but a near-tie explains it" if verification.explained else (
        "NOT identical to the run without offloading"
    )  # fmt: skip
    typer.echo("\n".join([f"{verdict}:", *map(str, verification.differences)]), err=True)


def write_timeline(path: Path | None, run: "Offloaded", about: dict[str, Any]) -> None:
    """Write the records of a run, where they were asked for."""
    if path is None or run.records is None:
        return
    names = ("policy", "promotion", "engine", "backend")
    metadata = {"times": "measured"} | {name: getattr(run, name) for name in names} | about
    save_timeline(path, run.records, metadata=metadata)

"""Schedule: the file a solver writes and a runtime obeys (``tidesim-schedule`` 1, JSON).

It says how many slots every mixture layer has, at which denoise steps of a block its residents are
chosen anew, how many experts that may promote and who is resident before the first pass; for which
trace, machine and sizes that was decided, and what to expect of it.
"""

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.model_spec import ModelSpec
from tidesim.resources import write_text
from tidesim.strict import Strict, sentence
from tidesim.trace.passes import Trace

FORMAT = "tidesim-schedule"
VERSION = 1

_NOT_BLANK = r"\S"
_SHA256 = r"^([0-9a-f]{64})?$"
_Text = Annotated[str, Field(pattern=_NOT_BLANK)]
_Digest = Annotated[str, Field(pattern=_SHA256)]
_Whole = Annotated[int, Field(ge=1)]
_Steps = Annotated[int, Field(ge=1, le=2**15)]  # a trace counts steps in int16
_Seconds = Annotated[float, Field(ge=0)]
_Ids = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class Source(Strict):
    """A file the schedule was made from; the digest is "" where no file held it."""

    name: str = ""
    sha256: _Digest = ""
    provenance: str = ""


class Routing(Strict):
    """The model whose experts are placed."""

    name: _Text
    moe_layers: _Whole
    num_experts: _Whole
    num_experts_per_tok: _Whole


class LayerSchedule(Strict):
    """One mixture layer: its slots, and the denoise steps of a block that refresh it.

    Attributes
    ----------
    budget : int
        Slots.
    refresh_steps : tuple of int
        Ascending; none where the layer never refreshes and keeps its first residents.
    most_promotions : int or None
        Most experts that a refresh promotes; None sets no limit.
    initial : tuple of int or None
        Experts in the slots before the first pass, ascending; None leaves them to the engine.
    """

    budget: _Whole
    refresh_steps: _Ids
    most_promotions: _Whole | None = None
    initial: _Ids | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if _descends(self.refresh_steps):
            raise ValueError("refresh_steps must increase from step to step")
        if self.initial is not None and _descends(self.initial):
            raise ValueError("initial must increase from expert to expert")
        if self.initial is not None and len(self.initial) > self.budget:
            raise ValueError(f"initial must be at most budget = {self.budget} experts")
        return self


class StepMs(Strict):
    """Milliseconds of a denoise pass by percentile."""

    p50: _Seconds
    p90: _Seconds
    p99: _Seconds


class Prediction(Strict):
    """What a simulation of the schedule gave on some requests."""

    requests: _Whole
    tokens_per_s: _Seconds
    seconds_per_block: _Seconds
    step_ms: StepMs
    bottleneck: _Text


class Predictions(Strict):
    """On the requests the schedule was made from, and on others where the trace has some."""

    train: Prediction
    heldout: Prediction | None = None


class SolverReport(Strict):
    """How the schedule was found and what was proved about it."""

    formulation: _Text
    backend: _Text
    status: _Text
    objective_s: _Seconds
    bound_s: _Seconds
    gap: _Seconds
    seconds: _Seconds


class Schedule(Strict):
    """Refresh steps and budgets per layer, what they were made from, and what to expect.

    Attributes
    ----------
    tool_version : str
    model : Routing
    sizes : Source
        The model whose sizes were simulated; its digest is that of its parameters.
    trace, profile : Source
    engine, policy : str
    settings : dict
        The policy's own settings.
    promotion : str
        ``blocking``: promoted experts serve the very pass that promotes them. ``background``: they
        serve from the next pass on.
    steps : int
        T: denoise steps of the longest training block.
    interval : int or None
        τ where every layer refreshes at steps 0, τ, 2τ … of each block, also of longer ones than
        those it was made for; without it nothing refreshes there.
    layers : tuple of LayerSchedule
        One per mixture layer.
    memory_bytes : int
        GPU memory of a run, all of it.
    predictions : Predictions
    solver : SolverReport
    """

    format: Literal["tidesim-schedule"]
    version: int = Field(ge=VERSION, le=VERSION)
    tool_version: _Text
    model: Routing
    sizes: Source
    trace: Source
    profile: Source
    engine: _Text
    policy: _Text
    settings: dict[str, str | int | float | bool | None]
    promotion: Literal["blocking", "background"]
    steps: _Steps
    interval: _Steps | None = None
    layers: Annotated[tuple[LayerSchedule, ...], Field(strict=False, min_length=1)]
    memory_bytes: _Whole
    predictions: Predictions
    solver: SolverReport

    @property
    def budgets(self) -> tuple[int, ...]:
        """Slots of every mixture layer."""
        return tuple(layer.budget for layer in self.layers)

    @property
    def is_unlimited(self) -> bool:
        """Whether no layer limits the promotions of a refresh."""
        return all(layer.most_promotions is None for layer in self.layers)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """Yield the rules that tie the parts to each other and do not hold."""
        if len(self.layers) != self.model.moe_layers:
            yield f"holds {len(self.layers)} layers, not moe_layers = {self.model.moe_layers}"
        least, most = self.model.num_experts_per_tok, self.model.num_experts
        for number, layer in enumerate(self.layers):
            if not least <= layer.budget <= most:
                yield f"layers.{number}.budget must be {least} (top-k) to {most} (all experts)"
            if layer.initial and layer.initial[-1] >= most:
                yield f"layers.{number}.initial must be below num_experts = {most}"
            if layer.refresh_steps and layer.refresh_steps[-1] >= self.steps:
                yield f"layers.{number}.refresh_steps must be below steps = {self.steps}"
            if self.interval and layer.refresh_steps != tuple(range(0, self.steps, self.interval)):
                yield f"layers.{number}.refresh_steps must be those of interval {self.interval}"


def _descends(numbers: tuple[int, ...]) -> bool:
    """Tell whether a number is not above the one before it."""
    return any(after <= before for before, after in pairwise(numbers))


def sizes_source(spec: ModelSpec) -> Source:
    """Name a model's sizes, with the digest of its parameters."""
    return Source(
        name=spec.name, sha256=hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return Schedule.model_json_schema()


def load_schedule(path: str | Path) -> Schedule:
    """Read and check a schedule file.

    Raises
    ------
    NotFoundError
        No such file.
    FormatError
        Not a schedule of this format and version; names file, key, value, rule and repair.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.optimize import optimize
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> settings = {"budget": 16, "sizes": load_model_spec("llada2.0-mini")}
    >>> solved = optimize(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> save_schedule(solved.schedule, "schedule.json")
    >>> plan = load_schedule("schedule.json")
    >>> plan.policy, plan.budgets, plan.interval
    ('tide', (16, 16, 16, 16), 1)
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"{path}: no such schedule file; give one that tidesim solve wrote"
        ) from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    try:
        return Schedule.model_validate_json(content)
    except ValidationError as error:
        raise FormatError(f"{path}: {_sentence(error)}") from None


def save_schedule(schedule: Schedule, path: str | Path) -> None:
    """Write a schedule file whole or not at all; equal schedules give equal bytes.

    Raises
    ------
    OutputError
        The file cannot be written.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.optimize import optimize
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> settings = {"budget": 16, "sizes": load_model_spec("llada2.0-mini")}
    >>> solved = optimize(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> save_schedule(solved.schedule, "schedule.json")
    >>> load_schedule("schedule.json") == solved.schedule
    True
    """
    write_text(path, schedule.model_dump_json(indent=1) + "\n")


def check_model(schedule: Schedule, spec: ModelSpec, *, forced: bool = False) -> None:
    """Refuse a schedule that was made for another model.

    Parameters
    ----------
    schedule : Schedule
    spec : ModelSpec
    forced : bool
        Accept another name; layers, experts and top-k must agree all the same, because the
        schedule could not be followed.

    Raises
    ------
    SettingError
        Something does not match; names what, and both values.
    """
    made = schedule.model
    for key in ("moe_layers", "num_experts", "num_experts_per_tok"):
        ours, theirs = getattr(spec, key), getattr(made, key)
        if ours != theirs:
            raise SettingError(
                f"the schedule is for a model with {key} = {theirs}, {spec.name} has {ours}; "
                "solve again for this model"
            )
    if not forced and made.name != spec.name:
        raise SettingError(
            f"the schedule was made for another model ({made.name}, not {spec.name}); "
            "solve again, or force it"
        )


def check_schedule(
    schedule: Schedule,
    model: ModelSpec,
    *,
    trace: Trace | None = None,
    profile: HardwareProfile | None = None,
    sizes: ModelSpec | None = None,
    forced: bool = False,
) -> None:
    """Refuse a schedule that was made for something else.

    Digests are compared where both sides have one; what is None is not compared.

    Parameters
    ----------
    schedule : Schedule
    model : ModelSpec
        Whose experts are placed.
    trace : Trace or None
        The whole of it, no part.
    profile : HardwareProfile or None
    sizes : ModelSpec or None
        The sizes it will run at, as `simulate.sized_spec` gives them.
    forced : bool
        Accept another trace, profile or sizes, and another model as `check_model` does.

    Raises
    ------
    SettingError
        Something does not match; names what, and both values.
    """
    check_model(schedule, model, forced=forced)
    if forced:
        return
    if trace is not None:
        _check_same("trace", schedule.trace.sha256, trace.sha256)
    # A what-if on the machine that the schedule was made for is that machine still.
    if profile is not None and schedule.profile.sha256 != profile.baseline.sha256:
        _check_same("profile", schedule.profile.sha256, profile.sha256)
    if sizes is not None:
        _check_sizes(schedule.sizes, sizes_source(sizes))


def _check_sizes(made: Source, ours: Source) -> None:
    if made.sha256 in {"", ours.sha256}:
        return
    if made.name == ours.name:
        raise SettingError(
            f"the schedule was made for other sizes of {made.name}, such as another dtype; "
            "run at those, solve again, or force it"
        )
    raise SettingError(
        f"the schedule was made for the sizes of {made.name}, not of {ours.name}; "
        f"give --sizes {made.name} where the command takes it, solve again, or force it"
    )


def _check_same(what: str, theirs: str, ours: str) -> None:
    if theirs and ours and theirs != ours:
        raise SettingError(
            f"the schedule was made for another {what} ({theirs[:12]}, not {ours[:12]}); "
            "solve again, or force it"
        )


def first_layers(schedule: Schedule, count: int) -> Schedule:
    """Return a schedule of the first mixture layers alone, for a part of the model.

    What it was made from and what it predicts stays that of the whole.

    Raises
    ------
    SettingError
        It has fewer layers, or none are left.
    """
    there = schedule.model.moe_layers
    if not 1 <= count <= there:
        raise SettingError(f"layers are {count} but must be 1 to {there}, those of the schedule")
    model = schedule.model.model_copy(update={"moe_layers": count})
    return schedule.model_copy(update={"model": model, "layers": schedule.layers[:count]})


_HEAD = f'this tidesim reads format "{FORMAT}", version {VERSION}'
_WORDS = {
    _NOT_BLANK: "must not be blank",
    "json_invalid": "must be JSON ({error})",
    _SHA256: "must be a SHA-256 digest (64 hexadecimal digits) or empty",
}


def _sentence(error: ValidationError) -> str:
    form = f"{FORMAT} {VERSION}"
    return sentence(error, Schedule, form=form, repair=_repair, words=_WORDS)


def _repair(_: ErrorDetails, path: tuple[str, ...]) -> str:
    head = path and path[-1] in {"format", "version"}
    return _HEAD if head else "repair it or solve again"

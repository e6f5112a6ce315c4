"""HardwareProfile: what one machine can do, each number with its source and its kind.

A profile is a TOML file (``tidesim-hardware`` 1, described in ``hwprofiles/README.md``). A file may
leave a number out, but no number has a default: whoever needs an absent one gets an error.
"""

import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tidesim.errors import FormatError, SettingError
from tidesim.resources import bundled_names, find

FORMAT = "tidesim-hardware"
VERSION = 1

Kind = Literal["measured", "datasheet", "estimated"]
_NOT_BLANK = r"\S"
_ENGINE_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_Text = Annotated[str, Field(pattern=_NOT_BLANK)]
_EngineName = Annotated[str, Field(pattern=_ENGINE_NAME)]
_Size = Annotated[int, Field(ge=1)]
_Axis = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False, min_length=1)]
_Times = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Quantity(_Strict):
    """One number, at least 0, in the unit its key names, with where it came from and how."""

    value: float = Field(ge=0)
    source: _Text
    kind: Kind


class Positive(Quantity):
    """A number above 0: a rate or a size."""

    value: float = Field(gt=0)


class Count(Quantity):
    """A whole number, at least 1."""

    value: float = Field(ge=1, multiple_of=1)


class Factor(Quantity):
    """The share of its rate that a resource keeps, above 0 and at most 1."""

    value: float = Field(gt=0, le=1)


class Machine(_Strict):
    """What the machine is called, and what its GPU (not the host) costs and draws."""

    name: _Text
    note: str = ""
    price_usd: Quantity | None = None
    cloud_usd_per_h: Quantity | None = None
    power_w: Positive | None = None


class Gpu(_Strict):
    """The GPU; `memory_bytes_per_s` is the rate it reaches while streaming weights."""

    memory_bytes: Positive | None = None
    flops_bf16: Positive | None = None
    memory_bytes_per_s: Positive | None = None
    launch_s: Quantity | None = None
    fused_call_s: Quantity | None = None


class Cpu(_Strict):
    """The host; `expert_bytes_per_s` is the weight traffic its expert kernels reach."""

    cores: Count | None = None
    memory_bytes: Positive | None = None
    memory_bytes_per_s: Positive | None = None
    expert_bytes_per_s: Positive | None = None
    flops_bf16: Positive | None = None


class Link(_Strict):
    """Host to GPU and back; a duplex factor applies while both directions are busy."""

    h2d_bytes_per_s: Positive | None = None
    d2h_bytes_per_s: Positive | None = None
    h2d_pageable_bytes_per_s: Positive | None = None
    d2h_pageable_bytes_per_s: Positive | None = None
    latency_s: Quantity | None = None
    h2d_duplex_factor: Factor | None = None
    d2h_duplex_factor: Factor | None = None


class ContentionFactors(_Strict):
    """The share of its rate each side keeps while CPU experts and copies run together."""

    cpu_factor: Factor | None = None
    h2d_factor: Factor | None = None
    d2h_factor: Factor | None = None


class EngineCosts(_Strict):
    """What one engine pays per call.

    `cpu_rate_factor` is the share of the ``[cpu]`` rates that its CPU kernels reach; an engine
    without it runs the kernels those rates were measured with.
    """

    gpu_expert_call_s: Quantity | None = None
    cpu_expert_call_s: Quantity | None = None
    copy_call_s: Quantity | None = None
    sync_s: Quantity | None = None
    decide_s: Quantity | None = None
    cpu_rate_factor: Factor | None = None


class Curve(_Strict):
    """Measured seconds over a grid, row-major, with where they came from and how."""

    axes: ClassVar[tuple[str, ...]]
    seconds: _Times
    source: _Text
    kind: Kind

    @property
    def points(self) -> tuple[tuple[float, ...], ...]:
        """The grid, one tuple of increasing points per axis."""
        return tuple(getattr(self, axis) for axis in self.axes)

    @property
    def size(self) -> str:
        """The grid in words."""
        sizes = zip(map(len, self.points), self.axes, strict=True)
        return " x ".join(f"{size} {axis}" for size, axis in sizes)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, axis in zip(self.axes, self.points, strict=True):
            if any(after <= before for before, after in pairwise(axis)):
                raise ValueError(f"{name} must increase from point to point")
        needed = math.prod(len(axis) for axis in self.points)
        if len(self.seconds) != needed:
            raise ValueError(f"seconds must hold {needed} values, one per point of the grid")
        return self


class CopyCurve(Curve):
    """One copy, over its size in bytes."""

    axes = ("bytes",)
    bytes: _Axis


class ExpertCurve(Curve):
    """All active experts of a layer, over (tokens per expert, experts), for one expert shape."""

    axes = ("tokens_per_expert", "experts")
    hidden_size: _Size
    moe_intermediate_size: _Size
    dtype: _Text
    tokens_per_expert: _Axis
    experts: _Axis


class AttentionCurve(Curve):
    """One layer's attention, over (tokens, context), for one attention shape."""

    axes = ("tokens", "context")
    hidden_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size
    head_dim: _Size
    dtype: _Text
    tokens: _Axis
    context: _Axis


class CopyCurves(_Strict):
    """Copy curves by direction and, with ``_pageable``, for memory that is not pinned."""

    h2d: CopyCurve | None = None
    d2h: CopyCurve | None = None
    h2d_pageable: CopyCurve | None = None
    d2h_pageable: CopyCurve | None = None


class Curves(_Strict):
    """Measured tables; where one is absent, the rates of the other sections are used."""

    copies: CopyCurves = Field(default=CopyCurves(), alias="copy")
    gpu_experts: ExpertCurve | None = None
    cpu_experts: ExpertCurve | None = None
    attention: AttentionCurve | None = None


class Row(NamedTuple):
    """One line of ``tidesim hardware show``."""

    key: str
    value: float | str
    kind: str
    source: str


class HardwareProfile(_Strict):
    """One machine; `value` reads its numbers by key, such as ``link.h2d_bytes_per_s``."""

    format: Literal["tidesim-hardware"]
    version: int = Field(ge=VERSION, le=VERSION)
    machine: Machine
    gpu: Gpu = Gpu()
    cpu: Cpu = Cpu()
    link: Link = Link()
    contention: ContentionFactors = ContentionFactors()
    engine: dict[_EngineName, EngineCosts] = {}
    curves: Curves = Curves()

    _file: str = PrivateAttr(default="profile")
    _sha256: str = PrivateAttr(default="")
    _baseline: "HardwareProfile | None" = PrivateAttr(default=None)
    _quantities: dict[str, Quantity] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "profile") -> "HardwareProfile":
        """Check parsed TOML and build the profile; `source` names it in error messages.

        Raises
        ------
        FormatError
            An unknown or missing key, a value out of range, another format or version.
        """
        try:
            profile = cls.model_validate(data)
        except ValidationError as error:
            raise FormatError(f"{source}: {_sentence(error, cls)}") from None
        profile._file = source
        profile._quantities = {
            key: item for key, item in _walk(profile, "") if isinstance(item, Quantity)
        }
        content = json.dumps(profile.model_dump(by_alias=True), sort_keys=True)
        profile._sha256 = hashlib.sha256(content.encode()).hexdigest()
        return profile

    @property
    def name(self) -> str:
        """Name of the machine."""
        return self.machine.name

    @property
    def file(self) -> str:
        """Where the profile came from, for messages."""
        return self._file

    @property
    def sha256(self) -> str:
        """Digest of the file's bytes, or of the content if no file holds it as it is."""
        return self._sha256

    @property
    def baseline(self) -> "HardwareProfile":
        """The profile as its file has it, before any override."""
        return self._baseline or self

    def quantity(self, key: str) -> Quantity:
        """Return the number of a dotted key, with its source and kind.

        Raises
        ------
        FormatError
            The profile does not hold it.
        """
        found = self._quantities.get(key)
        if found is None:
            section, _, leaf = key.rpartition(".")
            raise FormatError(
                f"{self._file}: {key} is missing but needed; add {_example(leaf)} "
                f"under [{section}], in {_unit(leaf)}"
            )
        return found

    def value(self, key: str) -> float:
        """Return the number of a dotted key in the unit that the key names.

        Raises
        ------
        FormatError
            The profile does not hold it.
        """
        return self.quantity(key).value

    def kind_of(self, key: str) -> Kind:
        """Return how the number of a dotted key was found.

        Raises
        ------
        FormatError
            The profile does not hold it.
        """
        return self.quantity(key).kind

    def missing(self, keys: tuple[str, ...]) -> list[str]:
        """Return those of `keys` that the profile does not hold, in their order."""
        return [key for key in keys if key not in self._quantities]

    def known_keys(self) -> list[str]:
        """List every key a number of this profile may have, held or not, in file order."""
        sections = {name: type(getattr(self, name)) for name in _SECTIONS}
        sections |= {f"engine.{name}": EngineCosts for name in self.engine}
        return [
            f"{section}.{field}"
            for section, model in sections.items()
            for field, info in model.model_fields.items()
            if _model_of(info.annotation)
        ]

    def with_overrides(self, overrides: Mapping[str, float]) -> "HardwareProfile":
        """Return a what-if copy in which some numbers are others, marked as estimated.

        Parameters
        ----------
        overrides : mapping of str to float
            Value by dotted key, in the unit that the key names.

        Raises
        ------
        SettingError
            No such key, or a value out of its range.
        """
        data = self.model_dump(by_alias=True, exclude_none=True)
        known = self.known_keys()
        for key, value in overrides.items():
            if key not in known:
                hint = _hint(key, known)
                raise SettingError(f"{key} = {value!r} is no number of a profile; {hint}")
            *path, leaf = key.split(".")
            section = data
            for part in path:
                section = section[part]
            section[leaf] = {"value": value, "source": "override", "kind": "estimated"}
        try:
            changed = self.from_dict(data, source=self._file)
        except FormatError as error:
            raise SettingError(str(error).removeprefix(f"{self._file}: ")) from None
        changed._baseline = self.baseline
        return changed


_SECTIONS = ("machine", "gpu", "cpu", "link", "contention")


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """Read the profile that a bundled name or a path means.

    Raises
    ------
    NotFoundError
        Neither a file nor a bundled name.
    FormatError
        Not a profile of this format and version; the message names file, key, value and repair.
    """
    path = find("hwprofiles", name_or_path)
    try:
        content = path.read_bytes()
        data = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    except (ValueError, RecursionError) as error:  # syntax, encoding, an absurd integer, nesting
        raise FormatError(f"{path}: not valid TOML: {error}; repair that place") from None
    profile = HardwareProfile.from_dict(data, source=str(path))
    profile._sha256 = hashlib.sha256(content).hexdigest()
    return profile


def profile_names() -> list[str]:
    """List the bundled profiles, sorted."""
    return bundled_names("hwprofiles")


def describe(profile: HardwareProfile) -> list[Row]:
    """List every number and curve a profile holds, in file order."""
    return [
        Row(key, item.value if isinstance(item, Quantity) else item.size, item.kind, item.source)
        for key, item in _walk(profile, "")
    ]


def _walk(node: object, prefix: str) -> Iterator[tuple[str, Quantity | Curve]]:
    """Yield the numbers and curves below a section with their dotted keys."""
    items = node.items() if isinstance(node, dict) else node if isinstance(node, BaseModel) else ()
    for field, child in items:
        name = field if child is not getattr(node, "copies", None) else "copy"
        if isinstance(child, Quantity | Curve):
            yield f"{prefix}{name}", child
        else:
            yield from _walk(child, f"{prefix}{name}.")


# ── one sentence per error ───────────────────────────────────────────────────────────────────────

_UNITS = {
    "_bytes_per_s": "bytes per second",
    "_usd_per_h": "US dollars per hour",
    "_bytes": "bytes",
    "_usd": "US dollars",
    "_s": "seconds",
    "_w": "watts",
    "_factor": "a share above 0 and at most 1",
    "flops_bf16": "floating-point operations per second",
    "cores": "whole cores",
}
_SUFFIX = re.compile(
    r"_(?:[kmgt]?i?b(?:ytes)?|[kmgt]?bits?|[kmg]?w|watts|usd|eur|[num]?s|sec|h|factor|percent)"
    r"(?P<per>(?:_per_|_|p)(?:s|sec|second|h|hour))?$"
)
_RULES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a whole number",
    "finite_number": "must be finite",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "literal_error": "must be {expected}",
    "string_type": "must be text",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list of numbers",
    "too_short": "must not be empty",
}
_PATTERNS = {
    _NOT_BLANK: "must not be blank",
    _ENGINE_NAME: "must be lower-case letters and digits, parted by dashes",
}
_REPAIRS = {
    "format": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "version": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "source": "say where the number comes from",
    "kind": "say how the number was found",
}


def _unit(leaf: str) -> str:
    return next((unit for end, unit in _UNITS.items() if leaf.endswith(end)), "the documented form")


def _example(leaf: str) -> str:
    return f'{leaf} = {{ value = …, source = "…", kind = "{"|".join(get_args(Kind))}" }}'


def _short(value: object) -> str:
    try:
        text = repr(value["value"] if isinstance(value, dict) and "value" in value else value)
    except ValueError:  # an integer too long to print
        return "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section or number class inside an annotation such as ``Gpu`` or ``Rate | None``."""
    inside = (annotation, *get_args(annotation))
    return next((a for a in inside if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _fields_at(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """List the keys allowed in the table at a path of a model."""
    parts = iter(path)
    for part in parts:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        annotation = fields[part].annotation
        model = _model_of(annotation) or model
        if get_origin(annotation) is dict:
            next(parts, None)
    return [field.alias or name for name, field in model.model_fields.items()]


def _stem(key: str) -> tuple[str, bool]:
    """Split a key into its name without the unit, and whether the unit is per time."""
    match = _SUFFIX.search(key)
    return (key[: match.start()], bool(match["per"])) if match else (key, False)


def _hint(key: str, known: list[str]) -> str:
    """Say which known key was probably meant."""
    for candidate in known:
        if _stem(candidate) == _stem(key) or _stem(candidate)[0] == key:
            return f"write {candidate}, in {_unit(candidate)}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    section = key.rpartition(".")[0]
    near = [each for each in known if each.rpartition(".")[0] == section] or known
    return f"known are {', '.join(near[:9])}{', …' if len(near) > 9 else ''}"


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """Say the first error of a profile as key, value, rule and repair."""
    first = min(error.errors(include_url=False), key=_urgency)
    path = tuple(part for part in map(str, first["loc"]) if part != "[key]")
    key = ".".join(part if part.isprintable() else repr(part) for part in path)
    value = _short(first.get("input"))
    if first["type"] == "extra_forbidden":
        hint = _hint(path[-1], _fields_at(model, path[:-1]))
        return f"{key} = {value} is no key of {FORMAT} {VERSION}; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing but needed; add it"
    return f"{key} is {value} but {_rule(first)}; {_repair(first, path)}"


def _urgency(error: ErrorDetails) -> tuple[bool, bool]:
    """Order errors: another format or version explains the rest, a misspelt key a missing one."""
    return error["loc"][:1] not in {("format",), ("version",)}, error["type"] != "extra_forbidden"


def _rule(error: ErrorDetails) -> str:
    if error["loc"] == ("version",):
        return f"must be {VERSION}"
    if error["type"] == "string_pattern_mismatch":
        return _PATTERNS[error["ctx"]["pattern"]]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return _RULES.get(error["type"], error["msg"]).format(**error.get("ctx", {}))


def _repair(error: ErrorDetails, path: tuple[str, ...]) -> str:
    leaf = path[-1]
    if leaf == "value":
        return f"give {_unit(path[-2])}"
    if error["type"] == "model_type" and len(path) > 1:
        return f"write {_example(leaf)}, in {_unit(leaf)}"
    return _REPAIRS.get(leaf, "repair it as hwprofiles/README.md says")

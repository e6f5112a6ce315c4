"""Grid: the axes of a sweep, as a TOML file states them, and the points they span."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from sys import float_info
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tidesim.engines import ENGINES, Promotion
from tidesim.errors import FormatError
from tidesim.optimize.job import BACKENDS, FORMULATIONS
from tidesim.policies import POLICIES
from tidesim.strict import Strict, sentence

FORMAT = "tidesim-grid"
VERSION = 1
MOST_POINTS = 100_000

T = TypeVar("T")
Overrides = tuple[tuple[str, float | str], ...]  # what replaces numbers of a profile, by key
_Names = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(strict=False)]
_Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)]
_Sizes = Annotated[tuple[Annotated[float, Field(gt=0, lt=1e9)], ...], Field(strict=False)]


def _flat(table: Any, prefix: str = "") -> Any:
    """Write the nested tables that TOML makes of ``link.latency_s = …`` as dotted keys."""
    if not isinstance(table, dict):
        return table
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _number_or_text(value: Any) -> float | str:
    """Check one value of an override; what a text says depends on the machine."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= float_info.max:
            return float(value)
        raise ValueError("must be finite")
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError('must be a number, or a text such as "50GB/s" or "x1.5"')


_Value = Annotated[float | str, PlainValidator(_number_or_text)]
_Values = Annotated[tuple[_Value, ...], Field(strict=False, min_length=1)]
_Overrides = Annotated[dict[str, _Values], BeforeValidator(_flat)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of a sweep: a value of every axis, None where the axis does not apply.

    Attributes
    ----------
    point : int
        Its number, from 0, in the order of `Grid.points`.
    trace, sizes, hardware, engine : str or None
    overrides : tuple of (str, float or str)
        What replaces numbers of the profile, by key: a number in the unit that the key names, or a
        text with a unit or factor, as `overridden` reads it.
    budget, memory_gb : int or float or None
        One of them.
    promotion, policy, formulation : str or None
        Either a policy or a formulation.
    interval : int or None
    """

    point: int
    trace: str
    sizes: str | None
    hardware: str
    overrides: Overrides
    engine: str
    budget: int | None
    memory_gb: float | None
    promotion: str | None
    policy: str | None
    interval: int | None
    formulation: str | None


class Solver(Strict):
    """How formulations are solved; as `optimize`."""

    backend: str = "cbc"
    time_limit_s: float = Field(default=60.0, gt=0)
    gap: float = Field(default=1e-3, ge=0)

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        return _one_of(value, BACKENDS)


class Grid(Strict):
    """Axes of a sweep (``tidesim-grid`` 1); `points` spans them.

    Attributes
    ----------
    traces, hardware : tuple of str
        Names or files, as on the command line.
    sizes : tuple of str
        Models whose sizes the routing drives; without any, the traces' own.
    overrides : tuple of dict
        What-ifs: each table spans its lists of values by key, an empty one is the machine as it is.
        A value is a number or a text such as ``x1.5`` or ``50GB/s``.
    engines : tuple of str
    budgets, memory_gb : tuple
        Slots per mixture layer, and GPU memory instead.
    promotions : tuple of Promotion
        Without any, what each policy does by itself.
    policies, formulations : tuple of str
        What simulates, and what solves for a schedule first.
    intervals : tuple of int
        Of policies that have one.
    solver : Solver
    """

    format: Literal["tidesim-grid"]
    version: int = Field(ge=VERSION, le=VERSION)
    traces: Annotated[_Names, Field(min_length=1)]
    hardware: Annotated[_Names, Field(min_length=1)]
    sizes: _Names = ()
    overrides: Annotated[tuple[_Overrides, ...], Field(strict=False, min_length=1)] = ({},)
    engines: Annotated[_Names, Field(min_length=1)] = ("tidesim",)
    budgets: _Counts = ()
    memory_gb: _Sizes = ()
    promotions: _Names = ()
    policies: _Names = ()
    intervals: _Counts = ()
    formulations: _Names = ()
    solver: Solver = Solver()

    @classmethod
    def of(cls, axes: Mapping[str, Any], *, source: str = "grid") -> Self:
        """Check the axes of a sweep, without ``format`` and ``version``.

        Raises
        ------
        FormatError
            An unknown or missing key, or a value out of its range.
        """
        return cls.from_dict({"format": FORMAT, "version": VERSION, **axes}, source=source)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str) -> Self:
        """Check parsed TOML; `source` names it in error messages.

        Raises
        ------
        FormatError
            An unknown or missing key, a value out of its range, another format or version.
        """
        try:
            return cls.model_validate(data)
        except RecursionError:
            raise FormatError(f"{source}: a key has too many parts; repair it") from None
        except ValidationError as error:
            form = f"{FORMAT} {VERSION}"
            said = sentence(error, Grid, form=form, repair=_repair, words=_WORDS)
            raise FormatError(f"{source}: {said}") from None

    @field_validator("engines", "promotions", "policies", "formulations")
    @classmethod
    def _known(cls, values: tuple[str, ...], info: Any) -> tuple[str, ...]:
        for value in values:
            _one_of(value, _KNOWN[info.field_name])
        return values

    @field_validator(
        "traces", "hardware", "sizes", "engines", "budgets", "memory_gb", "promotions", "policies",
        "intervals", "formulations",
    )  # fmt: skip
    @classmethod
    def _distinct(cls, values: tuple[T, ...]) -> tuple[T, ...]:
        twice = [value for number, value in enumerate(values) if value in values[:number]]
        if twice:
            raise ValueError(f"must not name {twice[0]} twice")
        return values

    @model_validator(mode="after")
    def _spans_points(self) -> Self:
        if not self.policies and not self.formulations:
            raise ValueError("there is neither a policy nor a formulation, so nothing to run")
        if not self.budgets and not self.memory_gb:
            raise ValueError("there are neither budgets nor memory_gb, so there are no slots")
        if len(self) > MOST_POINTS:
            raise ValueError(f"the grid has {len(self):,} points, more than {MOST_POINTS:,}")
        return self

    def __len__(self) -> int:
        """Return how many points there are."""
        machines = sum(prod(map(len, table.values())) for table in self.overrides)
        ways, rooms = len(list(self._ways())), len(self._rooms())
        named = (self.traces, self.hardware, self.engines)
        optional = (self.sizes, self.promotions)
        return (
            prod(map(len, named))
            * prod(len(each) or 1 for each in optional)
            * machines
            * rooms
            * ways
        )

    def points(self) -> Iterator[Point]:
        """Yield every point; of the axes in this order, the first changes slowest.

        Traces, sizes, hardware, overrides, engines, budgets and then memory, promotions, and at
        last policies, each with its intervals, before formulations.
        """
        axes = product(
            self.traces,
            self.sizes or (None,),
            self.hardware,
            self.machines(),
            self.engines,
            self._rooms(),
            self.promotions or (None,),
            list(self._ways()),
        )
        for number, (trace, sizes, machine, changes, engine, room, promotion, way) in enumerate(
            axes
        ):
            yield Point(
                point=number,
                trace=trace,
                sizes=sizes,
                hardware=machine,
                overrides=changes,
                engine=engine,
                budget=room[0],
                memory_gb=room[1],
                promotion=promotion,
                policy=way[0],
                interval=way[1],
                formulation=way[2],
            )

    def machines(self) -> Iterator[Overrides]:
        """Yield what is replaced of each machine."""
        for table in self.overrides:
            for values in product(*table.values()):
                yield tuple(zip(table, values, strict=True))

    def _rooms(self) -> list[tuple[int | None, float | None]]:
        return [(n, None) for n in self.budgets] + [(None, gb) for gb in self.memory_gb]

    def _ways(self) -> Iterator[tuple[str | None, int | None, str | None]]:
        """Yield policy, interval and formulation."""
        for policy in self.policies:
            takes_one = getattr(POLICIES[policy], "takes_interval", False)
            for interval in (self.intervals or (None,)) if takes_one else (None,):
                yield policy, interval, None
        for formulation in self.formulations:
            yield None, None, formulation


def load_grid(path: str | Path) -> Grid:
    r"""Read a grid from a TOML file.

    Raises
    ------
    FormatError
        No such file, or not a grid of this format and version; names key, value and repair.

    Examples
    --------
    >>> from pathlib import Path
    >>> axes = 'format = "tidesim-grid"\nversion = 1\ntraces = ["t.parquet"]\n'
    >>> axes += 'hardware = ["box.toml"]\nbudgets = [8, 16]\npolicies = ["lru", "lfu"]\n'
    >>> _ = Path("grid.toml").write_text(axes)
    >>> len(list(load_grid("grid.toml").points()))
    4
    """
    try:
        data = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror}); give a grid's TOML file"
        ) from None
    except (ValueError, RecursionError) as error:  # syntax, encoding, an absurd integer, nesting
        raise FormatError(f"{path}: not valid TOML: {error}; repair that place") from None
    return Grid.from_dict(data, source=str(path))


_KNOWN: dict[str, tuple[str, ...]] = {
    "engines": tuple(ENGINES),
    "promotions": tuple(map(str, Promotion)),
    "policies": tuple(POLICIES),
    "formulations": FORMULATIONS,
}
_WORDS = {r"\S": "must not be blank"}
_REPAIRS = {
    "format": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "version": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "overrides": 'write [[overrides]] tables such as "link.h2d_bytes_per_s" = [2.5e10, "x1.5"]',
}


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not known")
    return value


def _repair(_: ErrorDetails, path: tuple[str, ...]) -> str:
    if not path:
        return "change its axes"
    if path[0] in _KNOWN:
        return f"use some of: {', '.join(_KNOWN[path[0]])}"
    return _REPAIRS.get(path[0], f"repair {path[-1] if not path[-1].isdigit() else path[0]}")

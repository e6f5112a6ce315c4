"""HardwareProfile: what one machine can do, each number with its source and its kind.

A profile is a TOML file (``tidesim-hardware`` 1, described in ``hwprofiles/README.md``). A file may
leave a number out, but no number has a default: whoever needs an absent one gets an error.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from tidesim.errors import FormatError, SettingError
from tidesim.hardware_schema import (
    ENGINE_NAME,
    NOT_BLANK,
    ContentionFactors,
    Cpu,
    Curve,
    Curves,
    EngineCosts,
    EngineName,
    Gpu,
    Kind,
    Link,
    Machine,
    Quantity,
)
from tidesim.resources import bundled_names, find
from tidesim.strict import Strict, hint, model_of, sentence, unit

__all__ = [
    "Curve",
    "HardwareProfile",
    "Kind",
    "Quantity",
    "Row",
    "count_kinds",
    "describe",
    "load_profile",
    "profile_names",
    "what_if_label",
]

FORMAT = "tidesim-hardware"
VERSION = 1
OVERRIDE = "override"  # the source of a number that a what-if replaced


class Row(NamedTuple):
    """One line of ``tidesim hardware show``."""

    key: str
    value: float | str
    kind: str
    source: str


class HardwareProfile(Strict):
    """One machine; `value` reads its numbers by key, such as ``link.h2d_bytes_per_s``."""

    format: Literal["tidesim-hardware"]
    version: int = Field(ge=VERSION, le=VERSION)
    machine: Machine
    gpu: Gpu = Gpu()
    cpu: Cpu = Cpu()
    link: Link = Link()
    contention: ContentionFactors = ContentionFactors()
    engine: dict[EngineName, EngineCosts] = Field(default_factory=dict)
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
            raise FormatError(f"{source}: {_sentence(error)}") from None
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
                f"under [{section}], in {unit(leaf)}"
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
            if model_of(info.annotation)
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
        changed = self._replaced(overrides, source=OVERRIDE, kind="estimated")
        changed._baseline = self.baseline
        return changed

    def calibrated(self, values: Mapping[str, float], *, source: str) -> "HardwareProfile":
        """Return a copy in which some numbers were fitted to measured runs.

        Unlike an override, such a number scales no measured curve: curves count as they are.

        Parameters
        ----------
        values : mapping of str to float
            Value by dotted key, in the unit that the key names.
        source : str
            Which runs they were fitted to.

        Raises
        ------
        SettingError
            No such key, or a value out of its range.
        """
        changed = self._replaced(values, source=source, kind="measured")
        changed._baseline = self._baseline
        return changed

    def _replaced(
        self, values: Mapping[str, float], *, source: str, kind: Kind
    ) -> "HardwareProfile":
        data = self.model_dump(by_alias=True, exclude_none=True)
        known = self.known_keys()
        for key, value in values.items():
            if key not in known:
                meant = hint(key, known)
                raise SettingError(f"{key} = {value!r} is no number of a profile; {meant}")
            *path, leaf = key.split(".")
            section = data
            for part in path:
                section = section[part]
            section[leaf] = {"value": value, "source": source, "kind": kind}
        try:
            return self.from_dict(data, source=self._file)
        except FormatError as error:
            raise SettingError(str(error).removeprefix(f"{self._file}: ")) from None


def count_kinds(profile: HardwareProfile) -> dict[str, int]:
    """Count a profile's numbers that are measured, from a datasheet, or estimated.

    Examples
    --------
    >>> count_kinds(load_profile("a100-40gb-pcie4-xeon48"))
    {'measured': 3, 'datasheet': 5, 'estimated': 26}
    """
    kinds = [row.kind for row in describe(profile)]
    return {kind: kinds.count(kind) for kind in ("measured", "datasheet", "estimated")}


def what_if_label(profile: HardwareProfile) -> str:
    """Name a machine and every number of it that an override replaced.

    Examples
    --------
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> what_if_label(machine.with_overrides({"link.h2d_bytes_per_s": 5e10}))
    'a100-40gb-pcie4-xeon48 with link.h2d_bytes_per_s = 5e+10'
    """
    replaced = [f"{row.key} = {row.value:g}" for row in describe(profile) if row.source == OVERRIDE]
    return f"{profile.name} with {', '.join(replaced)}" if replaced else profile.name


_SECTIONS = ("machine", "gpu", "cpu", "link", "contention")


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """Read the profile that a bundled name or a path means.

    Raises
    ------
    NotFoundError
        Neither a file nor a bundled name.
    FormatError
        Not a profile of this format and version; the message names file, key, value and repair.

    Examples
    --------
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> machine.value("link.h2d_bytes_per_s"), str(machine.kind_of("link.h2d_bytes_per_s"))
    (25130000000.0, 'measured')
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
    """List the bundled profiles, sorted.

    Examples
    --------
    >>> "a100-40gb-pcie4-xeon48" in profile_names()
    True
    """
    return bundled_names("hwprofiles")


def describe(profile: HardwareProfile) -> list[Row]:
    """List every number and curve a profile holds, in file order.

    Examples
    --------
    >>> row = describe(load_profile("a100-40gb-pcie4-xeon48"))[3]
    >>> row.key, row.value, str(row.kind)
    ('gpu.memory_bytes', 40000000000.0, 'datasheet')
    """
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

_WORDS = {
    NOT_BLANK: "must not be blank",
    ENGINE_NAME: "must be lower-case letters and digits, parted by dashes",
    "tuple_type": "must be a list of numbers",
}
_REPAIRS = {
    "format": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "version": f'this tidesim reads format = "{FORMAT}", version = {VERSION}',
    "source": "say where the number comes from",
    "kind": "say how the number was found",
}


def _example(leaf: str) -> str:
    return f'{leaf} = {{ value = …, source = "…", kind = "{"|".join(get_args(Kind))}" }}'


def _sentence(error: ValidationError) -> str:
    """Say the first error of a profile as key, value, rule and repair."""
    form = f"{FORMAT} {VERSION}"
    return sentence(error, HardwareProfile, form=form, repair=_repair, words=_WORDS)


def _repair(error: ErrorDetails, path: tuple[str, ...]) -> str:
    leaf = path[-1]
    if leaf == "value":
        return f"give {unit(path[-2])}"
    if error["type"] == "model_type" and len(path) > 1:
        return f"write {_example(leaf)}, in {unit(leaf)}"
    return _REPAIRS.get(leaf, "repair it as hwprofiles/README.md says")

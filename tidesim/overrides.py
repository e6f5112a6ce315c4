"""Overrides: the numbers of a what-if as text, ``KEY=VALUE``.

A value is a number in the unit that the key names (``5e10``), a number with a unit of the same kind
(``50GB/s``, ``5us``, ``80%``), or a factor of what the machine has (``x1.5``).
"""

import re
from collections.abc import Iterable

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile
from tidesim.strict import unit

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:inf|nan)\b")
_FACTOR = ("x", "X", "×", "*")
_EXAMPLE = "write for example link.h2d_bytes_per_s=5e10, =50GB/s or =x1.5"

_BYTES = {
    "B": 1.0,
    **{f"{prefix}B": 1e3 ** (n + 1) for n, prefix in enumerate("kMGT")},
    **{f"{prefix}iB": 1024.0 ** (n + 1) for n, prefix in enumerate("KMGT")},
}
# What may stand behind a number, by what `strict.unit` says of its key, in that unit.
_UNITS: dict[str, dict[str, float]] = {
    "bytes per second": {f"{name}/s": size for name, size in _BYTES.items()},
    "bytes": _BYTES,
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9},
    "watts": {"W": 1.0, "kW": 1e3},
    "US dollars": {"USD": 1.0},
    "US dollars per hour": {"USD/h": 1.0},
    "floating-point operations per second": {
        f"{prefix}FLOP/s": 1e3**n for n, prefix in enumerate(("", "k", "M", "G", "T", "P"))
    },
    "a share above 0 and at most 1": {"%": 0.01},
}


def overridden(
    profile: HardwareProfile, texts: Iterable[str], *, skip_absent: bool = False
) -> HardwareProfile:
    """Return a what-if copy of a machine, one ``KEY=VALUE`` applied after the other.

    Parameters
    ----------
    profile : HardwareProfile
    texts : str or iterable of str
        A factor multiplies what the texts before it left.
    skip_absent : bool
        Leave out factors of numbers that the profile does not hold.

    Raises
    ------
    SettingError
        A text of another form, no such key, a unit of another kind, a factor of a number that the
        profile does not hold, or a value out of its range.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> faster = overridden(machine, ["link.h2d_bytes_per_s=50GB/s", "gpu.launch_s=x0.5"])
    >>> faster.value("link.h2d_bytes_per_s"), str(faster.kind_of("link.h2d_bytes_per_s"))
    (50000000000.0, 'estimated')
    """
    for text in [texts] if isinstance(texts, str) else texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise SettingError(f"{text}: not KEY=VALUE; {_EXAMPLE}")
        absent = key in profile.known_keys() and profile.missing((key,))
        if skip_absent and absent and value.startswith(_FACTOR):
            continue
        profile = profile.with_overrides({key: _value(profile, text, key, value)})
    return profile


def _value(profile: HardwareProfile, text: str, key: str, value: str) -> float:
    """Read the value of a key, in the unit that the key names."""
    is_factor = value.startswith(_FACTOR)
    match = _NUMBER.match(value, 1 if is_factor else 0)
    if match is None:
        raise SettingError(f"{text}: {value} is no number; {_EXAMPLE}")
    number, suffix = float(match.group()), value[match.end() :].strip()
    if key not in profile.known_keys():
        return number  # with_overrides says which key was meant
    if is_factor:
        return number * _given(profile, text, key, suffix)
    return number * _size(text, key, suffix) if suffix else number


def _given(profile: HardwareProfile, text: str, key: str, suffix: str) -> float:
    """Return the number that a factor multiplies."""
    if suffix:
        raise SettingError(f"{text}: a factor has no unit; leave {suffix} out")
    if profile.missing((key,)):
        raise SettingError(
            f"{text}: {profile.name} holds no {key} to multiply; give it in {unit(key)}"
        )
    return profile.value(key)


def _size(text: str, key: str, suffix: str) -> float:
    """Return what one of a unit is in the unit of a key."""
    known = _UNITS.get(unit(key), {})
    if suffix not in known:
        also = f", or with one of {', '.join(known)} behind it" if known else ", without a unit"
        raise SettingError(
            f"{text}: {suffix} does not fit {key}; give {unit(key)} as a plain number{also}"
        )
    return known[suffix]

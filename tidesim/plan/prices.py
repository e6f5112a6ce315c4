"""Prices: from what a machine costs and draws to dollars and watt-hours per million tokens."""

from dataclasses import dataclass, fields

from tidesim.errors import SettingError
from tidesim.hardware import HardwareProfile

HOURS_PER_YEAR = 8766.0
_MILLION = 1e6
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What turns a machine's price into a price per token; assumptions, not measurements.

    Attributes
    ----------
    years : float
        Over which a purchase is written off.
    use : float
        Share of that time in which it decodes.
    usd_per_kwh : float
        Of electricity, for a machine that is owned.

    Raises
    ------
    SettingError
        A number is out of its range.
    """

    years: float = 3.0
    use: float = 1.0
    usd_per_kwh: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.years < 1e3:
            raise SettingError(f"years is {self.years} but must be above 0")
        if not 0 < self.use <= 1:
            raise SettingError(f"use is {self.use} but must be a share above 0 and at most 1")
        if not 0 <= self.usd_per_kwh < 1e6:
            raise SettingError(f"USD per kWh is {self.usd_per_kwh} but must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What a machine costs at some speed; None where its profile does not say.

    Attributes
    ----------
    price_usd : float or None
        To buy.
    owned_usd_per_h, cloud_usd_per_h : float or None
        An hour of decoding: the purchase written off and its electricity, or rented.
    owned_usd_per_mtoken, cloud_usd_per_mtoken : float or None
        A million tokens, either way.
    wh_per_mtoken : float or None
        Watt-hours of a million tokens, at the power limit throughout.
    """

    price_usd: float | None
    owned_usd_per_h: float | None
    cloud_usd_per_h: float | None
    owned_usd_per_mtoken: float | None
    cloud_usd_per_mtoken: float | None
    wh_per_mtoken: float | None

    @property
    def way(self) -> str | None:
        """The cheaper way: ``bought`` or ``rented``; None where neither price is known."""
        ways = {"bought": self.owned_usd_per_h, "rented": self.cloud_usd_per_h}
        known = {way: usd for way, usd in ways.items() if usd is not None}
        return min(known, key=lambda way: known[way], default=None)

    @property
    def usd_per_h(self) -> float | None:
        """An hour of decoding, the cheaper way."""
        return self.cloud_usd_per_h if self.way == "rented" else self.owned_usd_per_h

    @property
    def usd_per_mtoken(self) -> float | None:
        """A million tokens, the cheaper way."""
        return self.cloud_usd_per_mtoken if self.way == "rented" else self.owned_usd_per_mtoken

    def to_json(self) -> dict[str, float | None]:
        """Return JSON-ready values, keys stable."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"usd_per_h": self.usd_per_h, "usd_per_mtoken": self.usd_per_mtoken}


def costs_of(profile: HardwareProfile, tokens_per_s: float, assumed: Assumptions) -> Costs:
    """Return what a machine costs per hour and per million tokens at a speed.

    owned USD/h = price / (years × 8766 h × use) + kW × USD/kWh;
    USD per million tokens = USD/h / (3600 × tokens/s) × 10⁶, and watt-hours alike from the power.
    """
    machine = profile.machine
    price = None if machine.price_usd is None else machine.price_usd.value
    cloud = None if machine.cloud_usd_per_h is None else machine.cloud_usd_per_h.value
    watts = None if machine.power_w is None else machine.power_w.value
    owned = None
    if price is not None and watts is not None:
        hours = assumed.years * HOURS_PER_YEAR * assumed.use
        owned = price / hours + watts / 1e3 * assumed.usd_per_kwh
    hours_per_mtoken = _MILLION / (_SECONDS_PER_HOUR * tokens_per_s)

    def per_mtoken(per_hour: float | None) -> float | None:
        return None if per_hour is None else per_hour * hours_per_mtoken

    return Costs(
        price_usd=price,
        owned_usd_per_h=owned,
        cloud_usd_per_h=cloud,
        owned_usd_per_mtoken=per_mtoken(owned),
        cloud_usd_per_mtoken=per_mtoken(cloud),
        wh_per_mtoken=per_mtoken(watts),
    )

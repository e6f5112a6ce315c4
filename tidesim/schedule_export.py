"""Schedules for other runtimes: what of one the TIDE authors' code can obey."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidesim.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class TideKnobs:
    """The two settings of the TIDE authors' code (ims-kdks/TIDE 5611ace), and what they lose.

    Attributes
    ----------
    jump_steps : int
        It refreshes every layer at steps 0, jump_steps, 2 jump_steps … of each block.
    max_gpu_experts_per_layer : int
        Slots of every layer.
    lost : tuple of str
        One sentence for everything of the schedule that they cannot say.
    """

    jump_steps: int
    max_gpu_experts_per_layer: int
    lost: tuple[str, ...]


def to_tide(schedule: Schedule) -> TideKnobs:
    """Return the settings of the TIDE authors' code that come closest to a schedule.

    The interval refreshes about as often as the layers do on average; the slots are as many for
    every layer as fit the schedule's total.
    """
    refreshes = sum(len(layer.refresh_steps) for layer in schedule.layers) / len(schedule.layers)
    usual = max(1, round(schedule.steps / max(1.0, refreshes)))
    interval = schedule.interval or usual
    slots = sum(schedule.budgets) // len(schedule.layers)
    return TideKnobs(
        jump_steps=interval,
        max_gpu_experts_per_layer=slots,
        lost=tuple(_lost(schedule, interval, slots)),
    )


def _lost(schedule: Schedule, interval: int, slots: int) -> Iterator[str]:
    layers = schedule.layers
    yield from _lost_steps(schedule, interval)
    if set(schedule.budgets) != {slots}:
        yield f"layers have {_range(schedule.budgets)} slots, which become {slots} in each"
    if limits := [layer.most_promotions for layer in layers if layer.most_promotions]:
        yield (
            f"{len(limits)} of {len(layers)} layers promote at most {_range(limits)} experts at a "
            "refresh; that code promotes all that are missing"
        )
    if named := sum(layer.initial not in {None, tuple(range(layer.budget))} for layer in layers):
        yield (
            f"{named} of {len(layers)} layers have first residents of their own; that code starts "
            f"with ids 0 to {slots - 1}"
        )
    if schedule.promotion != "blocking":
        yield "promotion in the background becomes blocking"
    if schedule.engine != "tide-reference":
        yield (
            f"times were predicted for engine {schedule.engine}; that code computes the whole "
            "window every step, copies pageable memory both ways, starts with the lowest ids and "
            "also refreshes at every step of the first generated block"
        )


def _lost_steps(schedule: Schedule, interval: int) -> Iterator[str]:
    layers = schedule.layers
    uniform = tuple(range(0, schedule.steps, interval))
    if never := sum(not layer.refresh_steps for layer in layers):
        yield f"{never} of {len(layers)} layers never refresh; there all do, every {interval} steps"
    late = [layer.refresh_steps[0] for layer in layers if any(layer.refresh_steps[:1])]
    if late:
        yield (
            f"{len(late)} of {len(layers)} layers refresh first at step {_range(late)} of a block, "
            "which becomes step 0"
        )
    others = sum(
        layer.refresh_steps[:1] == (0,) and layer.refresh_steps != uniform for layer in layers
    )
    if others:
        yield (
            f"{others} of {len(layers)} layers refresh at other steps than every {interval}, "
            "which one interval for all cannot say"
        )


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"

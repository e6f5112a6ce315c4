"""A schedule's layers in a few words, for tables and pages."""

from collections import Counter
from collections.abc import Iterable

from tidesim.engines import ENGINES
from tidesim.schedule import LayerSchedule, Schedule

NEVER = "never"
_NO_LIMIT = 2**62  # stands last


def first_step_of(layer: LayerSchedule) -> str:
    """Name the first denoise step of a block that refreshes a layer."""
    return str(layer.refresh_steps[0]) if layer.refresh_steps else NEVER


def limit_of(layer: LayerSchedule) -> str:
    """Say how many of the missing experts a refresh of a layer promotes; a dash without refreshes."""
    if not layer.refresh_steps:
        return "–"
    return "all" if layer.most_promotions is None else f"≤ {layer.most_promotions}"


def residents_of(layer: LayerSchedule, engine: str) -> str:
    """Say who is in a layer's slots before the first pass.

    The most popular experts, those of the lowest ids, or so many that the schedule names.
    """
    if layer.initial is not None:
        return f"{len(layer.initial)} named"
    known = ENGINES.get(engine)
    return "default" if known is None else "popular" if known.popular_first else "lowest"


def first_steps(schedule: Schedule) -> str:
    """Count layers by the first step that refreshes them."""
    layers = sorted(schedule.layers, key=lambda one: one.refresh_steps[:1] or (schedule.steps,))
    return _counted(map(first_step_of, layers))


def limits(schedule: Schedule) -> str:
    """Count the layers that refresh by how many of the missing experts a refresh promotes."""
    some = [layer for layer in schedule.layers if layer.refresh_steps]
    ordered = sorted(some, key=lambda one: one.most_promotions or _NO_LIMIT)
    return _counted(map(limit_of, ordered))


def first_residents(schedule: Schedule) -> str:
    """Count layers by who is in their slots before the first pass."""
    ordered = sorted(schedule.layers, key=lambda one: one.initial is not None)
    return _counted(
        residents_of(layer, schedule.engine) if layer.initial is None else "named"
        for layer in ordered
    )


def _counted(words: Iterable[str]) -> str:
    """Count words in their order, as ``0 in 3 layers, never in 1``."""
    counts = Counter(words)
    last = next(reversed(counts), "none")
    parts = [f"{word} in {count}" for word, count in counts.items() if word != last]
    return ", ".join([*parts, f"{last} in {counts[last]} layer{'s' * (counts[last] != 1)}"])

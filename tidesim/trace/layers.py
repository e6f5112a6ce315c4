"""A part of a trace by mixture layers, so that a part of a model runs where memory ends."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tidesim.errors import SettingError
from tidesim.trace.passes import Pass, Trace


def first_layers(trace: Trace, count: int) -> Trace:
    """Return a trace of the first mixture layers alone; the passes stay where they are.

    Its model has as many layers less, and it has no digest: no file holds it.

    Parameters
    ----------
    trace : Trace
    count : int
        Mixture layers to keep.

    Raises
    ------
    SettingError
        The model has fewer mixture layers, or none are left.
    """
    spec = trace.meta.model
    if not 1 <= count <= spec.moe_layers:
        raise SettingError(
            f"layers are {count} but must be 1 to {spec.moe_layers}, the mixture layers of "
            f"{spec.name}"
        )
    model = spec.model_copy(update={"num_hidden_layers": spec.first_k_dense_replace + count})
    return Trace(trace.meta.model_copy(update={"model": model}), _Cut(trace, count))


@dataclass(frozen=True, slots=True)
class _Cut:
    passes: Iterable[Pass]
    layers: int

    def __iter__(self) -> Iterator[Pass]:
        for item in self.passes:
            experts, histogram = item.experts, item.histogram
            yield replace(
                item,
                experts=None if experts is None else experts[: self.layers],
                histogram=None if histogram is None else histogram[: self.layers],
            )

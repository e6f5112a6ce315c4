"""The passes to come, read in step with a replay by limits that know them."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tidesim.errors import SettingError
from tidesim.placement import LayerView, Setup
from tidesim.trace.passes import Kind, WindowedPass

Place = tuple[int, int, int, Kind]  # request, block, step, kind
T = TypeVar("T")


def passes_to_come(policy: str, setup: Setup) -> Iterator[WindowedPass]:
    """Return the passes that will be replayed; the first is read when asked for.

    Raises
    ------
    SettingError
        The setup has no future.
    """
    if setup.future is None:
        raise SettingError(
            f"policy {policy} knows the passes to come, but the setup has no future; "
            "give the passes that will be replayed"
        )
    return _opened(setup.future)


def place_of(pass_: WindowedPass) -> Place:
    """Return where in the trace a pass stands."""
    return pass_.request, pass_.block, pass_.step, pass_.kind


def known_now(coming: Iterator[tuple[Place, T]], view: LayerView) -> T:
    """Take what is known of the pass that a view shows; call it once per pass.

    Raises
    ------
    SettingError
        The future and the replay give different passes.
    """
    place = (view.request, view.block, view.step, view.kind)
    for expected, known in coming:
        if expected == place:
            return known
        break
    raise SettingError(
        f"the setup's future does not give request {view.request}, block {view.block}, step "
        f"{view.step} in its turn; give exactly the passes that are replayed"
    )


def _opened(future: Callable[[], Iterable[WindowedPass]]) -> Iterator[WindowedPass]:
    yield from future()

"""Engines: how a runtime executes a pass, whatever the policy decides."""

from dataclasses import dataclass
from enum import StrEnum

from tidesim.errors import SettingError
from tidesim.trace.passes import Window


class Promotion(StrEnum):
    """When a promoted expert serves.

    ``blocking``: in the very pass that promotes it; the GPU waits for its copy. ``background``: from
    the next pass on; its copy starts when the layer's GPU experts have run, goes on while other
    layers compute and gives way to copies that a pass waits for. Should it still be under way when
    the next pass needs the expert, the GPU waits for it then: what is resident depends on the trace
    alone, never on the clock.
    """

    BLOCKING = "blocking"
    BACKGROUND = "background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a runtime executes a pass; the costs of its calls stand in the hardware profile.

    Attributes
    ----------
    name : str
        Also the name of the profile's ``[engine.<name>]`` section.
    window : Window
        Tokens a pass computes.
    pinned : bool
        Host buffers of copies are pinned; pageable otherwise.
    write_back : bool
        An eviction copies the expert back to the host.
    looped : bool
        Experts run one by one in id order; otherwise the GPU's, and the CPU's, run in one call.
    overlap : bool
        CPU, GPU and copies work at the same time; otherwise every operation waits for the last.
    copies_per_expert : int
        Copies that move one expert: its three tensors, or one blob.
    refresh_first_block : bool
        Interval policies also refresh at every step of the first generated block.
    popular_first : bool
        Policies without an opinion start with the most popular experts where popularity is known;
        otherwise with ids 0 .. budget - 1.
    free_percent : int
        Of the GPU memory that the other weights leave, what is kept free at least, activations
        included, when a memory size is given instead of a budget.
    """

    name: str
    window: Window
    pinned: bool
    write_back: bool
    looped: bool
    overlap: bool
    copies_per_expert: int
    refresh_first_block: bool
    popular_first: bool
    free_percent: int = 0


# The TIDE authors' released code (facts: ims-kdks/TIDE 5611ace).
TIDE_REFERENCE = Engine(
    name="tide-reference",
    window=Window.FULL,
    pinned=False,
    write_back=True,
    looped=True,
    overlap=False,
    copies_per_expert=3,
    refresh_first_block=True,
    popular_first=False,
    free_percent=10,
)
TIDESIM = Engine(
    name="tidesim",
    window=Window.BLOCK,
    pinned=True,
    write_back=False,
    looped=False,
    overlap=True,
    copies_per_expert=1,
    refresh_first_block=False,
    popular_first=True,
)

ENGINES = {engine.name: engine for engine in (TIDESIM, TIDE_REFERENCE)}


def get_engine(name: str) -> Engine:
    """Return an engine by name.

    Raises
    ------
    SettingError
        No engine of that name.

    Examples
    --------
    >>> str(get_engine("tide-reference").window)
    'full'
    """
    if name not in ENGINES:
        raise SettingError(f"engine {name!r} is not known; use one of: {', '.join(ENGINES)}")
    return ENGINES[name]

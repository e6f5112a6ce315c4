"""Training requests as blocks, and the passes that follow each until its residents are exchanged.

Letters: T steps of the longest block, F first steps, R requests.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tidesim.errors import FormatError, SettingError
from tidesim.placement import BoolArray, FloatArray, IntArray
from tidesim.simulate.case import Case
from tidesim.simulate.prices import Prices
from tidesim.trace.passes import Kind, WindowedPass


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Denoise steps of one block and the passes until the next; the first of a trace has no steps.

    Attributes
    ----------
    steps, after : list of WindowedPass
    refreshes_always : bool
        The engine refreshes at every step of this block, whatever the schedule says.
    """

    steps: list[WindowedPass]
    after: list[WindowedPass] = field(default_factory=list)
    refreshes_always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Onward:
    """A pass after a block's end that may still be served by the block's residents.

    Attributes
    ----------
    pass_ : WindowedPass
    stays, refreshes : [F] bool
        By first refresh step of the schedule: the pass keeps those residents, or exchanges them.
    """

    pass_: WindowedPass
    stays: BoolArray
    refreshes: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBlocks:
    """The blocks of a case's trace, read anew for every iteration, and sums over them.

    Attributes
    ----------
    case : Case
    steps : int
        T.
    requests : tuple of int
        Requests that have passes, in order; R of them.
    blocks : [R] int64
        Blocks with steps of each request.
    reach : [T] float64
        Blocks that reach each step.
    fixed_s : [R, T + 1] float64
        Seconds that no placement changes, by request and step; last, of passes without a step.
    tokens : [D] int64
        Token counts above 0 that some expert has in some pass, ascending; 1 is always among them.
    """

    case: Case
    steps: int
    requests: tuple[int, ...]
    blocks: IntArray
    reach: FloatArray
    fixed_s: FloatArray
    tokens: IntArray

    @classmethod
    def of(cls, case: Case) -> "TrainingBlocks":
        """Read a case's trace once.

        Raises
        ------
        SettingError
            The trace holds no denoise pass.
        FormatError
            A block lacks a step.
        """
        seen = _Seen(case)
        for block in _blocks(case):
            seen.add(block)
        steps = max(seen.reach, default=-1) + 1
        if not steps:
            raise SettingError("the trace holds no denoise pass, so there is nothing to schedule")
        requests = tuple(dict.fromkeys(request for request, _ in seen.fixed_s))
        fixed_s = np.zeros((len(requests), steps + 1))
        for (request, step), seconds in seen.fixed_s.items():
            fixed_s[requests.index(request), step] = seconds
        return cls(
            case=case,
            steps=steps,
            requests=requests,
            blocks=np.array([seen.blocks[request] for request in requests], dtype=np.int64),
            reach=np.array([seen.reach[step] for step in range(steps)], dtype=np.float64),
            fixed_s=fixed_s,
            tokens=np.flatnonzero(seen.tokens),
        )

    @property
    def count(self) -> int:
        """Blocks with steps."""
        return int(self.blocks.sum())

    def __iter__(self) -> Iterator[Block]:
        return _blocks(self.case)

    def step(self, pass_: WindowedPass) -> int:
        """Return a pass's step, T where it has none."""
        return pass_.step if pass_.kind is Kind.DENOISE else self.steps


class _Seen:
    """Sums over blocks so far."""

    def __init__(self, case: Case) -> None:
        self._prices = Prices(case.latency, case.setup.engine, case.spec)
        self.fixed_s: dict[tuple[int, int], float] = {}
        self.blocks: Counter[int] = Counter()
        self.reach: Counter[int] = Counter()
        self.tokens = np.array([False, True])

    def add(self, block: Block) -> None:
        for pass_ in block.steps:
            self._add_pass(pass_, pass_.step)
            self.reach[pass_.step] += 1
        for pass_ in block.after:
            self._add_pass(pass_, -1)
        if block.steps:
            self.blocks[block.steps[0].request] += 1

    def _add_pass(self, pass_: WindowedPass, step: int) -> None:
        own, key = self._prices.of_pass(pass_), (pass_.request, step)
        seconds = own.gpu_s + own.ids_s + own.host_s
        self.fixed_s[key] = self.fixed_s.get(key, 0.0) + seconds
        more = int(pass_.counts.max()) + 1 - len(self.tokens)
        if more > 0:
            self.tokens = np.append(self.tokens, np.zeros(more, dtype=np.bool_))
        self.tokens[pass_.counts] = True
        self.tokens[0] = False


def _blocks(case: Case) -> Iterator[Block]:
    block, always = Block(steps=[]), case.setup.engine.refresh_first_block
    for pass_ in case.passes():
        if pass_.kind is not Kind.DENOISE:
            block.after.append(pass_)
            continue
        same = block.steps and not block.after and _key(block.steps[0]) == _key(pass_)
        if not same:
            yield block
            block = Block(steps=[], refreshes_always=always and pass_.generated_block == 0)
        if pass_.step != len(block.steps):
            raise FormatError(
                f"trace: block {pass_.block} of request {pass_.request} has step {pass_.step} "
                f"where step {len(block.steps)} should be; capture every step of the block"
            )
        block.steps.append(pass_)
    yield block


def _key(pass_: WindowedPass) -> tuple[int, int]:
    return pass_.request, pass_.block


def with_onward(
    blocks: Iterable[Block], first_steps: int
) -> Iterator[tuple[Block, tuple[Onward, ...]]]:
    """Yield blocks and the passes that follow each until every schedule has refreshed again.

    A block too short to reach a schedule's first refresh is passed under the residents of before,
    and so are the passes after it.

    Parameters
    ----------
    blocks : iterable of Block
    first_steps : int
        F: schedules refresh first at a step below it.
    """
    waiting: deque[Block] = deque()
    for block in blocks:
        waiting.append(block)
        if block.refreshes_always or len(block.steps) >= first_steps:
            while len(waiting) > 1:
                yield _first(waiting, first_steps)
    while waiting:
        yield _first(waiting, first_steps)


def _first(blocks: deque[Block], first_steps: int) -> tuple[Block, tuple[Onward, ...]]:
    block = blocks.popleft()
    return block, tuple(_onward(block, blocks, np.arange(first_steps)))


def _onward(block: Block, following: Iterable[Block], first: IntArray) -> Iterator[Onward]:
    """Yield the passes after a block; `first` are the first steps tried, [F]."""
    waits = first >= 0  # schedules whose residents are still those of the block
    nothing = ~waits
    yield from (Onward(pass_=pass_, stays=waits, refreshes=nothing) for pass_ in block.after)
    for later in following:
        for pass_ in later.steps:
            refreshes = waits & (later.refreshes_always | (first == pass_.step))
            waits = waits & ~refreshes
            yield Onward(pass_=pass_, stays=waits, refreshes=refreshes)
            if not waits.any():
                return
        yield from (Onward(pass_=pass_, stays=waits, refreshes=nothing) for pass_ in later.after)

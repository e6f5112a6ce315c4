"""Costs for the solver: what each choice of refresh steps takes, from training requests.

A block with N denoise steps is timed for every pair of refresh steps at once. Residents chosen at
step i are the experts with most tokens in that very pass, tide's rule. Where fewer experts are
active than there are slots, tide keeps residents from before, which depend on every choice before;
here the residents a run starts with stand in for them. `CostTable.unfilled` is the share of
refreshes where that happens. Where it is 0 the costs of a schedule add up to the simulated seconds
on the same requests, to rounding; elsewhere they are an estimate.

What follows a block's last step (its commit pass, the next request's prefill, the first step of the
next block with its promotions) is charged to the arc that is active when the block ends. What comes
before the first block is charged to every arc that leaves step 0: each schedule takes exactly one.

Dimension letters: L mixture layers, E experts, K budget options, T steps of the longest block,
N steps of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from tidesim.errors import FormatError, SettingError
from tidesim.placement import BoolArray, FloatArray, IntArray
from tidesim.policies import make_policy
from tidesim.simulate.case import Case
from tidesim.simulate.chunks import Loads
from tidesim.simulate.fast import layer_seconds
from tidesim.simulate.prices import Prices
from tidesim.simulate.work import WorkPrices
from tidesim.trace.passes import Counts, Kind, WindowedPass


@dataclass(frozen=True, kw_only=True, eq=False)
class CostTable:
    """Expected seconds per block of every choice, as `solver.Problem` defines them.

    Attributes
    ----------
    steps : int
        T.
    budgets : [K] int64
    arc_cost_s : [L, K, T, T + 1] float64
    fixed_s : float
    blocks : int
        Blocks averaged over.
    reach : [T] float64
        Share of blocks that reach each step.
    unfilled : [K] float64
        Share of refreshes, over blocks, steps and layers, with fewer active experts than slots.
    """

    steps: int
    budgets: IntArray
    arc_cost_s: FloatArray
    fixed_s: float
    blocks: int
    reach: FloatArray
    unfilled: FloatArray


def arc_costs(case: Case, budgets: Sequence[int]) -> CostTable:
    """Time every pair of refresh steps on the requests of a case.

    Parameters
    ----------
    case : Case
        Training requests, sizes, machine and engine; its policy and budget are not used.
    budgets : sequence of int
        Options in slots per layer, ascending.

    Raises
    ------
    SettingError
        The trace holds no denoise pass.
    FormatError
        A block lacks a step.
    """
    blocks = TrainingBlocks.of(case)
    tables = [_BudgetCosts(case, budget, blocks.steps) for budget in budgets]
    for block, following in pairwise((*blocks, None)):
        assert block is not None
        for table in tables:
            table.add(block, following)
    return CostTable(
        steps=blocks.steps,
        budgets=np.array(budgets, dtype=np.int64),
        arc_cost_s=np.stack([table.seconds for table in tables], axis=1) / blocks.count,
        fixed_s=blocks.fixed_s / blocks.count,
        blocks=blocks.count,
        reach=blocks.reach / blocks.count,
        unfilled=np.array([table.unfilled / table.refreshes for table in tables]),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Denoise steps of one block and the passes until the next; the first of a trace has no steps.

    Attributes
    ----------
    steps, after : list of WindowedPass
    """

    steps: list[WindowedPass]
    after: list[WindowedPass] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        """Tokens per expert of every step, [N, L, E]."""
        return np.stack([pass_.counts for pass_ in self.steps])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBlocks:
    """The blocks of a case's trace, read anew for every iteration, and sums over them.

    Attributes
    ----------
    case : Case
    steps : int
        T.
    count : int
        Blocks with steps.
    reach : [T] float64
        Blocks that reach each step.
    fixed_s : float
        Seconds of all passes that no placement changes.
    """

    case: Case
    steps: int
    count: int
    reach: FloatArray
    fixed_s: float

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
        prices = Prices(case.latency, case.setup.engine, case.spec)
        lengths: list[int] = []
        fixed = 0.0
        for block in _blocks(case):
            for pass_ in (*block.steps, *block.after):
                own = prices.of_pass(pass_)
                fixed += own.gpu_s + own.ids_s + own.host_s
            lengths.append(len(block.steps))
        longest = max(lengths, default=0)
        if not longest:
            raise SettingError("the trace holds no denoise pass, so there is nothing to schedule")
        reach = (np.array(lengths)[:, None] > np.arange(longest)).sum(axis=0).astype(np.float64)
        return cls(case=case, steps=longest, count=int(reach[0]), reach=reach, fixed_s=fixed)

    def __iter__(self) -> Iterator[Block]:
        return _blocks(self.case)


def _blocks(case: Case) -> Iterator[Block]:
    block = Block([])
    for pass_ in case.passes():
        if pass_.kind is not Kind.DENOISE:
            block.after.append(pass_)
            continue
        same = block.steps and not block.after and _key(block.steps[0]) == _key(pass_)
        if not same:
            yield block
            block = Block([])
        if pass_.step != len(block.steps):
            raise FormatError(
                f"trace: block {pass_.block} of request {pass_.request} has step {pass_.step} "
                f"where step {len(block.steps)} should be; capture every step of the block"
            )
        block.steps.append(pass_)
    yield block


def _key(pass_: WindowedPass) -> tuple[int, int]:
    return pass_.request, pass_.block


class LayerTimer:
    """Times layers of passes under given residents, at one budget.

    Parameters
    ----------
    case : Case
        Sizes, machine and engine.
    budget : int
    """

    def __init__(self, case: Case, budget: int) -> None:
        self.budget, engine = budget, case.setup.engine
        self.prices = WorkPrices(Prices(case.latency, engine, case.spec))
        setup = replace(case.setup, budget=budget, interval=1)
        self.initial = make_policy("tide", setup=setup).initial(setup)  # [L, E]
        experts = np.arange(setup.num_experts)
        self._kept = np.where(self.initial, experts - 2 * len(experts), experts - 3 * len(experts))

    def residents(self, counts: Counts) -> BoolArray:
        """Mark the residents that a refresh chooses, [..., L, E].

        They are the busiest experts, ties to the lower id, then initial residents without tokens:
        those with the highest ids, as tide's evictions go in ascending order.
        """
        num_experts = counts.shape[-1]
        rank = counts * num_experts - np.arange(num_experts)  # no two alike
        rank = np.where(counts > 0, rank, self._kept)
        at = num_experts - self.budget
        least = np.partition(rank, at, axis=-1)[..., at, None]
        return np.asarray(rank >= least)

    def time(
        self,
        passes: Sequence[WindowedPass],
        counts: Counts,
        *,
        resident: BoolArray,
        before: BoolArray | None = None,
    ) -> FloatArray:
        """Return seconds, [..., L], of passes [...] served by residents [..., L, E].

        With `before` the residents of before are exchanged for them first.
        """
        gpu = counts * resident
        copied = 0 if before is None else moves(before, resident, counts)
        sizes = [[pass_.tokens] for pass_ in passes]
        shared = [self.prices.prices.of_pass(pass_).shared_s for pass_ in passes]
        work = self.prices.work(
            Loads.of(gpu),
            Loads.of(counts - gpu),
            tokens=np.array(sizes),
            shared_s=np.array(shared),
            copied=copied,
            written=copied,  # residents fill every slot
        )
        return layer_seconds(work, self.prices.prices.latency, self.prices.engine)


def moves(before: BoolArray, after: BoolArray, counts: Counts) -> IntArray:
    """Count promotions, [...], of a refresh that changes residents, [..., E]; as many leave."""
    return np.asarray(np.count_nonzero(after & (counts > 0) & ~before, axis=-1))


class _BudgetCosts:
    """Arc costs of one budget, summed over blocks.

    Attributes
    ----------
    seconds : [L, T, T + 1] float64
    unfilled, refreshes : int
        Refreshes that leave slots free, of all possible.
    """

    def __init__(self, case: Case, budget: int, steps: int) -> None:
        self._layers = LayerTimer(case, budget)
        setup = case.setup
        self.seconds = np.zeros((setup.layers, steps, steps + 1))
        self.unfilled = self.refreshes = 0
        self._every_step = setup.engine.refresh_first_block

    def add(self, block: Block, following: Block | None) -> None:
        """Add one block and what comes until the first step of the next."""
        if not block.steps:
            self._add_to_all(self._leave(self._layers.initial[None], block, following)[0])
            return
        counts = block.counts
        resident = self._layers.residents(counts)
        active = np.count_nonzero(counts, axis=-1)
        self.unfilled += int((active < self._layers.budget).sum())
        self.refreshes += active.size
        if self._every_step and block.steps[0].generated_block == 0:
            self._add_refreshed_always(block, following, resident)
        else:
            self._add_arcs(block, following, resident)

    def _add_arcs(self, block: Block, following: Block | None, resident: BoolArray) -> None:
        N, arcs = len(block.steps), self.seconds
        stay, refresh = self._pairs(block, resident)
        stayed = stay.cumsum(axis=1)  # [N, N, L]: steps i + 1..s under residents of i
        left = stayed[:, -1] + self._leave(resident, block, following)  # [N, L]
        arcs[:, :N, N:] += left.T[..., None]
        before = np.roll(stayed, 1, axis=1)  # steps i + 1..j - 1; column 0 is never used
        inner = np.triu(np.ones((N, N)), 1)[..., None] * (before + refresh)
        arcs[:, :N, :N] += np.moveaxis(inner, -1, 0)

    def _pairs(self, block: Block, resident: BoolArray) -> tuple[FloatArray, FloatArray]:
        """Time steps j > i under residents of i, and under those of j, promoted; [N, N, L] each."""
        counts, N = block.counts, len(block.steps)
        first, later = np.triu_indices(N, 1)
        stay, refresh = np.zeros((2, N, N, counts.shape[1]))
        if len(first):
            passes = [block.steps[step] for step in later]
            stay[first, later] = self._layers.time(passes, counts[later], resident=resident[first])
            refresh[first, later] = self._layers.time(
                passes, counts[later], resident=resident[later], before=resident[first]
            )
        return stay, refresh

    def _leave(self, resident: BoolArray, block: Block, following: Block | None) -> FloatArray:
        """Time what follows a block's steps until the next block's first, [N, L].

        Parameters
        ----------
        resident : [N, L, E] bool
            Residents when the steps end.
        """
        seconds = np.zeros(resident.shape[:2])
        for pass_ in block.after:
            seconds += self._layers.time([pass_], pass_.counts[None], resident=resident)
        if following is not None:
            pass_ = following.steps[0]
            target = self._layers.residents(pass_.counts[None])
            seconds += self._layers.time(
                [pass_], pass_.counts[None], resident=target, before=resident
            )
        return seconds

    def _add_refreshed_always(
        self, block: Block, following: Block | None, resident: BoolArray
    ) -> None:
        """Add a block whose every step refreshes, whatever the schedule says."""
        leave = self._leave(resident[-1:], block, following)[0]
        if len(block.steps) > 1:
            steps = self._layers.time(
                block.steps[1:], block.counts[1:], resident=resident[1:], before=resident[:-1]
            )
            leave = leave + steps.sum(axis=0)
        self._add_to_all(leave)

    def _add_to_all(self, seconds: FloatArray) -> None:
        """Charge seconds, [L], to every schedule alike."""
        self.seconds[:, 0, 1:] += seconds[:, None]

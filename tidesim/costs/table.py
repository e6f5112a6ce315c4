"""Cost table: expected seconds per block of every choice of refresh steps, from training requests.

Residents before each refresh are those of a schedule `around` which the costs are taken, replayed
with every option. The costs of that schedule add up to its simulated seconds on the same requests,
to rounding. So do those of any other where nothing depends on refreshes of before: no limit on
promotions, and at least as many active experts as slots (`CostTable.unfilled` is 0); elsewhere they
are an estimate, and a new table around the schedule found says how good.

A schedule's first refresh may come late in the block. What follows a block's last step until the
next refresh (its commit pass, the next request's prefill, the first steps of the next block and its
refresh) is charged to the arc that is active when the block ends; blocks too short to reach the
first refresh, and what follows them, likewise. What comes before the first block's refresh is
charged to every arc into T: each schedule takes exactly one.

With promotion in the background a pass that refreshes still runs under the residents of before.
What its copies do to later passes is an estimate (`costs.pairs`), and how they hide behind them is
the solver's to say, from `CostTable.step_s`, `copies` and `copy_s`. Nothing promoted, nothing is
estimated. Results of missed experts that wait for a copy on the link are left out: on the bundled
trace at the sizes of LLaDA2.0-mini, budgets 8 and 16, intervals 1 to 16 and every bundled machine,
costs were 0.1 to 2.7 % below the simulation.

Letters: L mixture layers, E experts, K options, F first steps, T steps of the longest block, N
steps of a block, R requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from tidesim.costs.blocks import TrainingBlocks, with_onward
from tidesim.costs.collect import Account, Collector
from tidesim.costs.measures import Measure, Sums, arcs_of, by_bucket, by_step
from tidesim.costs.ordered import Option
from tidesim.costs.pairs import PairTimer
from tidesim.costs.residents import Replay, initial_residents
from tidesim.engines import Promotion
from tidesim.errors import SettingError
from tidesim.placement import BoolArray, FloatArray
from tidesim.simulate.case import Case
from tidesim.simulate.run import check_promotion

FIRST_STEPS = 4  # a schedule's first refresh comes at a step below it


@dataclass(frozen=True, kw_only=True, eq=False)
class CostTable:
    """Expected seconds per block of every choice, as `solver.Problem` defines them.

    Attributes
    ----------
    steps : int
        T.
    options : tuple of Option
        K of them.
    arc_cost_s : [L, K, F, T, T + 1] float64
    never_s : [L, K] float64
        Of never refreshing; exact.
    fixed_s : float
    blocks : int
        Blocks averaged over.
    reach : [T] float64
        Share of blocks that reach each step.
    unfilled : [K] float64
        Share of refreshes, over blocks, steps and layers, with fewer active experts than slots.
    requests : Measure or None
        Q = R: seconds per block of each request that has blocks, over the passes of that request.
    copy_s : float
        Seconds of one promotion on the link.
    moves, seconds_by_step : Sums
        What `copies` and `step_s` are made of, apart by step; the latter None where copies do not
        hide behind other work.
    fixed_by_step_s : [T + 1] float64
        Seconds of all blocks that no choice changes.
    """

    steps: int
    options: tuple[Option, ...]
    arc_cost_s: FloatArray
    never_s: FloatArray
    fixed_s: float
    blocks: int
    reach: FloatArray
    unfilled: FloatArray
    requests: Measure | None
    copy_s: float
    moves: Sums
    seconds_by_step: Sums | None
    fixed_by_step_s: FloatArray

    @cached_property
    def copies(self) -> Measure:
        """Q = T: promotions per block at each step; built when first asked for."""
        return by_step(self.moves, np.zeros(self.steps), blocks=self.blocks)

    @cached_property
    def step_s(self) -> Measure | None:
        """Q = T + 1: seconds per block of the passes at each step; last, of passes without a step.

        None unless promotion is in the background and the engine lets copies hide behind other
        work. Built when first asked for.
        """
        if self.seconds_by_step is None:
            return None
        return by_step(self.seconds_by_step, self.fixed_by_step_s, blocks=self.blocks)


def arc_costs(
    case: Case,
    options: Sequence[Option],
    *,
    around: Sequence[tuple[int, ...]] | None = None,
    by_request: bool = False,
) -> CostTable:
    """Time every pair of refresh steps on the requests of a case.

    Parameters
    ----------
    case : Case
        Training requests, sizes, machine, engine and promotion; its policy and budget are not used.
    options : sequence of Option
    around : sequence of tuple of int or None
        Refresh steps of each layer of the schedule that tells the residents before each refresh;
        every step where None.
    by_request : bool
        Also tell requests apart.

    Raises
    ------
    SettingError
        The trace holds no denoise pass, requests of a batch shall be told apart, the engine cannot
        promote in the background, or a time is too long to count with.
    FormatError
        A block lacks a step.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import prepare
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> settings = {"policy": "tide", "interval": 1, "budget": 16}
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings)
    >>> table = arc_costs(case, [Option(8), Option(16)])
    >>> table.steps, table.blocks, table.arc_cost_s.shape  # layers, options, first step, arc
    (18, 1, (4, 2, 4, 18, 19))
    """
    setup = case.setup
    check_promotion(setup.engine, setup.promotion or Promotion.BLOCKING)
    if by_request and case.batch > 1:
        raise SettingError(
            f"requests decoded {case.batch} at a time share their passes, so that their seconds "
            "cannot be told apart; use batch 1"
        )
    training = TrainingBlocks.of(case)
    timer = PairTimer(case, options, tokens=training.tokens)
    accounts = _Accounts.of(training, len(options), by_request=by_request)
    initial, due = initial_residents(setup, options), _due(training, around)
    collector = Collector(
        timer,
        np.array([option.budget for option in options]),
        around=Replay(options, initial=initial, due=due),
        never=Replay(options, initial=initial, due=np.zeros_like(due)),
        accounts=accounts.all,
    )
    for block, onward in with_onward(training, accounts.first_steps):
        collector.add(block, onward)
    return _table(training, tuple(options), timer=timer, collector=collector, accounts=accounts)


def _due(training: TrainingBlocks, around: Sequence[tuple[int, ...]] | None) -> BoolArray:
    """Mark the steps at which each layer refreshes, [T, L]."""
    layers = training.case.setup.layers
    due = np.full((training.steps, layers), around is None)
    for layer, steps in enumerate(around or ()):
        due[[step for step in steps if step < training.steps], layer] = True
    return due


@dataclass(frozen=True, kw_only=True, eq=False)
class _Accounts:
    """Everything that is added up."""

    seconds: Account
    moves: Account
    by_step: Account | None
    by_request: bool
    first_steps: int

    @classmethod
    def of(cls, training: TrainingBlocks, options: int, *, by_request: bool) -> "_Accounts":
        setup, T = training.case.setup, training.steps
        first_steps = min(FIRST_STEPS, T)
        empty = partial(Sums.empty, (setup.layers, options, first_steps, T))
        requests = {request: number for number, request in enumerate(training.requests)}
        apart = len(requests) if by_request else 1
        steps = partial(empty, inner=1, buckets=T + 1, onward=first_steps + 1)
        hides = setup.promotion is Promotion.BACKGROUND and setup.engine.overlap
        return cls(
            seconds=Account(
                sums=empty(inner=apart, buckets=apart, onward=apart),
                bucket=lambda pass_: requests[pass_.request] if by_request else 0,
            ),
            moves=Account(sums=steps(), bucket=training.step, promotions=True),
            by_step=Account(sums=steps(), bucket=training.step) if hides else None,
            by_request=by_request,
            first_steps=first_steps,
        )

    @property
    def all(self) -> list[Account]:
        """All accounts."""
        return [self.seconds, self.moves, *([self.by_step] if self.by_step else [])]


def _table(
    training: TrainingBlocks,
    options: tuple[Option, ...],
    *,
    timer: PairTimer,
    collector: Collector,
    accounts: _Accounts,
) -> CostTable:
    seconds, blocks = accounts.seconds.sums, training.count
    requests = None
    if accounts.by_request:
        requests = by_bucket(seconds, training.fixed_s.sum(axis=1), blocks=training.blocks)
    return CostTable(
        steps=training.steps,
        options=options,
        arc_cost_s=arcs_of(*seconds.totals()) / blocks,
        never_s=seconds.never.sum(axis=0) / blocks,
        fixed_s=float(training.fixed_s.sum()) / blocks,
        blocks=blocks,
        reach=training.reach / blocks,
        unfilled=collector.unfilled / collector.refreshes,
        requests=requests,
        copy_s=timer.prices.to_gpu_s,
        moves=accounts.moves.sums,
        seconds_by_step=accounts.by_step.sums if accounts.by_step else None,
        fixed_by_step_s=training.fixed_s.sum(axis=0),
    )

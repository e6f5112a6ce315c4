"""Simulate: place the experts of every pass, time the passes, count what moved."""

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol, Self

import numpy as np

from tidesim.engines import Engine, Promotion
from tidesim.errors import SettingError
from tidesim.records import Resource
from tidesim.simulate.case import Case, sizes_label
from tidesim.simulate.chunks import Chunk, chunked
from tidesim.simulate.des import time_passes
from tidesim.simulate.operations import Timing
from tidesim.simulate.prices import Prices
from tidesim.simulate.result import SimulationResult
from tidesim.simulate.tally import Tally, TokenCount
from tidesim.trace.batches import batched


class Method(Protocol):
    """Way to time placed passes."""

    def __call__(
        self,
        chunks: Iterable[Chunk],
        prices: Prices,
        *,
        promotion: Promotion,
        keep_records: bool,
    ) -> Timing:
        """Time the passes one after another."""
        ...


class Placed(NamedTuple):
    """The passes of a case, placed by its policy, and what is counted on the way.

    Attributes
    ----------
    chunks : iterable of Chunk
    written : TokenCount
    tally : Tally
    """

    chunks: Iterable[Chunk]
    written: TokenCount
    tally: Tally

    @classmethod
    def of(cls, case: Case) -> Self:
        """Place passes as they are asked for."""
        engine = case.setup.engine
        written, tally = TokenCount(case.trace), Tally(engine=engine, spec=case.spec)
        passes = batched(written.watch(engine), case.batch)
        return cls(tally.watch(chunked(case.placed(passes))), written, tally)

    def kept(self) -> Self:
        """Place all passes now, to be timed on several machines."""
        return self._replace(chunks=list(self.chunks))


def run(
    case: Case,
    *,
    keep_records: bool = False,
    method: Method = time_passes,
    placed: Placed | None = None,
) -> SimulationResult:
    """Simulate every request of a case's trace, one after another.

    Parameters
    ----------
    case : Case
    keep_records : bool
        Also return a record per operation.
    method : callable
        `des.time_passes`, or another that gives the same times.
    placed : Placed or None
        The same passes, placed before by the same policy on a machine that it does not look at.

    Raises
    ------
    SettingError
        The trace holds no denoise pass, or its times are too long to add up.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.simulate import prepare
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3,))
    >>> case = prepare(trace, load_profile("a100-40gb-pcie4-xeon48"), policy="lru", budget=16)
    >>> result = run(case, keep_records=True)
    >>> len(result.records), result.passes, len(result.pass_s)
    (1005, 20, 20)
    """
    engine = case.setup.engine
    prices = Prices(case.latency, engine, case.spec)
    promotion = case.policy(case.known).promotion
    check_promotion(engine, promotion)
    chunks, written, tally = placed or Placed.of(case)
    with np.errstate(over="ignore", invalid="ignore"):  # said in one sentence below
        timing = method(chunks, prices, promotion=promotion, keep_records=keep_records)
    if not tally.steps:
        raise SettingError("the trace holds no denoise pass, so there is nothing to simulate")
    if not math.isfinite(timing.seconds):
        raise SettingError(
            f"the times of a run on {case.hardware} are too long to add up; "
            "look for absurd rates or seconds in the profile and its overrides"
        )
    return _result(case, tally, written, timing)


def check_promotion(engine: Engine, promotion: Promotion) -> None:
    """Refuse promotion in the background where an engine has none.

    Raises
    ------
    SettingError
        Its copies of pageable memory hold up the host, or it copies evicted experts back.
    """
    if promotion is Promotion.BLOCKING or not engine.overlap:
        return
    reasons = {
        "copies pageable memory, which holds up the host": not engine.pinned,
        "copies evicted experts back before it promotes others": engine.write_back,
    }
    for reason, holds in reasons.items():
        if holds:
            raise SettingError(
                f"engine {engine.name} {reason}, so nothing can be promoted in the background; "
                "use blocking promotion or another engine"
            )


def _shares(timing: Timing) -> dict[str, dict[str, float]]:
    """Return shares of the critical path by resource and operation, every resource present."""
    shares: dict[str, dict[str, float]] = {str(resource): {} for resource in Resource}
    for key, seconds in timing.critical_s.items():
        shares[key.resource][key.operation] = seconds / timing.seconds
    return shares


def _result(case: Case, tally: Tally, written: TokenCount, timing: Timing) -> SimulationResult:
    policy, meta, seconds = case.policy(case.known), case.trace.meta, timing.seconds
    return SimulationResult(
        policy=policy.name,
        engine=case.setup.engine.name,
        hardware=case.hardware,
        hardware_kinds=case.hardware_kinds,
        sizes=sizes_label(meta.model, case.spec),
        provenance=meta.provenance,
        interval=policy.interval,
        promotion=str(policy.promotion),
        batch=case.batch,
        budgets=tuple(policy.budgets(case.setup).tolist()),
        trained_on=case.trained_on,
        is_bound=policy.is_bound,
        knows_future=policy.knows_future,
        memory=case.memory,
        seconds=seconds,
        tokens=written.tokens,
        blocks=written.blocks,
        steps=tally.steps,
        passes=tally.passes,
        hits=tally.hits,
        misses=tally.misses,
        promotions=tally.promotions,
        evictions=tally.evictions,
        streams=tally.streams,
        refreshes=tally.refreshes,
        h2d_bytes_by_purpose=tally.h2d_bytes,
        d2h_bytes_by_purpose=tally.d2h_bytes,
        busy={str(name): busy_s / seconds for name, busy_s in timing.busy_s.items()},
        waited={str(name): waited_s / seconds for name, waited_s in timing.waited_s.items()},
        critical=_shares(timing),
        pass_s=timing.pass_s,
        is_step=np.array(tally.is_step, dtype=np.bool_),
        records=timing.records,
        counters=timing.counters,
        trace_sha256=case.trace.sha256,
        profile_sha256=case.profile_sha256,
    )

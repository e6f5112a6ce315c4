"""Reproduce: the TIDE paper's throughputs, predicted from synthetic traces and published rates.

Two per-call costs of the authors' engine are fitted to the rows of LLaDA2.0-mini at 128 experts per
layer; every other row is a prediction. The paper names two generation lengths and does not say which
a row is of; a row is predicted as the mean over both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tidesim.calibrate import fit
from tidesim.placement import FloatArray
from tidesim.reference_runs import (
    ENGINE,
    EVERY_STEP,
    FIDDLER,
    FITTED,
    FLASH,
    MINI,
    RANDOM,
    SOLVED,
    Bench,
    Setting,
)
from tidesim.simulate.fast import run_fast

NAMES = ("expert_call_s", "expert_copy_call_s")
UNIT_S, MOST_CALL_S = 1e-4, 0.1  # where the fit starts; no call is believed to take longer
FLASH_BUDGETS, BLOCK_LENGTHS, LENGTHS = (64, 32), (64, 128), (256, 1024)
FASTER_DECODING = (1.25, 1.5)


class Published(NamedTuple):
    """A throughput of the paper."""

    model: str
    budget: int
    policy: str
    tokens_per_s: float
    is_fitted: bool


# TIDE, arXiv 2605.20179: tokens/s on an A100 40 GB with a 48-core host, sanitized MBPP, block 32.
PUBLISHED = (
    Published(MINI, 128, SOLVED, 2.44, True),
    Published(MINI, 128, EVERY_STEP, 1.91, True),
    Published(MINI, 128, RANDOM, 2.14, True),
    Published(MINI, 64, SOLVED, 2.11, False),
    Published(MINI, 64, EVERY_STEP, 1.69, False),
    Published(MINI, 64, FIDDLER, 1.81, False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One throughput.

    Attributes
    ----------
    model, hardware : str
    budget : int
        Slots per mixture layer.
    policy : str
    intervals : tuple of (int or None)
        For each generation length; None where there is no interval.
    gen_lengths : tuple of int
        Tokens per second are the mean over these.
    block_length : int
    tokens_per_forward : float
    engine : str
    published : float or None
        Tokens per second in the paper.
    predicted : float
        Tokens per second, simulated.
    error : float or None
        Relative, of the prediction.
    fitted : bool
        The published number was used to fit per-call costs.
    bottleneck : str or None
        Of engine ``tidesim``.
    """

    model: str
    hardware: str
    budget: int
    policy: str
    intervals: tuple[int | None, ...]
    gen_lengths: tuple[int, ...]
    block_length: int
    tokens_per_forward: float
    engine: str
    published: float | None
    predicted: float
    error: float | None
    fitted: bool
    bottleneck: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Published rows, predictions beyond them, and the same machines with engine ``tidesim``.

    Attributes
    ----------
    rows : tuple of Row
    costs_s : dict of float
        Fitted seconds of an expert's call and of a copy of one of its tensors.
    """

    rows: tuple[Row, ...]
    costs_s: dict[str, float]

    def ratios(self) -> list[dict[str, Any]]:
        """Return tide over each other policy, published and predicted, of one model and budget."""
        published = [row for row in self.rows if row.published is not None]
        found = []
        for mine in (row for row in published if row.policy == SOLVED):
            for row in published:
                if row is mine or (row.model, row.budget) != (mine.model, mine.budget):
                    continue
                assert mine.published is not None
                assert row.published is not None
                theirs, ours = mine.published / row.published, mine.predicted / row.predicted
                found.append(
                    {
                        "model": row.model,
                        "budget": row.budget,
                        "over": row.policy,
                        "published": theirs,
                        "predicted": ours,
                        "error": ours / theirs - 1,
                        "fitted": row.fitted,
                    }
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "ratios": self.ratios(),
            "fitted_costs_s": self.costs_s,
            "provenance": "synthetic",
        }


def reproduce() -> Reproduction:
    """Fit, predict the paper's rows and others, and say what the same machines could do."""
    mini = [Bench.of(Setting(model=MINI, gen_length=length)) for length in LENGTHS]
    flash = [Bench.of(Setting(model=FLASH, gen_length=length)) for length in LENGTHS]
    costs = fitted_costs(mini)
    rows = [predict(mini, each.policy, each.budget, costs, published=each) for each in PUBLISHED]
    rows += _beyond(mini, (128, 64), costs)
    rows += _beyond(flash, FLASH_BUDGETS, costs)
    others = [Setting(model=FLASH, block_length=length) for length in BLOCK_LENGTHS]
    others += [Setting(model=FLASH, faster=faster) for faster in FASTER_DECODING]
    for setting in others:
        rows += _beyond([Bench.of(setting)], FLASH_BUDGETS, costs)
    rows += _with_tidesim(mini[0], (128, 64))
    rows += _with_tidesim(flash[0], FLASH_BUDGETS)
    return Reproduction(rows=tuple(rows), costs_s=dict(zip(NAMES, costs.tolist(), strict=True)))


def fitted_costs(benches: Sequence[Bench]) -> FloatArray:
    """Return the per-call costs, [costs], that bring the rows to be fitted nearest."""
    rows = [row for row in PUBLISHED if row.is_fitted]

    def errors(scaled: FloatArray) -> FloatArray:
        costs = scaled * UNIT_S
        found = [_mean(benches, row.policy, row.budget, costs) for row in rows]
        return np.array(found) / [row.tokens_per_s for row in rows] - 1

    ones = np.ones(len(FITTED))
    return np.asarray(fit(errors, ones, 0 * ones, ones * MOST_CALL_S / UNIT_S) * UNIT_S)


def _mean(benches: Sequence[Bench], policy: str, budget: int, costs: FloatArray) -> float:
    return float(np.mean([bench.speed(policy, budget, costs)[0] for bench in benches]))


def predict(
    benches: Sequence[Bench],
    policy: str,
    budget: int,
    costs: FloatArray,
    *,
    published: Published | None = None,
) -> Row:
    """Predict one throughput of the authors' engine, the mean over generation lengths."""
    predicted = _mean(benches, policy, budget, costs)
    there = published.tokens_per_s if published else None
    return _make_row(
        benches,
        budget=budget,
        policy=policy,
        intervals=tuple(bench.speed(policy, budget, costs)[1] for bench in benches),
        engine=ENGINE,
        published=there,
        predicted=predicted,
        error=predicted / there - 1 if there else None,
        fitted=published is not None and published.is_fitted,
    )


def _make_row(benches: Sequence[Bench], **values: Any) -> Row:
    setting = benches[0].setting
    return Row(
        model=setting.model,
        hardware=benches[0].profile.name,
        gen_lengths=tuple(bench.setting.gen_length for bench in benches),
        block_length=setting.block_length,
        tokens_per_forward=setting.tokens_per_forward,
        **values,
    )


def _beyond(benches: Sequence[Bench], budgets: Sequence[int], costs: FloatArray) -> Iterator[Row]:
    """Predict each length by itself: what the paper names without a number that could be read."""
    for bench in benches:
        for budget in budgets:
            for policy in (SOLVED, EVERY_STEP, FIDDLER):
                yield predict([bench], policy, budget, costs)


def _with_tidesim(bench: Bench, budgets: Sequence[int]) -> Iterator[Row]:
    """Simulate the same machine with our own engine: intervals chosen on the training requests."""
    for budget in budgets:
        for promotion in ("blocking", "background"):
            runs = {
                tau: bench.case("tide", budget, interval=tau, promotion=promotion)
                for tau in (1, 2, 4, 8, 16)
            }
            train, heldout = bench.trace.split("train"), bench.trace.split("heldout")
            tau = min(runs, key=lambda tau: run_fast(replace(runs[tau], trace=train)).seconds)
            result = run_fast(replace(runs[tau], trace=heldout))
            yield _make_row(
                [bench],
                budget=budget,
                policy=f"tide, {promotion}",
                intervals=(tau,),
                engine="tidesim",
                published=None,
                predicted=result.tokens_per_s,
                error=None,
                fitted=False,
                bottleneck=result.bottleneck,
            )

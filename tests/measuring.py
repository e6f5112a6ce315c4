"""Measured runs that no machine took: what a simulation says, changed as a test wants."""

from dataclasses import replace

import numpy as np

from tidesim.measured import Counters, MeasuredRun
from tidesim.records import Records
from tidesim.validate import Trial


def measured_like(result, passes, *, factor=1.0, repeats=1, backend="cpu", **changes):
    """Return a run that moved what a simulated one did and took `factor` times as long.

    `factor` may be an array, [repeats, passes].
    """
    counters = Counters(
        hits=result.hits,
        misses=result.misses,
        promotions=result.promotions,
        evictions=result.evictions,
        streams=result.streams,
        refreshes=result.refreshes,
        h2d_bytes_by_purpose=result.h2d_bytes_by_purpose,
        d2h_bytes_by_purpose=result.d2h_bytes_by_purpose,
    )
    return MeasuredRun(
        **{
            "policy": result.policy,
            "engine": result.engine,
            "promotion": result.promotion,
            "interval": result.interval,
            "budgets": result.budgets,
            "backend": backend,
            "machine": "no machine",
            "sizes": result.sizes,
            "provenance": result.provenance,
            "keys": tuple(pass_.key for pass_ in passes),
            "pass_s": np.tile(result.pass_s, (repeats, 1)) * factor,
            "counters": counters,
            "records": result.records,
            "trace_sha256": result.trace_sha256,
        }
        | changes
    )


def stretched(records, factor):
    """Return records of a run that takes `factor` times as long."""
    return Records(
        row._replace(start_s=factor * row.start_s, end_s=factor * row.end_s) for row in records
    )


def recounted(measured, **counts):
    """Return a run with other counters."""
    return replace(measured, counters=replace(measured.counters, **counts))


def trial_like(result, passes, *, name="one", calibration=False, **changes):
    """Return the trial of a simulated run and `measured_like` it."""
    measured = measured_like(result, passes, **changes)
    return Trial(name=name, predicted=result, measured=measured, calibration=calibration)

"""Validate: predicted against measured. Pure: no torch, no clock, no files.

Counters must match to the unit. Times carry error: signed, with percentiles, per run, block, pass
and resource, and beside it the spread of repeated real runs.
"""

from tidesim.validate.explain import Cause, WorstPass, operations
from tidesim.validate.report import Report, Tolerances, kendall_tau, validate
from tidesim.validate.trial import Errors, Mismatch, Trial, errors

__all__ = [
    "Cause",
    "Errors",
    "Mismatch",
    "Report",
    "Tolerances",
    "Trial",
    "WorstPass",
    "errors",
    "kendall_tau",
    "operations",
    "validate",
]

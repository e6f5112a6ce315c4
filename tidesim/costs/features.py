"""Features: functions of an expert's tokens whose sums over experts give a layer's prices.

So pricing many sets of residents takes a matrix product: which experts are resident times what each
contributes. Seconds that depend on how many experts share a call as well are a matrix, experts
times tokens, which is a sum of few products of a function of the one and a function of the other.

Letters: D token counts, E experts, q features.
"""

from typing import NamedTuple

import numpy as np

from tidesim.errors import SettingError
from tidesim.placement import FloatArray, IntArray
from tidesim.simulate.chunks import BesideSeconds, EachSeconds
from tidesim.simulate.work import WorkPrices

_ROUNDING = 1e-14  # products that contribute less, of the largest, are left out


class Features:
    """Features that the prices of one engine on one machine need.

    Parameters
    ----------
    prices : WorkPrices
        Of an engine that prices experts one by one, or all in a call of one worker.
    tokens : [D] int64
        Token counts above 0 that occur.
    num_experts : int

    Raises
    ------
    SettingError
        Some time is too long to count with.
    """

    def __init__(self, prices: WorkPrices, tokens: IntArray, *, num_experts: int) -> None:
        rows = [np.ones(len(tokens)), tokens, *(each_s(tokens) for each_s in prices.each_s)]
        self._at = {each_s: number for number, each_s in enumerate(prices.each_s, start=2)}
        self._factors = np.zeros((num_experts + 1, 0))
        if not prices.engine.looped:
            alike_s = prices.prices.latency.cpu_alike_s
            experts = np.arange(1, num_experts + 1)
            table_s = alike_s(*np.broadcast_arrays(experts[:, None], tokens))
            left, right = factorised(np.asarray(table_s, dtype=np.float64))
            self._factors = np.vstack([np.zeros(left.shape[1]), left])
            self._beside, rows = alike_s, [*rows, *right]
        self._table = np.zeros((len(rows), int(tokens[-1]) + 1))
        self._table[:, tokens] = rows
        if not np.isfinite(self._table).all():
            raise _too_long()

    def values(self, counts: IntArray) -> FloatArray:
        """Return the features of experts with so many tokens, [q, ...]; 0 without any."""
        return np.asarray(self._table.take(counts, axis=1))

    def each(self, each_s: EachSeconds, sums: FloatArray) -> FloatArray:
        """Return sums of seconds, [...], among sums of all features, [q, ...]."""
        return np.asarray(sums[self._at[each_s]])

    def beside(self, beside_s: BesideSeconds, experts: IntArray, sums: FloatArray) -> FloatArray:
        """Return sums of seconds that depend on how many experts there are, [...]."""
        assert beside_s == self._beside
        seconds = np.zeros(experts.shape)
        for number, feature in enumerate(sums[-self._factors.shape[1] :]):
            seconds += self._factors[:, number][experts] * feature
        return seconds


class Summed(NamedTuple):
    """What one side computes in some layers [...], as sums of features.

    Attributes
    ----------
    features : Features
    all_sums : [q, ...] float64
    experts, pairs : [...] int64
    """

    features: Features
    all_sums: FloatArray
    experts: IntArray
    pairs: IntArray

    @classmethod
    def of(cls, features: Features, sums: FloatArray) -> "Summed":
        """Make it of sums of features, [q, ...]."""
        experts, pairs = np.rint(sums[:2]).astype(np.int64)
        return cls(features, sums * (experts > 0), experts, pairs)

    def sums(self, each_s: EachSeconds) -> FloatArray:
        """Return the seconds of every expert, added up by layer, [...]."""
        return self.features.each(each_s, self.all_sums)

    def sums_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Return the same of seconds that depend on how many experts the layer has, too."""
        return self.features.beside(beside_s, self.experts, self.all_sums)

    def largest_beside(self, beside_s: BesideSeconds) -> FloatArray:
        """Refuse: the largest does not follow from sums."""
        raise AssertionError(f"no sums give the largest of {beside_s}")


def factorised(table: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Write a matrix without negative entries as a product of few columns and few rows.

    Rows and columns are scaled to a largest entry of 1 first, so that small entries keep their
    digits.

    Returns
    -------
    [n, r], [r, D] float64

    Raises
    ------
    SettingError
        An entry is not finite.
    """
    if not np.isfinite(table).all():
        raise _too_long()
    by_column = _largest(table, axis=0)
    by_row = _largest(table / by_column, axis=1)
    left, size, right = np.linalg.svd(table / by_column / by_row, full_matrices=False)
    kept = size > _ROUNDING * size[0]
    return left[:, kept] * size[kept] * by_row, right[kept] * by_column


def _largest(table: FloatArray, *, axis: int) -> FloatArray:
    largest = table.max(axis=axis, keepdims=True)
    return np.asarray(np.where(largest > 0, largest, 1.0))


def _too_long() -> SettingError:
    return SettingError(
        "the times of some experts are too long to count with; "
        "look for absurd rates or seconds in the profile and its overrides"
    )

"""Loads of pairs: what GPU and CPU compute in passes under residents chosen elsewhere.

Letters: L mixture layers, K options, I sets of residents, P passes, n pairs, E experts, q features.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidesim.costs.features import Features, Summed
from tidesim.costs.ordered import Exchange, Ordered
from tidesim.placement import BoolArray, FloatArray, IntArray
from tidesim.simulate.chunks import Load, Loads


class Pairs(NamedTuple):
    """Which residents meet which pass.

    Attributes
    ----------
    residents, passes : [n] int64
    """

    residents: IntArray
    passes: IntArray


_Floats = npt.NDArray[np.floating[Any]]
_SMALL = 2**18  # multiplications of one product up to which OpenBLAS uses one thread

# Pass, where its pairs are among all, and what residents a limited refresh makes of theirs.
Exchanged = tuple[int, IntArray, Exchange]


class Products:
    """What both sides compute, from products of residents and features."""

    def __init__(self, features: Features) -> None:
        self._features = features

    def of_residents(
        self, ordered: Ordered, residents: BoolArray, pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, K, n], of residents [L, K, I, E]."""
        L, K, I, E = residents.shape
        values = self._features.values(ordered.counts.swapaxes(1, 2))  # [q, L, E, P]
        rows = residents.reshape(L, K * I, E).astype(np.float64)
        sums = product(rows, values).reshape(-1, L, K, I, values.shape[-1])
        total = values.sum(axis=2)[:, :, None]
        return self._sides(np.asarray(at_pairs(sums, pairs)), total.take(pairs.passes, axis=-1))

    def of_targets(self, ordered: Ordered, group: list[int]) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in passes with targets as residents, [L, K, P]."""
        values = self._features.values(ordered.sorted)  # [q, L, P, E]
        places = np.arange(values.shape[-1])[:, None]
        within = (places < ordered.budgets[group]).astype(np.float64)  # no tokens, no features
        hit = (values @ within).swapaxes(-1, -2)
        return self._sides(hit, values.sum(axis=-1)[:, :, None])

    def of_exchanged(
        self, ordered: Ordered, exchanged: list[Exchanged], pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, 1, n], after limited refreshes."""
        values = self._features.values(ordered.sorted)  # [q, L, P, E]
        by_layer = values.transpose(1, 2, 0, 3)  # [L, P, q, E]
        hit = np.empty((*values.shape[:2], len(pairs.passes)))
        for number, at, exchange in exchanged:
            after = exchange.after.swapaxes(0, 1).astype(np.float64)  # [L, E, I]
            hit[..., at] = (by_layer[:, number] @ after).swapaxes(0, 1)
        total = values.sum(axis=-1).take(pairs.passes, axis=-1)
        return self._sides(hit[:, :, None], total[:, :, None])

    def _sides(self, hit: FloatArray, total: FloatArray) -> tuple[Load, Load]:
        """Return both sides from sums of features, [q, ...], over hits and over all experts."""
        return Summed.of(self._features, hit), Summed.of(self._features, total - hit)


def product(rows: _Floats, columns: _Floats) -> _Floats:
    """Multiply stacks of matrices, [..., m, E] and [..., E, n], in pieces that BLAS does not split.

    For larger ones it starts threads that wait for one another: with two of them, on two cores
    that others kept busy, a table took up to twenty times as long.
    """
    outer = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    m, (E, n) = rows.shape[-2], columns.shape[-2:]
    product: _Floats = np.empty((*outer, m, n), dtype=rows.dtype)
    piece = max(1, _SMALL // (E * n))
    for start in range(0, m, piece):
        at = slice(start, start + piece)
        np.matmul(rows[..., at, :], columns, out=product[..., at, :])
    return product


def at_pairs(values: _Floats, pairs: Pairs) -> _Floats:
    """Return what belongs to pairs, [..., n], of values [..., I, P]."""
    *outer, I, P = values.shape
    at = pairs.residents * P + pairs.passes
    return np.asarray(values.reshape(*outer, I * P).take(at, axis=-1))


class OneByOne:
    """What both sides compute, expert by expert, for prices that no sums give."""

    def of_residents(
        self, ordered: Ordered, residents: BoolArray, pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, K, n], of residents [L, K, I, E]."""
        return _loads(ordered.counts[:, None, pairs.passes], residents[:, :, pairs.residents])

    def of_targets(self, ordered: Ordered, group: list[int]) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in passes with targets as residents, [L, K, P]."""
        return _loads(ordered.counts[:, None], ordered.targets[:, group])

    def of_exchanged(
        self, ordered: Ordered, exchanged: list[Exchanged], pairs: Pairs
    ) -> tuple[Load, Load]:
        """Return what GPU and CPU compute in pairs, [L, 1, n], after limited refreshes."""
        counts = ordered.sorted[:, pairs.passes]
        served = np.zeros(counts.shape, dtype=np.bool_)
        for _, at, exchange in exchanged:
            served[:, at] = np.moveaxis(exchange.after, 0, -1)
        return _loads(counts[:, None], served[:, None])


def _loads(counts: IntArray, served: BoolArray) -> tuple[Loads, Loads]:
    hit = counts * served
    return Loads.of(hit), Loads.of(counts - hit)

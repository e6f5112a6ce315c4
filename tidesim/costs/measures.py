"""Measures: sums over blocks that a schedule's cost, or use of something, is made of.

A block that ends after n steps under residents of step i is paid for on the arc (i, j) that is
active then: i < n <= j. So what follows it is kept by i and n, and added up over n in the end.

Letters: L mixture layers, K options, F first steps, T steps, n steps of a block from 1, B buckets,
Q measures.
"""

from dataclasses import dataclass

import numpy as np

from tidesim.placement import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """Q sums that each follow from the arcs taken, as `solver.Use` takes them.

    Attributes
    ----------
    arcs : [Q, L, K, F, T, T + 1] float64
    never : [Q, L, K] float64
        Of a layer that never refreshes.
    fixed : [Q] float64
        What no choice changes.
    """

    arcs: FloatArray
    never: FloatArray
    fixed: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Sums over blocks of seconds or promotions, apart by bucket.

    Attributes
    ----------
    stay, refresh : [B, L, K, T, T] float64
        At step s, or refresh step j, under residents of step i: [..., i, s].
    onward : [B, n, F, L, K, T] float64
        After blocks of n steps under residents of step i: [..., i].
    always : [B, F, L, K] float64
        What every schedule has, whatever its arcs.
    never : [B, L, K] float64
    """

    stay: FloatArray
    refresh: FloatArray
    onward: FloatArray
    always: FloatArray
    never: FloatArray

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int, int], *, inner: int, buckets: int, onward: int
    ) -> "Sums":
        """Make sums of nothing.

        Parameters
        ----------
        shape : (L, K, F, T)
        inner, buckets, onward : int
            B of `stay` and `refresh`, of `always` and `never`, and of `onward`: where there are
            fewer, buckets beyond count as the last.
        """
        L, K, F, T = shape
        return cls(
            stay=np.zeros((inner, L, K, T, T)),
            refresh=np.zeros((inner, L, K, T, T)),
            onward=np.zeros((onward, T, F, L, K, T)),
            always=np.zeros((buckets, F, L, K)),
            never=np.zeros((buckets, L, K)),
        )

    def add_stay(self, bucket: int, values: FloatArray, *, at: tuple[IntArray, IntArray]) -> None:
        """Add values, [L, K, n], at pairs of steps i and s."""
        self.stay[_within(bucket, self.stay)][:, :, *at] += values

    def add_refresh(
        self, bucket: int, values: FloatArray, *, at: tuple[IntArray, IntArray]
    ) -> None:
        """Add values, [L, K, n], at pairs of steps i and j."""
        self.refresh[_within(bucket, self.refresh)][:, :, *at] += values

    def add_onward(
        self, bucket: int, values: FloatArray, *, first: BoolArray, block_steps: int
    ) -> None:
        """Add values, [L, K, N], of residents of steps 0..N-1, for some first steps, [F]."""
        bucket, N = _within(bucket, self.onward), values.shape[-1]
        for number in np.flatnonzero(first).tolist():
            self.onward[bucket, block_steps - 1, number, :, :, :N] += values

    def add_always(
        self, bucket: int, values: FloatArray, *, first: BoolArray | slice = slice(None)
    ) -> None:
        """Add values, [L, K, 1], for some first steps, [F], or all."""
        self.always[bucket, first] += values[..., 0]

    def add_never(self, bucket: int, values: FloatArray) -> None:
        """Add values, [L, K, 1]."""
        self.never[bucket] += values[..., 0]

    def totals(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return `stay`, `refresh`, `onward` and `always` over all buckets."""
        inner = self.stay.sum(axis=0), self.refresh.sum(axis=0)
        return *inner, self.onward.sum(axis=0), self.always.sum(axis=0)


def _within(bucket: int, sums: FloatArray) -> int:
    return min(bucket, len(sums) - 1)


def by_bucket(sums: Sums, fixed: FloatArray, *, blocks: IntArray) -> Measure:
    """Return a measure per bucket that has blocks, [B], in units per block of it."""
    kept = np.flatnonzero(blocks)
    arcs = [
        arcs_of(sums.stay[at], sums.refresh[at], sums.onward[at], sums.always[at]) / blocks[at]
        for at in kept
    ]
    never = sums.never[kept] / blocks[kept, None, None]
    return Measure(arcs=np.stack(arcs), never=never, fixed=fixed[kept] / blocks[kept])


def by_step(sums: Sums, fixed: FloatArray, *, blocks: int) -> Measure:
    """Return a measure per step, and per what has no step if `fixed` has an entry more; per block.

    Parameters
    ----------
    sums : Sums
        Buckets are steps; the last is for what has none, also in `onward`.
    fixed : [Q] float64
    blocks : int
    """
    steps, first_steps = sums.stay.shape[-1], sums.onward.shape[2]
    Q, shape = len(fixed), sums.stay.shape[1:3]
    arcs = np.zeros((Q, *shape, first_steps, steps, steps + 1))
    for step in range(Q):
        is_step = np.arange(steps) == step
        at = min(step, first_steps) if step < first_steps or step == steps else None
        onward = np.zeros_like(sums.onward[0]) if at is None else sums.onward[at]
        inner = (sums.stay[0] * is_step, sums.refresh[0] * is_step)
        arcs[step] = arcs_of(*inner, onward, sums.always[step]) / blocks
    return Measure(arcs=arcs, never=sums.never[:Q] / blocks, fixed=fixed / blocks)


def arcs_of(
    stay: FloatArray, refresh: FloatArray, onward: FloatArray, always: FloatArray
) -> FloatArray:
    """Add sums up along arcs.

    Parameters
    ----------
    stay, refresh, onward, always
        As in `Sums`, of one bucket.

    Returns
    -------
    [L, K, F, T, T + 1] float64
        Entries of no arc, where i < f or j <= i, are 0.
    """
    F, T = onward.shape[1], onward.shape[0]
    arcs = np.zeros((*stay.shape[:2], F, T, T + 1))
    arcs[..., 1:] = np.moveaxis(onward, (1, 0), (2, -1)).cumsum(axis=-1)
    arcs[..., 1:] += stay.cumsum(axis=-1)[:, :, None]  # the refresh at j = s + 1
    arcs[..., :-1] += refresh[:, :, None]
    arcs[..., -1] += np.moveaxis(always, 0, -1)[..., None]
    first, step = np.arange(F)[:, None, None], np.arange(T)[:, None]
    return np.asarray(arcs * ((step >= first) & (np.arange(T + 1) > step)))

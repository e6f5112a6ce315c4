"""Pure measures of how alike routing is between two passes.

Dimension letters: P pairs of passes, L mixture layers, T tokens, K experts per token, E experts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tidesim.trace.passes import Counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def cosine(a: Counts, b: Counts) -> Floats:
    """Return the cosine of two vectors of token counts.

    Parameters
    ----------
    a, b : [..., E] int64
        Tokens per expert. Never all zero: every token is routed to K experts in every layer.

    Returns
    -------
    [...] float64
        Exactly 1 for equal vectors: the root is taken of the product of the squared norms.
    """
    norms = (a * a).sum(axis=-1) * (b * b).sum(axis=-1).astype(np.float64)
    return np.asarray((a * b).sum(axis=-1) / np.sqrt(norms))


def jaccard(a: Counts, b: Counts) -> Floats:
    """Return the share of experts active in both among those active in either, [...].

    Parameters
    ----------
    a, b : [..., E] int64
        Tokens per expert; active means at least one token.
    """
    both = ((a > 0) & (b > 0)).sum(axis=-1)
    either = ((a > 0) | (b > 0)).sum(axis=-1)
    return np.asarray(both / either)


def ranking(counts: Counts) -> Ints:
    """Return expert ids from most to least used, ties to the lower id.

    Parameters
    ----------
    counts : [..., E] int64

    Returns
    -------
    [..., E] int64
    """
    return np.argsort(-counts, axis=-1, kind="stable")


def hits(earlier: Counts, ranked: Ints, later: Counts, budgets: Sequence[int]) -> Ints:
    """Count token-expert pairs of a pass served by the best experts of an earlier one.

    Slots that the earlier pass has no used expert for serve nothing: which experts lie in them
    is no matter of routing.

    Parameters
    ----------
    earlier : [..., E] int64
        Counts whose best B used experts are resident.
    ranked : [..., E] int64
        ``ranking(earlier)``.
    later : [..., E] int64
        Counts to serve.
    budgets : sequence of int
        Values of B.

    Returns
    -------
    [..., len(budgets)] int64
    """
    served = np.where(earlier > 0, later, 0)
    ordered = np.take_along_axis(served, ranked, axis=-1)
    return np.asarray(ordered.cumsum(axis=-1)[..., np.array(budgets) - 1])


def shared_experts(a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]) -> Ints:
    """Count the experts that a token uses in both passes.

    Parameters
    ----------
    a, b : [..., K] uint16
        Distinct expert ids of a token.

    Returns
    -------
    [...] int64
        0 to K.
    """
    return np.asarray((a[..., :, None] == b[..., None, :]).sum(axis=(-2, -1)))


def distinct_experts(experts: npt.NDArray[np.uint16], num_experts: int) -> Ints:
    """Count the different experts of each layer.

    Parameters
    ----------
    experts : [L, T, K] uint16
    num_experts : int

    Returns
    -------
    [L] int64
    """
    layers = experts.shape[0]
    active = np.zeros((layers, num_experts), dtype=np.bool_)
    active[np.arange(layers)[:, None], experts.reshape(layers, -1)] = True
    return np.asarray(active.sum(axis=-1))


def popularity(totals: Counts) -> Floats:
    """Return the share of hits of the k most used experts, mean over layers.

    Parameters
    ----------
    totals : [L, E] int64
        Tokens per expert over a whole trace.

    Returns
    -------
    [E] float64
        Share for k = 1 … E.
    """
    ordered = -np.sort(-totals, axis=-1)
    shares = ordered.cumsum(axis=-1) / totals.sum(axis=-1, keepdims=True)
    return np.asarray(shares.mean(axis=0))


def pairs_at_lag(steps: Ints, lag: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the positions (i, j) with ``steps[j] == steps[i] + lag``.

    Parameters
    ----------
    steps : [S] int64
        Strictly increasing.
    lag : int

    Returns
    -------
    i, j : [P] int64
    """
    _, earlier, later = np.intersect1d(steps + lag, steps, assume_unique=True, return_indices=True)
    return earlier, later

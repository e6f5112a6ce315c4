"""Which positions a step decodes, so that blocks take as many steps as a workload's do.

Every masked position is decoded with the same probability at every step, at least one of them:
the threshold rule with confidences drawn anew. The probability follows from tokens per forward.
"""

from functools import cache
from math import comb

import numpy as np
import numpy.typing as npt

_HALVINGS = 50


def expected_steps(positions: int, probability: float) -> float:
    """Return the mean number of steps until no position is masked.

    With m masked positions a step decodes max(1, X) of them, X binomial (m, probability).

    Parameters
    ----------
    positions : int
    probability : float
        0 to 1.
    """
    steps = [0.0]
    for m in range(1, positions + 1):
        binomial = [
            comb(m, n) * probability**n * (1 - probability) ** (m - n) for n in range(m + 1)
        ]
        at_least_one = [binomial[0] + binomial[1], *binomial[2:]]
        left = sum(share * steps[m - n] for n, share in enumerate(at_least_one, start=1))
        steps.append(1 + left)
    return steps[positions]


@cache
def probability_for(tokens_per_forward: float, positions: int) -> float:
    """Return the probability with which blocks take `positions` / `tokens_per_forward` steps.

    Parameters
    ----------
    tokens_per_forward : float
        Clipped to what a block can show: 1 to `positions`.
    positions : int
        Of a block.
    """
    wanted, low, high = positions / tokens_per_forward, 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if expected_steps(positions, middle) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def positions_to_commit(
    masked: npt.NDArray[np.bool_], probability: float, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Draw the positions that a step writes, at least one, [T] bool."""
    draws = np.where(masked, rng.random(len(masked)), np.inf)
    committed = draws < probability
    committed[np.argmin(draws)] = True
    return committed

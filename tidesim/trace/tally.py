"""Collect routing statistics block by block, in one pass over a trace."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidesim.errors import SettingError
from tidesim.trace.passes import Counts, Kind, Pass, Trace, Window, WindowedPass
from tidesim.trace.similarity import (
    Flags,
    Ints,
    cosine,
    distinct_experts,
    hits,
    jaccard,
    pairs_at_lag,
    popularity,
    ranking,
    shared_experts,
)
from tidesim.trace.windows import windowed_pairs

Seen = tuple[Pass, WindowedPass]


@dataclass(slots=True)
class Ratios:
    """Named sums over and sums under a fraction bar; each may be an array by layer, [L]."""

    _over: dict[Hashable, Any] = field(default_factory=dict)
    _under: dict[Hashable, Any] = field(default_factory=dict)

    def add(self, name: Hashable, over: Any, under: Any) -> None:
        """Add to both sides of a named fraction."""
        self._over[name] = self._over.get(name, 0) + over
        self._under[name] = self._under.get(name, 0) + under

    def under(self, name: Hashable) -> int:
        """Return the sum under the bar: how often something was counted."""
        return int(self._under.get(name, 0))

    def by_layer(self, name: Hashable) -> npt.NDArray[np.float64] | None:
        """Return the fraction, [L] or a scalar array, or None where nothing was counted."""
        under = np.asarray(self._under.get(name, 0), dtype=np.float64)
        return np.asarray(self._over[name] / under) if under.all() else None

    def mean(self, name: Hashable) -> float | None:
        """Return the fraction, mean over layers, or None where nothing was counted."""
        layers = self.by_layer(name)
        return None if layers is None else float(layers.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSteps:
    """The denoise passes of one block that take part in the statistics.

    Attributes
    ----------
    request : int
    steps : [S] int64
    counts : [S, L, E] int64
        In the chosen window.
    passes : tuple of Pass
        As stored.
    first_step, last_step, stored_steps : int
        Of the whole block, passes that do not take part included.
    """

    request: int
    steps: Ints
    counts: Counts
    passes: tuple[Pass, ...]
    first_step: int
    last_step: int
    stored_steps: int


def blocks(
    trace: Trace, window: Window, *, masked_at_most: int | None = None
) -> Iterator[BlockSteps]:
    """Yield the denoise passes of every block; memory holds one block.

    Parameters
    ----------
    trace : Trace
    window : Window
    masked_at_most : int, optional
        Keep passes with at most so many masked positions on entry.

    Raises
    ------
    SettingError
        `masked_at_most` given but masked positions were not recorded.
    """
    held: list[Seen] = []
    for seen in windowed_pairs(trace, window):
        pass_ = seen[0]
        if pass_.kind is not Kind.DENOISE:
            continue
        if held and (held[0][0].request, held[0][0].block) != (pass_.request, pass_.block):
            yield _block_steps(held, masked_at_most)
            held = []
        held.append(seen)
    if held:
        yield _block_steps(held, masked_at_most)


def _block_steps(held: Sequence[Seen], masked_at_most: int | None) -> BlockSteps:
    kept = [seen for seen in held if _takes_part(seen[0], masked_at_most)]
    return BlockSteps(
        request=held[0][0].request,
        steps=np.array([pass_.step for pass_, _ in kept], dtype=np.int64),
        counts=np.array([seen.counts for _, seen in kept], dtype=np.int64).reshape(
            len(kept), *held[0][1].counts.shape
        ),
        passes=tuple(pass_ for pass_, _ in kept),
        first_step=held[0][0].step,
        last_step=held[-1][0].step,
        stored_steps=len(held),
    )


def _takes_part(pass_: Pass, masked_at_most: int | None) -> bool:
    if masked_at_most is None:
        return True
    if pass_.masked is None:
        raise SettingError(
            f"masked_at_most is {masked_at_most}, but request {pass_.request}, block "
            f"{pass_.block}, step {pass_.step} does not record masked positions; leave it out"
        )
    return int(pass_.masked.sum()) <= masked_at_most


def add_block(
    ratios: Ratios, block: BlockSteps, *, lags: Sequence[int], budgets: Sequence[int]
) -> None:
    """Add what one block says.

    Fractions named ``stored_steps``, ``distinct``, ``distinct_squared``, ``single``, ``(cosine, lag)``,
    ``(jaccard, lag)``, ``(hits, lag, budget)``, ``(overlap, lag)``, ``popularity`` ([E]) and those of
    `_add_groups`.
    """
    S = len(block.steps)
    active = (block.counts > 0).sum(axis=-1)  # [S, L]
    ranked = ranking(block.counts)
    ratios.add("stored_steps", block.stored_steps, 1)
    ratios.add("distinct", active.sum(axis=0), S)
    ratios.add("distinct_squared", (active * active).sum(axis=0), S)
    ratios.add("single", int((block.counts == 1).sum()), int(active.sum()))
    if S:
        ratios.add("popularity", popularity(block.counts.sum(axis=0)), 1)
    for lag in lags:
        i, j = pairs_at_lag(block.steps, lag)
        a, b = block.counts[i], block.counts[j]  # [P, L, E]
        ratios.add(("cosine", lag), cosine(a, b).sum(axis=0), len(i))
        ratios.add(("jaccard", lag), jaccard(a, b).sum(axis=0), len(i))
        served = hits(a, ranked[i], b, budgets).sum(axis=(0, 1))
        for budget, pairs in zip(budgets, served.tolist(), strict=True):
            ratios.add(("hits", lag, budget), pairs, int(b.sum()))
        for earlier, later in zip(i.tolist(), j.tolist(), strict=True):
            _add_overlap(ratios, lag, block.passes[earlier], block.passes[later])
    _add_groups(ratios, block)


def _add_overlap(ratios: Ratios, lag: int, earlier: Pass, later: Pass) -> None:
    if earlier.experts is not None and later.experts is not None:
        shared = shared_experts(earlier.experts, later.experts)
        ratios.add(("overlap", lag), int(shared.sum()), earlier.experts.size)


def _add_groups(ratios: Ratios, block: BlockSteps) -> None:
    """Add ``(distinct, group)`` and ``(overlap, group)`` of masked and decoded positions."""
    for pass_ in block.passes:
        if pass_.experts is not None and pass_.masked is not None:
            _add_distinct(ratios, "masked", pass_.experts[:, pass_.masked], block)
            _add_distinct(ratios, "decoded", pass_.experts[:, ~pass_.masked], block)
    for i, j in zip(*pairs_at_lag(block.steps, 1), strict=True):
        earlier, later = block.passes[i], block.passes[j]
        if earlier.experts is None or later.experts is None:
            continue
        if earlier.masked is None or later.masked is None:
            continue
        shared = shared_experts(earlier.experts, later.experts)  # [L, T]
        top_k = earlier.experts.shape[-1]
        groups: dict[str, Flags] = {
            "masked": earlier.masked & later.masked,
            "decoded": ~earlier.masked & ~later.masked,
            "just_decoded": earlier.masked & ~later.masked,
        }
        for group, positions in groups.items():
            chosen = shared[:, positions]
            ratios.add(("overlap", group), int(chosen.sum()), chosen.size * top_k)


def _add_distinct(
    ratios: Ratios, group: str, experts: npt.NDArray[np.uint16], block: BlockSteps
) -> None:
    if experts.size:
        distinct = distinct_experts(experts, block.counts.shape[-1])
        ratios.add(("distinct", group), int(distinct.sum()), len(distinct))


def add_between(ratios: Ratios, before: BlockSteps, after: BlockSteps) -> None:
    """Add the similarity of two consecutive blocks of a request.

    Fractions named ``last_to_next_first`` and ``same_step``.
    """
    last, first = before.steps == before.last_step, after.steps == after.first_step
    if last.any() and first.any():
        alike = cosine(before.counts[last][0], after.counts[first][0])  # [L]
        ratios.add("last_to_next_first", float(alike.sum()), len(alike))
    _, i, j = np.intersect1d(before.steps, after.steps, assume_unique=True, return_indices=True)
    alike = cosine(before.counts[i], after.counts[j])  # [P, L]
    ratios.add("same_step", float(alike.sum()), alike.size)

"""The paper's closed form, fitted to training requests: a baseline for the solver."""

import numpy as np

from solver import ClosedFormTerms
from tidesim.costs import Block, LayerTimer, TrainingBlocks, moves
from tidesim.placement import FloatArray
from tidesim.simulate.case import Case
from tidesim.simulate.chunks import Loads


def closed_form_terms(case: Case, budget: int) -> ClosedFormTerms:
    """Fit the terms of the paper's closed form to the requests of a case.

    - drift d: mean share of the B busiest experts that were not among them one step before.
    - miss share f(τ): share of token-expert pairs that residents of interval τ miss, over all
      denoise steps of all blocks, made non-decreasing by a running maximum.
    - C_IO: seconds of one expert's copy to the GPU, alone on the link.
    - C_CPU: the slope through the origin that fits C_CPU · B · f(τ) best, by least squares over
      τ = 1..T, to the CPU's mean seconds per step and layer (transfers included, nothing hidden).

    Raises
    ------
    SettingError, FormatError
        As `arc_costs`.

    Notes
    -----
    Source of the equations: TIDE, arXiv 2605.20179, equations 5 and 6. How the authors fit their
    terms is not published; this is ours.
    """
    blocks = TrainingBlocks.of(case)
    profile = _PaperProfile(case, budget, blocks.steps)
    for block in blocks:
        if block.steps:
            profile.add(block)
    share, cpu_s = profile.by_interval(blocks.steps)
    load = budget * share
    return ClosedFormTerms(
        promotion_s=profile.promotion_s,
        miss_s=float(load @ cpu_s / (load @ load)) if load.any() else 0.0,
        budget=budget,
        drift=profile.drift,
        miss_share=share,
    )


class _PaperProfile:
    """Sums over blocks that the closed form's terms follow from, at one budget."""

    def __init__(self, case: Case, budget: int, steps: int) -> None:
        self._layers, self._budget = LayerTimer(case, budget), budget
        self._promoted = self._possible = self._layer_passes = 0
        self._missed, self._cpu_s = np.zeros((2, steps, steps))  # [last refresh, step]
        self._pairs = 0

    @property
    def promotion_s(self) -> float:
        """C_IO."""
        return self._layers.prices.prices.to_gpu_s

    @property
    def drift(self) -> float:
        """d, kept below 1."""
        return min(self._promoted / max(self._possible, 1), 1 - 1e-12)

    def add(self, block: Block) -> None:
        """Add the steps of one block."""
        counts = block.counts
        resident = self._layers.residents(counts)
        self._promoted += int(moves(resident[:-1], resident[1:], counts[1:]).sum())
        self._possible += resident[1:, :, 0].size * self._budget
        first, later = np.triu_indices(len(block.steps))
        missed = counts[later] * ~resident[first]
        work = self._layers.prices.work(
            Loads.of(np.zeros_like(missed)),
            Loads.of(missed),
            tokens=np.array([[block.steps[step].tokens] for step in later]),
            shared_s=np.zeros(1),
        )
        self._missed[first, later] += missed.sum(axis=(1, 2))
        self._cpu_s[first, later] += (work.hidden + work.cpu + work.result).sum(axis=1)
        self._pairs += int(counts.sum())
        self._layer_passes += counts.shape[0] * counts.shape[1]

    def by_interval(self, steps: int) -> tuple[FloatArray, FloatArray]:
        """Return f, and CPU seconds per step and layer, of τ = 1..T; [T] each."""
        step = np.arange(steps)
        refreshed = [step - step % interval for interval in range(1, steps + 1)]
        missed = np.array([self._missed[last, step].sum() for last in refreshed])
        cpu_s = np.array([self._cpu_s[last, step].sum() for last in refreshed])
        share: FloatArray = np.maximum.accumulate(missed / self._pairs)
        return share, cpu_s / self._layer_passes

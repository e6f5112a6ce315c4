"""The paper's closed form, fitted to training requests: a baseline for the solver."""

import numpy as np

from solver import ClosedFormTerms
from tidesim.costs.blocks import Block, TrainingBlocks
from tidesim.costs.ordered import Option, Ordered
from tidesim.costs.residents import Replay, initial_residents
from tidesim.placement import FloatArray
from tidesim.simulate.case import Case
from tidesim.simulate.chunks import Loads
from tidesim.simulate.prices import Prices
from tidesim.simulate.work import WorkPrices


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
        self._prices = WorkPrices(Prices(case.latency, case.setup.engine, case.spec))
        self._budget, options = budget, [Option(budget)]
        self._replay = Replay(
            options,
            initial=initial_residents(case.setup, options),
            due=np.ones((steps, case.setup.layers), dtype=np.bool_),
        )
        self._promoted = self._possible = self._layer_passes = 0
        self._missed, self._cpu_s = np.zeros((2, steps, steps))  # [last refresh, step]
        self._pairs = 0

    @property
    def promotion_s(self) -> float:
        """C_IO."""
        return self._prices.prices.to_gpu_s

    @property
    def drift(self) -> float:
        """d, kept below 1."""
        return min(self._promoted / max(self._possible, 1), 1 - 1e-12)

    def add(self, block: Block) -> None:
        """Add the steps of one block."""
        counts = np.stack([pass_.counts for pass_ in block.steps], axis=1)  # [L, N, E]
        ordered = Ordered(counts, np.array([self._budget]))
        resident = self._replay.block(ordered, len(block.steps), always=True)[:, 0]
        self._promoted += int((ordered.targets[:, 0, 1:] & ~resident[:, :-1]).sum())
        self._possible += resident[:, 1:, 0].size * self._budget
        first, later = np.triu_indices(len(block.steps))
        missed = counts[:, later] * ~resident[:, first]
        work = self._prices.work(
            Loads.of(np.zeros_like(missed)),
            Loads.of(missed),
            tokens=np.array([block.steps[step].tokens for step in later]),
            shared_s=np.zeros(1),
        )
        self._missed[first, later] += missed.sum(axis=(0, 2))
        self._cpu_s[first, later] += (work.hidden + work.cpu + work.result).sum(axis=0)
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

"""Judge: what a schedule is worth, against every fixed interval and against hindsight."""

from dataclasses import dataclass, replace
from typing import Any

from tidesim.optimize.answer import Optimised
from tidesim.optimize.search import run_job
from tidesim.simulate import SimulationResult
from tidesim.simulate.fast import run_fast


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a schedule is worth on the held-out requests, or the training ones if all are.

    Attributes
    ----------
    best_fixed : SimulationResult
        The fastest of tide at every interval 1..T, each simulated with an equal budget.
    hindsight : SimulationResult or None
        The best schedule for the held-out requests themselves, searched for in the same way, on
        them; None without any.
    regret : float or None
        How much longer the schedule takes than hindsight's, relative to hindsight's seconds. Below
        0 where the search in hindsight found less.
    """

    best_fixed: SimulationResult
    hindsight: SimulationResult | None
    regret: float | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        hindsight = self.hindsight
        return {
            "best_fixed_interval": self.best_fixed.interval,
            "best_fixed_tokens_per_s": self.best_fixed.tokens_per_s,
            "hindsight_tokens_per_s": hindsight.tokens_per_s if hindsight else None,
            "regret": self.regret,
        }


def judge(solved: Optimised) -> Judgement:
    """Simulate every fixed interval, and search anew in hindsight, on the held-out requests.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.optimize import optimize
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> settings = {"budget": 16, "sizes": load_model_spec("llada2.0-mini")}
    >>> judged = judge(optimize(trace, load_profile("a100-40gb-pcie4-xeon48"), **settings))
    >>> judged.best_fixed.interval, f"{judged.regret:.1%}"
    (1, '2.4%')
    """
    job = solved.job
    judged = job.heldout or job.training
    fixed = (
        run_fast(replace(job.fixed(interval), trace=judged))
        for interval in range(1, solved.costs.steps + 1)
    )
    best_fixed = max(fixed, key=lambda result: result.tokens_per_s)
    if job.heldout is None or solved.heldout is None:
        return Judgement(best_fixed=best_fixed, hindsight=None, regret=None)
    hindsight = run_job(replace(job, training=job.heldout, heldout=None)).training
    return Judgement(
        best_fixed=best_fixed,
        hindsight=hindsight,
        regret=hindsight.tokens_per_s / solved.heldout.tokens_per_s - 1,
    )

"""Answer: a schedule, the solutions on the way to it, and its simulation."""

from dataclasses import dataclass, field
from typing import Any

from solver import Formulation, Solution
from tidesim.costs import CostTable, Option
from tidesim.optimize.job import Job
from tidesim.schedule import Schedule
from tidesim.simulate import SimulationResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One solution: from costs around the best schedule so far.

    Attributes
    ----------
    solution : Solution
    training : SimulationResult
        Its schedule on the training requests.
    simulated_s : float
        What the objective stands for, simulated: mean seconds per block, plus the risk's share.
    seconds : float
        Wall time of costs, solution and simulation.
    """

    solution: Solution
    training: SimulationResult
    simulated_s: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        return {
            "status": str(self.solution.status),
            "objective_s": self.solution.objective_s,
            "bound_s": self.solution.bound_s,
            "gap": self.solution.gap,
            "simulated_s": self.simulated_s,
            "variables": self.solution.variables,
            "constraints": self.solution.constraints,
            "solver_seconds": self.solution.seconds,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimised:
    """A schedule, how it was found, and its simulation.

    Attributes
    ----------
    schedule : Schedule
    solution : Solution
        Its proof: objective and bound under the costs of the last round.
    costs : CostTable
        Of the training requests, in the last round.
    training : SimulationResult
        The schedule on the requests its costs come from.
    heldout : SimulationResult or None
        The schedule on the others; None where the trace marks none.
    simulated_s : float
        What the objective stands for, simulated on the training requests.
    rounds : tuple of Round
    job : Job
    """

    schedule: Schedule
    solution: Solution
    costs: CostTable
    training: SimulationResult
    heldout: SimulationResult | None
    simulated_s: float
    rounds: tuple[Round, ...]
    job: Job = field(repr=False)

    @property
    def difference(self) -> float | None:
        """Relative error of the objective against the simulation; None for the paper's terms.

        0 to rounding under blocking promotion, unless the rounds ran out before the costs were
        those around the schedule. In the background the objective is an estimate.
        """
        if self.solution.formulation is Formulation.CLOSED_FORM:
            return None
        assert self.solution.objective_s is not None
        return self.solution.objective_s / self.simulated_s - 1

    @property
    def cost_by_interval_s(self) -> tuple[float, ...]:
        """The objective of each interval 1..T at the chosen budget; empty where layers differ."""
        return self.solution.cost_by_interval_s

    @property
    def unfilled(self) -> float:
        """Share of refreshes at the chosen options that find fewer active experts than slots."""
        at = dict(zip(self.costs.options, self.costs.unfilled.tolist(), strict=True))
        layers = self.schedule.layers
        shares = [at[Option(layer.budget, layer.most_promotions)] for layer in layers]
        return float(sum(shares) / len(shares))

    def to_json(self) -> dict[str, Any]:
        """Return the answer of ``tidesim solve``, keys stable."""
        solution, heldout = self.solution, self.heldout
        return {
            "status": str(solution.status),
            "interval": solution.interval,
            "budget": solution.budget[0] if len(set(solution.budget)) == 1 else None,
            "budgets": list(solution.budget),
            "refresh_steps": [list(steps) for steps in solution.refresh_steps],
            "most_promotions": list(solution.promotions),
            "promotion": self.training.promotion,
            "objective_s": solution.objective_s,
            "bound_s": solution.bound_s,
            "gap": solution.gap,
            "seconds": sum(one.seconds for one in self.rounds),
            "solver_seconds": sum(one.solution.seconds for one in self.rounds),
            "rounds": [one.to_json() for one in self.rounds],
            "formulation": str(solution.formulation),
            "backend": str(solution.backend),
            "train_tokens_per_s": self.training.tokens_per_s,
            "heldout_tokens_per_s": heldout.tokens_per_s if heldout else None,
            "simulated_s_per_block": self.training.seconds_per_block,
            "difference": self.difference,
            "unfilled": self.unfilled,
            "variables": solution.variables,
            "constraints": solution.constraints,
            "sizes": self.training.sizes,
            "provenance": self.training.provenance,
            "hardware": self.training.hardware,
            "message": solution.message,
        }

"""Run a PuLP model on a backend, quietly, and say plainly how it ended."""

import math
import tempfile
from dataclasses import dataclass
from enum import StrEnum

import pulp

from solver.errors import BackendError, ProblemError
from solver.solution import Backend

#: Accuracy expected of a backend, relative to the unit its objective is counted in.
BACKEND_ACCURACY = 1e-5


class Ending(StrEnum):
    """How a backend's run ended."""

    PROVED = "proved"  # values hold an answer, proved to within the gap asked
    INCUMBENT = "incumbent"  # values hold an answer, stopped before the proof
    STOPPED = "stopped"  # stopped without an answer; the values mean nothing
    INFEASIBLE = "infeasible"  # proved that no answer exists


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a backend may run and how good a proof is good enough.

    Parameters
    ----------
    time_limit_s
        Wall seconds the backend may take, above 0.
    gap
        Relative gap at which it may stop, at least 0 and below 1.

    Raises
    ------
    ProblemError
        If either is out of its range.
    """

    time_limit_s: float
    gap: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise ProblemError(
                f"time_limit_s is {self.time_limit_s!r}, must be a finite number of seconds above "
                "0: give the backend some time."
            )
        if not 0 <= self.gap < 1:
            raise ProblemError(
                f"gap is {self.gap!r}, must be at least 0 and below 1: 0.001 asks for 0.1 %."
            )


# PuLP's `status` calls a run that stopped on time with an incumbent Optimal; `sol_status` does not.
_ENDINGS = {
    pulp.LpSolutionOptimal: Ending.PROVED,
    pulp.LpSolutionIntegerFeasible: Ending.INCUMBENT,
    pulp.LpSolutionNoSolutionFound: Ending.STOPPED,
    pulp.LpSolutionInfeasible: Ending.INFEASIBLE,
}


def run(model: pulp.LpProblem, limits: Limits, *, backend: Backend) -> Ending:
    """Solve ``model`` in place, single-threaded and silent, and leave no file behind.

    Raises
    ------
    BackendError
        If the backend cannot run or ends in a way the models here cannot.
    """
    runner = _RUNNERS[backend]
    with tempfile.TemporaryDirectory(prefix="tidesim-solver-") as folder:
        try:
            runner(model, limits, folder)
        except (pulp.PulpSolverError, OSError) as error:
            raise BackendError(
                f"{backend.upper()} could not run ({error}): reinstall PuLP and highspy, and check "
                "that the temporary folder can be written."
            ) from error
    if model.sol_status not in _ENDINGS:
        outcome = pulp.LpSolution.get(model.sol_status, model.sol_status)
        raise BackendError(
            f"{backend.upper()} ended with {outcome!r}: look for extreme values in the costs."
        )
    return _ENDINGS[model.sol_status]


def _run_cbc(model: pulp.LpProblem, limits: Limits, folder: str) -> None:
    if len(folder.split()) != 1:  # PuLP splits CBC's command line at blanks
        raise BackendError(
            f"The temporary folder {folder!r} has a blank in its name, which CBC cannot take: "
            "set TMPDIR to one without."
        )
    # COIN_CMD with the bundled binary: PULP_CBC_CMD, the same thing, is deprecated.
    cbc = pulp.COIN_CMD(
        path=pulp.PULP_CBC_CMD.pulp_cbc_path,
        msg=False,
        timeLimit=limits.time_limit_s,
        gapRel=limits.gap,
        options=["preprocess off"],  # which cuts off the optimum of small choices under a limit
    )
    cbc.tmpDir = folder
    model.solve(cbc)


def _run_highs(model: pulp.LpProblem, limits: Limits, _: str) -> None:
    highs = pulp.HiGHS(msg=False, timeLimit=limits.time_limit_s, gapRel=limits.gap, threads=1)
    model.solve(highs)  # in this process, without files


_RUNNERS = {Backend.CBC: _run_cbc, Backend.HIGHS: _run_highs}


def describe(ending: Ending, limits: Limits, backend: Backend, *, listed: str) -> str:
    """Say in one sentence what a backend proved; without a proof the answer is from a list."""
    if ending is Ending.PROVED:
        return f"{backend.upper()} proved the answer to a gap of {limits.gap:g}."
    return (
        f"{backend.upper()} stopped after {limits.time_limit_s:g} s without a proof; "
        f"answer and bound come from listing {listed}."
    )


def confirm(
    ending: Ending, found_s: float | None, *, best_s: float | None, gap: float, unit_s: float
) -> None:
    """Compare what a backend claims with the best of a list; None stands for no answer.

    Raises
    ------
    BackendError
        If the two contradict each other.
    """
    if ending is Ending.INFEASIBLE and best_s is not None:
        raise BackendError(
            f"The backend found no answer, but a listed choice takes {best_s:g} s: report this."
        )
    if ending is not Ending.PROVED:
        return
    if found_s is None or best_s is None:
        raise BackendError("The backend proved an answer that breaks a constraint: report this.")
    if found_s > best_s / (1 - gap) + BACKEND_ACCURACY * unit_s:
        raise BackendError(
            f"The backend proved {found_s:g} s, but a listed choice takes {best_s:g} s: report this."
        )

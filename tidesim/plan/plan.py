"""Plan: every machine and memory budget assessed and priced, and the cheapest that will do."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidesim.errors import CapacityError, RunError, SettingError
from tidesim.hardware import HardwareProfile
from tidesim.optimize import in_memory
from tidesim.plan.assess import Assessment, Method, Site, assess
from tidesim.plan.prices import Assumptions
from tidesim.plan.rows import Goal, NotAssessable, Row, TooSmall, row_of
from tidesim.processes import count_workers, processes
from tidesim.trace.passes import Trace

if TYPE_CHECKING:
    import pandas as pd

Watch = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Every machine and memory budget, fastest first, and the choice among them.

    Attributes
    ----------
    rows : tuple of Row
    goal : Goal
    assumed : Assumptions
    method : Method
    not_assessable : tuple of NotAssessable
    too_small : tuple of TooSmall
    """

    rows: tuple[Row, ...]
    goal: Goal
    assumed: Assumptions
    method: Method
    not_assessable: tuple[NotAssessable, ...]
    too_small: tuple[TooSmall, ...]

    @property
    def choice(self) -> Row | None:
        """The cheapest machine that probably meets the goal; None where none does.

        With a speed asked for, the cheapest by the hour, bought or rented; without, the cheapest
        by the token. Of equals the faster.
        """
        return self._cheapest(("surely", "probably", None))

    @property
    def sure_choice(self) -> Row | None:
        """The cheapest machine that meets the goal even at the low end of its band."""
        return self._cheapest(("surely", None))

    def _cheapest(self, meets: Sequence[str | None]) -> Row | None:
        by_hour = self.goal.tokens_per_s is not None

        def price(row: Row) -> float:
            asked = row.costs.usd_per_h if by_hour else row.costs.usd_per_mtoken
            return math.inf if asked is None else asked

        fit = [row for row in self.rows if row.meets in meets and row.affordable]
        priced = [row for row in fit if price(row) < math.inf]
        return min(priced, key=lambda row: (price(row), -row.tokens_per_s), default=None)

    def frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas table, nested values left out."""
        import pandas as pd  # noqa: PLC0415 (a heavy import, paid only where a table is wanted)

        rows = [row.to_json() for row in self.rows]
        return pd.DataFrame(rows).drop(columns=list(_NESTED) if rows else [])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, keys stable."""
        choice, sure = self.choice, self.sure_choice
        return {
            "rows": [row.to_json() for row in self.rows],
            "choice": None if choice is None else choice.to_json(),
            "sure_choice": None if sure is None else sure.to_json(),
            "target_tokens_per_s": self.goal.tokens_per_s,
            "max_price_usd": self.goal.most_usd,
            "not_assessable": [
                {"hardware": one.hardware, "missing": list(one.missing)}
                for one in self.not_assessable
            ],
            "too_small": [one._asdict() for one in self.too_small],
            "assumptions": {
                "years": self.assumed.years,
                "use": self.assumed.use,
                "usd_per_kwh": self.assumed.usd_per_kwh,
                "run_error": self.method.run_error,
            },
            "engine": self.method.engine,
            "formulation": self.method.formulation,
            "sizes": self.rows[0].found.result.sizes if self.rows else None,
            "provenance": self.rows[0].found.result.provenance if self.rows else None,
        }


_NESTED = ("waited", "budgets", "memory", "upgrades")


def plan(
    trace: Trace,
    machines: Sequence[HardwareProfile],
    *,
    memory_bytes: Sequence[int | None] = (None,),
    goal: Goal | None = None,
    method: Method | None = None,
    assumed: Assumptions | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Plan:
    """Assess machines for a model's requests, and choose among them.

    Parameters
    ----------
    trace : Trace
        Held in memory meanwhile.
    machines : sequence of HardwareProfile
    memory_bytes : sequence of (int or None)
        GPU memory to use; None is all that the machine has. What is more than a machine has is
        among `Plan.too_small`.
    goal : Goal or None
        Speed and price asked for; without any, all machines are in the running.
    method : Method or None
        How schedules are found.
    assumed : Assumptions or None
        What turns prices into prices per token.
    workers : int or None
        Processes; all cores by default, and 1 computes in this one. A script that uses more must
        guard its start by ``if __name__ == "__main__"``.
    watch : callable or None
        Told how many assessments are done, and of how many.

    Raises
    ------
    SettingError, FormatError
        As `optimize`; or no machine was given.
    RunError
        A process died.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.model_spec import load_model_spec
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> method = Method(sizes=load_model_spec("llada2.0-mini"), upgrades=False)
    >>> names = ("a100-40gb-pcie4-xeon48", "rtx4090-24gb-pcie4-desktop")
    >>> machines = [load_profile(name) for name in names]
    >>> found = plan(trace, machines, memory_bytes=[4_000_000_000], method=method, workers=1)
    >>> found.choice.hardware
    'rtx4090-24gb-pcie4-desktop'
    >>> [row.hardware for row in found.rows]
    ['rtx4090-24gb-pcie4-desktop', 'a100-40gb-pcie4-xeon48']
    """
    if not machines:
        raise SettingError("no machine to assess; give at least one")
    goal, method, assumed = goal or Goal(), method or Method(), assumed or Assumptions()
    lacks = [method.missing(machine) for machine in machines]
    sites = [
        site
        for one, missing in zip(machines, lacks, strict=True)
        if not missing
        for site in _sites(one, memory_bytes)
    ]
    done = _assessed(in_memory(trace), sites, method, workers=workers, watch=watch)
    found = [done[number] for number in range(len(sites))]
    rows = [row_of(one, goal, assumed) for one in found if isinstance(one, Assessment)]
    return Plan(
        rows=tuple(sorted(rows, key=lambda row: -row.tokens_per_s)),
        goal=goal,
        assumed=assumed,
        method=method,
        not_assessable=tuple(
            NotAssessable(machine.name, missing)
            for machine, missing in zip(machines, lacks, strict=True)
            if missing
        ),
        too_small=tuple(one for one in found if isinstance(one, TooSmall)),
    )


def _sites(machine: HardwareProfile, memory_bytes: Sequence[int | None]) -> list[Site]:
    """Return a machine with every memory budget once; None is all it has."""
    there = int(machine.value("gpu.memory_bytes"))
    sizes = dict.fromkeys(there if size is None else size for size in memory_bytes)
    return [Site(profile=machine, memory_bytes=size) for size in sizes]


def _assessed(
    trace: Trace,
    sites: Sequence[Site],
    method: Method,
    *,
    workers: int | None,
    watch: Watch | None,
) -> dict[int, Assessment | TooSmall]:
    """Assess every site, by its number, here or in processes."""
    needed = count_workers(workers, tasks=len(sites))
    outcomes = _here if needed == 1 else _beside
    found: dict[int, Assessment | TooSmall] = {}
    for number, outcome in outcomes(trace, sites, method, needed):
        found[number] = outcome
        if watch is not None:
            watch(len(found), len(sites))
    return found


Outcomes = Iterator[tuple[int, Assessment | TooSmall]]


def _here(trace: Trace, sites: Sequence[Site], method: Method, _workers: int) -> Outcomes:
    for number, site in enumerate(sites):
        yield number, _outcome(trace, site, method)


def _beside(trace: Trace, sites: Sequence[Site], method: Method, workers: int) -> Outcomes:
    with processes(workers) as pool:
        running = {
            pool.submit(_outcome, trace, site, method): number for number, site in enumerate(sites)
        }
        for future in as_completed(running):
            try:
                yield running[future], future.result()
            except BrokenProcessPool:
                raise RunError(
                    "a process that assessed a machine died, perhaps for want of memory; "
                    "use fewer workers or a shorter trace"
                ) from None


def _outcome(trace: Trace, site: Site, method: Method) -> Assessment | TooSmall:
    """Assess a site; one that does not hold the model says so."""
    try:
        return assess(trace, site, method)
    except CapacityError as error:
        return TooSmall(site.profile.name, site.memory_bytes / 1e9, str(error))

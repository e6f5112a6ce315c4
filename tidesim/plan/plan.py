"""Plan: every machine and memory budget assessed and priced, and the cheapest that will do."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidesim.errors import CapacityError, RunError, SettingError, TidesimError
from tidesim.hardware import HardwareProfile
from tidesim.optimize import in_memory, splits
from tidesim.plan.assess import Assessment, Method, Site, assess
from tidesim.plan.prices import Assumptions
from tidesim.plan.rows import Goal, LeftOut, NotAssessable, Row, row_of
from tidesim.processes import count_workers, processes
from tidesim.trace.passes import Trace

if TYPE_CHECKING:
    import pandas as pd

Watch = Callable[[int, int], None]
Outcomes = Iterator[tuple[int, Assessment | TidesimError]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Every machine and memory budget, fastest first, and the choice among them.

    Attributes
    ----------
    rows : tuple of Row
    goal : Goal
    assumed : Assumptions
    method : Method
    model : str
        Whose sizes are served.
    requests : int
        Requests that results come from.
    split : str
        Which: ``heldout``, or ``train`` or ``all`` where the trace marks none as held out.
    not_assessable : tuple of NotAssessable
    left_out : tuple of LeftOut
    """

    rows: tuple[Row, ...]
    goal: Goal
    assumed: Assumptions
    method: Method
    model: str
    requests: int
    split: str
    not_assessable: tuple[NotAssessable, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def choice(self) -> Row | None:
        """The cheapest machine that probably meets the goal; None where none does.

        With a speed asked for, the cheapest by the hour, bought or rented; without, the cheapest
        by the token. Of equals the faster.
        """
        return self._cheapest(("surely", "probably", None))

    @property
    def sure_choice(self) -> Row | None:
        """The cheapest machine that is as fast as asked for even at the low end of its band."""
        return self._cheapest(("surely",))

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
            "left_out": [one._asdict() for one in self.left_out],
            "assumptions": {
                "years": self.assumed.years,
                "use": self.assumed.use,
                "usd_per_kwh": self.assumed.usd_per_kwh,
                "run_error": self.method.run_error,
                "gap": self.method.gap,
            },
            "model": self.model,
            "requests": self.requests,
            "split": self.split,
            "engine": self.method.engine,
            "formulation": self.method.formulation,
            "sizes": self.rows[0].found.result.sizes if self.rows else None,
            "provenance": self.rows[0].found.result.provenance if self.rows else None,
            "trace_sha256": self.rows[0].found.result.trace_sha256 if self.rows else None,
        }


_NESTED = ("waited", "budgets", "memory", "solver", "upgrades")


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
        among `Plan.left_out`.
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
    SettingError, FormatError, RunError
        No machine was given, or two different ones of one name; or every assessment failed, as
        `optimize` does or because its process died. One that fails beside others is among
        `Plan.left_out`.

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
    machines = _distinct(machines)
    goal, method, assumed = goal or Goal(), method or Method(), assumed or Assumptions()
    lacks = [method.missing(machine) for machine in machines]
    sites = [
        site
        for one, missing in zip(machines, lacks, strict=True)
        if not missing
        for site in _sites(one, memory_bytes)
    ]
    trace = in_memory(trace)
    found = _assessed(trace, sites, method, workers=workers, watch=watch)
    rows = [row_of(one, goal, assumed) for one in found if isinstance(one, Assessment)]
    training, heldout = splits(trace)
    infos = (heldout or training).meta.requests
    return Plan(
        rows=tuple(sorted(rows, key=lambda row: -row.tokens_per_s)),
        goal=goal,
        assumed=assumed,
        method=method,
        model=(method.sizes or trace.meta.model).name,
        requests=len(infos),
        split=infos[0].split if len(infos) < len(trace.meta.requests) else "all",
        not_assessable=tuple(
            NotAssessable(machine.name, missing)
            for machine, missing in zip(machines, lacks, strict=True)
            if missing
        ),
        left_out=tuple(
            LeftOut(site.profile.name, site.memory_bytes / 1e9, str(one))
            for site, one in zip(sites, found, strict=True)
            if isinstance(one, TidesimError)
        ),
    )


def _distinct(machines: Sequence[HardwareProfile]) -> list[HardwareProfile]:
    """Return every machine once.

    Raises
    ------
    SettingError
        There is none, or two different ones have one name.
    """
    if not machines:
        raise SettingError("no machine to assess; give at least one")
    named: dict[str, HardwareProfile] = {}
    for one in machines:
        other = named.setdefault(one.name, one)
        if other.sha256 != one.sha256:
            raise SettingError(
                f"{other.file} and {one.file} are different machines of one name, {one.name}; "
                "give one of them another under [machine]"
            )
    return list(named.values())


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
) -> list[Assessment | TidesimError]:
    """Assess every site, in order, here or in processes.

    Raises
    ------
    TidesimError
        All failed, and not for want of memory alone.
    """
    needed = count_workers(workers, tasks=len(sites))
    outcomes = _here if needed == 1 else _beside
    done: dict[int, Assessment | TidesimError] = {}
    for number, outcome in outcomes(trace, sites, method, needed):
        done[number] = outcome
        if watch is not None:
            watch(len(done), len(sites))
    found = [done[number] for number in range(len(sites))]
    faults = [one for one in found if isinstance(one, TidesimError)]
    other = [one for one in faults if not isinstance(one, CapacityError)]
    if other and len(faults) == len(found):
        raise other[0]
    return found


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
                yield (
                    running[future],
                    RunError(
                        "a process that assessed machines died, perhaps for want of memory; use fewer "
                        "workers or a shorter trace"
                    ),
                )


def _outcome(trace: Trace, site: Site, method: Method) -> Assessment | TidesimError:
    try:
        return assess(trace, site, method)
    except TidesimError as error:
        return error

"""Small problems for the optimiser, and their optima by enumeration and by a model over arcs."""

import math
from itertools import chain, combinations, pairwise, product
from typing import NamedTuple

import numpy as np
import pulp
from hypothesis import strategies as st

from solver import Formulation, Problem, Use, refresh_steps

COUPLINGS = ("risk", "caps", "background", "caps and risk", "caps and background")
sometimes = st.booleans()


def numbers(draw, shape):
    """Numbers from a drawn seed: whole ones, which tie, or any."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(sometimes):
        return rng.integers(0, 4, shape).astype(float)
    return rng.random(shape) * 3


def use(draw, measures, problem_shape, *, never, fixed=True):
    """A use of schedules, of small numbers."""
    return Use(
        arcs=numbers(draw, (measures, *problem_shape)),
        fixed=numbers(draw, measures) if fixed else np.zeros(measures),
        never=numbers(draw, (measures, *problem_shape[:2])) if never else None,
    )


@st.composite
def problems(draw, *, limited=sometimes, coupling="", most_steps=4):
    """Problems of up to 3 layers, 3 options and few steps; memory and caps may be too small."""
    layers, options = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    steps = draw(st.integers(1, most_steps))
    never = draw(sometimes)
    shape = (layers, options, draw(st.integers(1, steps)), steps, steps + 1)
    size = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, math.inf]))
    sizes = sorted(draw(st.lists(size, min_size=options, max_size=options, unique=True)))
    limits = [None if m == math.inf else m for _, m in sizes]
    slots = draw(st.integers(0, layers * sizes[-1][0]))
    given = {
        "steps": steps,
        "budgets": np.array([size for size, _ in sizes]),
        "promotions": tuple(limits) if len({b for b, _ in sizes}) < options else None,
        "arc_cost_s": numbers(draw, shape),
        "never_s": numbers(draw, shape[:2]) if never else None,
        "fixed_s": draw(st.integers(0, 3)),
        "expert_bytes": 10,
        "memory_bytes": slots * 10 if draw(limited) else None,
    }
    return Problem(**given | coupled(draw, shape, coupling, never=never))


def coupled(draw, shape, coupling, *, never):
    """What a problem's couplings add to it."""
    steps, added = shape[3], {}
    if "risk" in coupling:
        added["requests"] = use(draw, draw(st.integers(1, 3)), shape, never=never)
        added["risk"] = draw(st.sampled_from([0.5, 1.0, 4.0]))
    if "caps" in coupling or "background" in coupling:
        added["copies"] = use(draw, steps, shape, never=never, fixed=False)
    if "caps" in coupling:
        cap = st.sampled_from([0.0, 1.0, 2.5, 4.0, math.inf])
        added["most_copies"] = np.array(draw(st.lists(cap, min_size=steps, max_size=steps)))
    if "background" in coupling:
        split = added["step_s"] = use(draw, steps + 1, shape, never=never)
        added["copy_s"] = draw(st.sampled_from([0.25, 1.0, 3.0]))
        added["arc_cost_s"] = split.arcs.sum(axis=0)
        added["never_s"] = split.never.sum(axis=0) if never else None
        added["fixed_s"] = float(split.fixed.sum())
    return added


def schedules(problem, formulation):
    """Every schedule of one layer that the formulation allows; none at all is never."""
    steps, firsts = problem.steps, problem.arc_cost_s.shape[2]
    if formulation is Formulation.FREE:
        every = chain.from_iterable(combinations(range(steps), n + 1) for n in range(steps))
        listed = [path for path in every if path[0] < firsts]
    else:
        listed = [refresh_steps(steps, interval) for interval in range(1, steps + 1)]
    return listed if problem.never_s is None else [*listed, ()]


def walked(arcs, never, place, path):
    """The sum of one layer's arcs, ``place`` its layer and option; of each measure, if many."""
    if not path:
        return never[..., *place]
    ends = pairwise((*path, arcs.shape[-2]))
    return sum(arcs[..., *place, path[0], i, j] for i, j in ends)


class Sums(NamedTuple):
    """What placements take; a use that the problem lacks stays a 0."""

    slots: np.ndarray
    cost_s: np.ndarray
    requests: np.ndarray  # [..., R]
    copies: np.ndarray  # [..., T]
    step_s: np.ndarray  # [..., T + 1]


def sums_of(problem, choices):
    """What one layer's (option, schedule) pairs take, one after another."""

    def of(use, place, path):
        return np.zeros(1) if use is None else walked(use.arcs, use.never, place, path)

    rows = [
        (
            int(problem.budgets[place[1]]),
            walked(problem.arc_cost_s, problem.never_s, place, path),
            *(of(use, place, path) for use in (problem.requests, problem.copies, problem.step_s)),
        )
        for place, path in choices
    ]
    return Sums(*(np.array(parts) for parts in zip(*rows, strict=True)))


def seconds_of(problem, sums):
    """Seconds per block of placements, infinite where one breaks the memory or a cap."""
    total_s = problem.fixed_s + sums.cost_s
    if problem.risk:
        total_s = total_s + problem.risk * (problem.requests.fixed + sums.requests).max(axis=-1)
    if problem.step_s is not None:
        total_s, waiting_s = 0.0, np.zeros(sums.cost_s.shape)
        for step in range(problem.steps + 1):
            compute_s = problem.step_s.fixed[step] + sums.step_s[..., step]
            lasts_s = np.maximum(compute_s, waiting_s)
            total_s = total_s + lasts_s
            if step < problem.steps:
                waiting_s = waiting_s + problem.copy_s * sums.copies[..., step] - lasts_s
                waiting_s = np.maximum(waiting_s, 0.0)
    allowed = np.ones(sums.cost_s.shape, dtype=bool)
    if problem.memory_bytes is not None:
        allowed &= sums.slots * problem.expert_bytes <= problem.memory_bytes
    if problem.most_copies is not None:
        allowed &= (sums.copies <= problem.most_copies + 1e-9).all(axis=-1)
    return np.where(allowed, total_s, np.inf)


def enumerated_s(problem, formulation):
    """The least seconds per block of every schedule and option of every layer; inf if none fits."""
    paths, options = schedules(problem, formulation), range(problem.budgets.size)
    if formulation is Formulation.UNIFORM:
        pairs = product(options, paths)
        totals = [
            sums_of(problem, [((layer, option), path) for layer in range(problem.layers)])
            for option, path in pairs
        ]
        whole = (Sums(*(part.sum(axis=0) for part in total)) for total in totals)
        return min(float(seconds_of(problem, total)) for total in whole)
    total = None
    for layer in range(problem.layers):
        own = sums_of(problem, [((layer, k), path) for k, path in product(options, paths)])
        total = own if total is None else Sums(*map(all_pairs, total, own))
    return float(seconds_of(problem, total).min())


def all_pairs(one, other):
    """The sums of every pair of entries of two first axes, as one first axis."""
    pairs = one[:, None] + other[None]
    return pairs.reshape(-1, *pairs.shape[2:])


def arc_model(problem):
    """The model over arcs of `free`: binaries say whether a layer at an option takes an arc.

    Its flow from the first refresh to step T is one unit where (layer, option, first) is chosen.
    """
    model = pulp.LpProblem("arcs", pulp.LpMinimize)
    layers, options, firsts, steps, _ = problem.arc_cost_s.shape
    taken = {
        (x, k, f, i, j): model.add_variable(f"z_{x}_{k}_{f}_{i}_{j}", cat=pulp.LpBinary)
        for x, k, f in np.ndindex(layers, options, firsts)
        for i, j in combinations(range(f, steps + 1), 2)
    }
    never = {
        place: model.add_variable("n_{}_{}".format(*place), cat=pulp.LpBinary)
        for place in np.ndindex(layers, options)
        if problem.never_s is not None
    }
    out = {
        (x, k, f): pulp.lpSum(taken[x, k, f, f, j] for j in range(f + 1, steps + 1))
        for x, k, f in np.ndindex(layers, options, firsts)
    }
    for x, k, f in out:
        for s in range(f + 1, steps):
            came = pulp.lpSum(taken[x, k, f, i, s] for i in range(f, s))
            left = pulp.lpSum(taken[x, k, f, s, j] for j in range(s + 1, steps + 1))
            model += came == left
    has = {
        (x, k): pulp.lpSum(out[x, k, f] for f in range(firsts)) + never.get((x, k), 0)
        for x, k in np.ndindex(layers, options)
    }
    for x in range(layers):
        model += pulp.lpSum(has[x, k] for k in range(options)) == 1
    if problem.slots is not None:
        used = (int(problem.budgets[k]) * has[x, k] for x, k in has)
        model += pulp.lpSum(used) <= problem.slots

    def of(arcs, stays):
        parts = [float(arcs[key]) * z for key, z in taken.items()]
        return pulp.lpSum(parts + [float(stays[key]) * n for key, n in never.items()])

    model.setObjective(_objective(model, problem, of))
    return model


def _objective(model, problem, of):
    """Add the couplings of an arc model, and return what it minimises."""

    def measure(use, q):
        return float(use.fixed[q]) + of(use.arcs[q], None if use.never is None else use.never[q])

    if problem.most_copies is not None:
        for s in np.flatnonzero(np.isfinite(problem.most_copies)):
            model += measure(problem.copies, s) <= float(problem.most_copies[s]) + 1e-7
    total = problem.fixed_s + of(problem.arc_cost_s, problem.never_s)
    if problem.risk:
        slowest = model.add_variable("slowest")
        for q in range(problem.requests.fixed.size):
            model += slowest >= measure(problem.requests, q)
        total += problem.risk * slowest
    if problem.step_s is not None:
        lasts = [model.add_variable(f"t_{s}", 0) for s in range(problem.steps + 1)]
        waits = [model.add_variable(f"q_{s}", 0) for s in range(problem.steps + 1)]
        for s in range(problem.steps + 1):
            model += lasts[s] >= measure(problem.step_s, s)
            model += lasts[s] >= waits[s]
        for s in range(problem.steps):
            issued = problem.copy_s * measure(problem.copies, s)
            model += waits[s + 1] >= waits[s] + issued - lasts[s]
        model += waits[0] == 0
        total = pulp.lpSum(lasts)
    return total

"""Words: a plan's answers in sentences, the same ones on the terminal and on the page."""

from collections.abc import Iterator

from tidesim.plan.plan import Plan
from tidesim.plan.rows import Row


def asked(found: Plan) -> str:
    """Say what was asked for."""
    goal = found.goal
    parts = [
        None if goal.tokens_per_s is None else f"{goal.tokens_per_s:g} tokens/s",
        None if goal.most_usd is None else f"at most {goal.most_usd:,.0f} USD to buy",
    ]
    return ", ".join(part for part in parts if part) or "a million tokens at the least price"


def answers(found: Plan) -> Iterator[tuple[str, str]]:
    """Yield what to get and what would help it, each under its name.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.plan import Goal, Method, plan
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> method = Method(upgrades=False)
    >>> found = plan(trace, [machine], method=method, goal=Goal(most_usd=99.0), workers=1)
    >>> for name, text in answers(found):
    ...     print(f"{name}: {text.partition(';')[0]}")
    asked for: at most 99 USD to buy
    cheapest: none at that price, as far as prices are known
    """
    choice, sure = found.choice, found.sure_choice
    yield "asked for", asked(found)
    yield "cheapest", offer(choice) if choice else _none(found)
    if found.goal.tokens_per_s is not None:
        yield "cheapest to be sure", _sure(choice, sure)
    if choice is not None and choice.found.upgrades:
        best = choice.best_upgrade
        told = (
            f"{best.name} twice as good ({100 * best.gain:+.1f} %)"
            if best
            else "none of four parts"
        )
        yield "helps it most", told


def offer(row: Row) -> str:
    """Say what a machine does and costs."""
    band, costs = row.found.band, row.costs
    told = (
        f"{row.name}: {row.tokens_per_s:.4g} tokens/s ({band.low:.3g} to {band.high:.3g}), bound by "
        f"the {row.found.result.bottleneck}"
    )
    if costs.usd_per_h is not None:
        told += (
            f"; {costs.way}, {costs.usd_per_h:.3g} USD an hour and {costs.usd_per_mtoken:.3g} per "
            "million tokens"
        )
    if costs.price_usd is not None:
        told += f" ({costs.price_usd:,.0f} USD to buy)"
    if costs.wh_per_mtoken is not None:
        told += f"; {costs.wh_per_mtoken:,.0f} Wh per million tokens"
    return told


def _sure(choice: Row | None, sure: Row | None) -> str:
    if sure is None:
        return "none with a known price, at the low end of its band"
    return "the same" if sure is choice else offer(sure)


def _none(found: Plan) -> str:
    """Say why nothing is chosen, and what comes nearest."""
    if not found.rows:
        return "none could be assessed"
    fast = [row for row in found.rows if row.meets in {"surely", "probably", None}]
    if not fast:
        return f"none is as fast; the fastest is {offer(found.rows[0])}"
    if not any(row.affordable for row in fast):
        return f"none at that price, as far as prices are known; the fastest is {offer(fast[0])}"
    return f"none with a known price; without one: {offer(fast[0])}"


def scope(found: Plan) -> str:
    """Say what was run: whose routing at whose sizes, how many requests of it.

    Examples
    --------
    >>> from tidesim.hardware import load_profile
    >>> from tidesim.plan import Goal, Method, plan
    >>> from tidesim.trace.io import load_trace
    >>> trace = load_trace("tide-tiny-mixed").only((3, 26))
    >>> machine = load_profile("a100-40gb-pcie4-xeon48")
    >>> method = Method(upgrades=False)
    >>> scope(plan(trace, [machine], method=method, workers=1))
    'tide-tiny, captured routing; 1 held-out request, one at a time; times simulated'
    """
    run = found.rows[0].found.result if found.rows else None
    what = f"{run.sizes}, {run.provenance} routing" if run else found.model
    which = {"heldout": " held-out", "train": " training", "all": ""}[found.split]
    return f"{what}; {found.requests}{which} request{'s' * (found.requests > 1)}, one at a time; times simulated"

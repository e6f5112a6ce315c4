"""Vary: parameters of the process with one number at another value."""

from tidesim.trace.synth.parameters import Deviation, Parameters

TOKENS = "tokens_per_forward"
_DRIFT = "1 - "
_AS_IT_IS = ("repeat_share",)  # a share of tokens, no correlation


def variables(parameters: Parameters) -> dict[str, float]:
    """Return the numbers that may vary, by name.

    A correlation from one step to the next is near 1, so that its drift, what it lacks of 1, is what
    varies. Tokens per forward are the mean over workloads.
    """
    found = {}
    for name in type(parameters.routing).model_fields:
        number = getattr(parameters.routing, name)
        if isinstance(number, Deviation) or name in _AS_IT_IS:
            found[name] = number.value
        else:
            found[_DRIFT + name] = 1 - number.value
    rates = [workload.tokens_per_forward for workload in parameters.workloads.values()]
    return found | {TOKENS: sum(rates) / len(rates)}


def varied(parameters: Parameters, name: str, value: float) -> Parameters:
    """Return parameters in which one of `variables` has another value.

    Correlations stay between 0 and 1; all workloads' tokens per forward change by the same factor
    and stay at 1 or above.
    """
    if name == TOKENS:
        factor = value / variables(parameters)[TOKENS]
        workloads = {
            key: workload.model_copy(
                update={TOKENS: max(1.0, workload.tokens_per_forward * factor)}
            )
            for key, workload in parameters.workloads.items()
        }
        return parameters.model_copy(update={"workloads": workloads})
    field = name.removeprefix(_DRIFT)
    number = getattr(parameters.routing, field)
    most = number.value + value if isinstance(number, Deviation) else 1.0
    kept = min(most, max(0.0, 1 - value if name.startswith(_DRIFT) else value))
    number = number.model_copy(update={"value": kept})
    routing = parameters.routing.model_copy(update={field: number})
    return parameters.model_copy(update={"routing": routing})

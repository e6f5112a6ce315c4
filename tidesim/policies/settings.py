"""What a user chooses beside a policy, checked: slots, interval, promotion, training requests."""

import numpy as np

from tidesim.engines import Promotion
from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.placement import FloatArray, popularity
from tidesim.trace.passes import Trace, Window


def check_choices(spec: ModelSpec, *, budget: int | None, interval: int | None) -> None:
    """Refuse slots and intervals that no policy can work with.

    Raises
    ------
    SettingError
        One of them is out of range.
    """
    if interval is not None and interval < 1:
        raise SettingError(f"interval is {interval} but must be at least 1 step")
    top_k = spec.num_experts_per_tok
    if budget is not None and not top_k <= budget <= spec.num_experts:
        raise SettingError(
            f"budget is {budget} but must be {top_k} (one token's experts) to {spec.num_experts} "
            "(all experts of a layer)"
        )


def get_promotion(name: str | None) -> Promotion | None:
    """Return a promotion by name; None stays None.

    Raises
    ------
    SettingError
        No promotion of that name.
    """
    if name is None:
        return None
    if name not in set(Promotion):
        known = ", ".join(Promotion)
        raise SettingError(f"promotion {name!r} is not known; use one of: {known}")
    return Promotion(name)


def known_popularity(spec: ModelSpec, training: Trace | None, window: Window) -> FloatArray:
    """Return the tokens of every expert over training requests, [L, E]; zeros without any.

    Raises
    ------
    SettingError
        The training requests are of another model.
    """
    shape = (spec.moe_layers, spec.num_experts)
    if training is None:
        return np.zeros(shape, dtype=np.float64)
    counted = popularity(training, window=window)
    if counted.shape != shape:
        raise SettingError(
            f"the training requests are of a model with {counted.shape[0]} layers of "
            f"{counted.shape[1]} experts, {spec.name} has {shape[0]} of {shape[1]}; "
            "give training requests of the same model"
        )
    return counted

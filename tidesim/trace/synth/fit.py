"""Fit the process to statistics: damped Gauss-Newton steps on synthetic traces of equal draws.

A miss m is (statistic of a synthetic trace - target) / tolerance; the loss is the mean square of
m (1 + |m|), so that the worst statistics count most. The seed stays the same, which makes it nearly
smooth in the parameters; standard deviations move by their logarithm, shares and correlations k by
the logarithm of 1 - k. With every step each layer's spread is scaled towards the distinct experts it
is to have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidesim.errors import SettingError
from tidesim.model_spec import ModelSpec
from tidesim.trace.synth.figures import figures
from tidesim.trace.synth.generate import synthesize
from tidesim.trace.synth.parameters import Kept, Parameters, Routing

Vector = npt.NDArray[np.float64]
ROUNDS = 12
_DIFFERENCE = 0.1  # of the transformed parameters
_LONGEST_STEP = 0.7
_DAMPING = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the mean curvature, tried in turn
_LIMIT = 9.0  # transformed parameters stay within ±9
_SPREAD_POWER = 0.8  # below 1, or layers would swing about their numbers
_BY_LAYER = "late.by_layer.{}.distinct_experts.mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much a fit does: what is drawn for every evaluation, and how many rounds at most."""

    requests: int
    gen_length: int
    seed: int = 0
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        for name in ("requests", "rounds"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)} but a fit takes 1 or more")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit found.

    Attributes
    ----------
    parameters : Parameters
    reached : tuple of float
        The statistic of every target, of the synthetic trace that the fit looked at.
    by_layer : tuple of float
        Distinct experts of every layer in late steps, of the same trace.
    """

    parameters: Parameters
    reached: tuple[float, ...]
    by_layer: tuple[float, ...]

    @property
    def misses(self) -> Vector:
        """How far every statistic is from its target, in tolerances, [targets]."""
        return np.array(
            [
                (value - target.value) / target.tolerance
                for target, value in zip(self.parameters.targets, self.reached, strict=True)
            ]
        )

    @property
    def loss(self) -> float:
        """Mean square of the residuals."""
        return float(np.mean(_residuals(self.misses) ** 2))


def fit(
    parameters: Parameters,
    model: ModelSpec,
    effort: Effort,
    *,
    observe: Callable[[int, Fitted], None] = lambda _round, _fitted: None,
) -> Fitted:
    """Fit routing numbers and spread to the targets of `parameters`, starting from its numbers.

    Parameters
    ----------
    parameters : Parameters
    model : ModelSpec
    effort : Effort
    observe : callable
        Called after every round with its number, from 1, and the best so far.
    """
    best = _with_spread(_evaluate(parameters, model, effort), model, effort)
    for number in range(1, effort.rounds + 1):
        jacobian = _jacobian(best, model, effort)
        for damping in _DAMPING:
            moved = _moved(best.parameters, _step(best, jacobian, damping))
            tried = _with_spread(_evaluate(moved, model, effort), model, effort)
            if tried.loss < best.loss:
                best = tried
                break
        else:
            break
        observe(number, best)
    return best


_LACKING = 10.0  # tolerances by which a statistic that a trace does not show counts as missed


def _evaluate(parameters: Parameters, model: ModelSpec, effort: Effort) -> Fitted:
    native = model.block_length
    lengths = dict.fromkeys([native, *(t.block_length or native for t in parameters.targets)])
    found = {length: _figures(parameters, model, effort, length) for length in lengths}
    return Fitted(
        parameters,
        tuple(
            found[t.block_length or native].get(t.figure, t.value + _LACKING * t.tolerance)
            for t in parameters.targets
        ),
        tuple(found[native].get(_BY_LAYER.format(n), 0.0) for n in range(model.moe_layers)),
    )


def _figures(
    parameters: Parameters, model: ModelSpec, effort: Effort, block_length: int
) -> dict[str, float]:
    return figures(
        synthesize(
            parameters,
            model,
            requests=effort.requests,
            gen_length=effort.gen_length,
            seed=effort.seed,
            block_length=block_length,
        )
    )


def _with_spread(fitted: Fitted, model: ModelSpec, effort: Effort) -> Fitted:
    """Scale every layer's spread towards its distinct experts; the mean goes into deviations."""
    parameters = fitted.parameters
    wanted = parameters.spread_by_layer.distinct_experts
    if not wanted:
        return fitted
    ratio = np.array(fitted.by_layer) / np.array(wanted)
    spread = np.array(parameters.spread_by_layer.value) * ratio**_SPREAD_POWER
    mean = float(spread.mean())
    shared = ("popularity_std", "topic_std", "context_std", "mask_std")
    moved = _with_values(
        parameters, {name: getattr(parameters.routing, name).value * mean for name in shared}
    )
    by_layer = moved.spread_by_layer.model_copy(
        update={"value": tuple(np.round(spread / mean, 4).tolist())}
    )
    return _evaluate(moved.model_copy(update={"spread_by_layer": by_layer}), model, effort)


def _residuals(misses: Vector) -> Vector:
    return np.asarray(misses * (1 + np.abs(misses)))


def _jacobian(fitted: Fitted, model: ModelSpec, effort: Effort) -> Vector:
    """Return d residual / d transformed parameter, [targets, parameters]."""
    here = _residuals(fitted.misses)
    columns = []
    for step in _DIFFERENCE * np.eye(len(Routing.model_fields)):
        there = _evaluate(_moved(fitted.parameters, step), model, effort)
        columns.append((_residuals(there.misses) - here) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _step(fitted: Fitted, jacobian: Vector, damping: float) -> Vector:
    normal = jacobian.T @ jacobian
    scale = damping * np.trace(normal) / len(normal)
    downhill = -jacobian.T @ _residuals(fitted.misses)
    step = np.linalg.solve(normal + scale * np.eye(len(normal)), downhill)
    return np.asarray(step * min(1.0, _LONGEST_STEP / max(np.abs(step).max(), 1e-9)))


def _moved(parameters: Parameters, step: Vector) -> Parameters:
    values = {}
    for (name, number), by in zip(parameters.routing, step.tolist(), strict=True):
        kept = isinstance(number, Kept)
        start = np.log(max(1 - number.value if kept else number.value, np.exp(-_LIMIT)))
        end = float(np.exp(np.clip(start + by, -_LIMIT, 0 if kept else _LIMIT)))
        values[name] = 1 - end if kept else end
    return _with_values(parameters, values)


def _with_values(parameters: Parameters, values: dict[str, float]) -> Parameters:
    numbers = {
        name: getattr(parameters.routing, name).model_copy(update={"value": round(value, 5)})
        for name, value in values.items()
    }
    return parameters.model_copy(update={"routing": parameters.routing.model_copy(update=numbers)})

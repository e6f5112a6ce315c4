"""Parameters of the process: one TOML file per model, every number with what it was fitted to."""

import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tidesim.errors import FormatError
from tidesim.resources import find, write_text
from tidesim.strict import Strict, sentence

FORMAT: Final = "tidesim-synth"
VERSION = 1
KIND = "traces/synth"
MIXED = "mixed"  # all workloads of a file, request by request in turn


class Number(Strict):
    """A parameter: its value and the statistics or reason it comes from."""

    value: float
    fitted_to: str = Field(min_length=1)


class Deviation(Number):
    """A standard deviation, in units of a decoded position's own."""

    value: float = Field(ge=0, le=100)


class Kept(Number):
    """A correlation, such as of one step and the next, or a probability."""

    value: float = Field(ge=0, le=1)


class Spread(Strict):
    """Factors of the shared part of the logits over depth, first mixture layer to last.

    Attributes
    ----------
    value : tuple of float
        Mean 1, so that deviations hold for the mean layer.
    distinct_experts : tuple of float
        Active experts of each layer in late steps that the factors were fitted to; empty where
        no layer's number is known.
    fitted_to : str
    """

    value: tuple[float, ...] = Field(min_length=1)
    distinct_experts: tuple[float, ...] = ()
    fitted_to: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= factor <= 100 for factor in self.value):
            msg = "must be factors from 0 to 100"
            raise ValueError(msg)
        if not any(self.value):
            msg = "must have a factor above 0"
            raise ValueError(msg)
        if self.distinct_experts and len(self.distinct_experts) != len(self.value):
            msg = "must have as many distinct_experts as factors, or none"
            raise ValueError(msg)
        return self


class Workload(Strict):
    """How requests of one kind are decoded."""

    tokens_per_forward: float = Field(ge=1, le=10_000)
    prompt_tokens: int = Field(ge=1, le=1_000_000)
    source: str = Field(min_length=1)


class Target(Strict):
    """A statistic to meet: its name in `figures`, its value, and how far off a trace may be."""

    figure: str = Field(min_length=1)
    value: float
    tolerance: float = Field(gt=0)
    source: str = Field(min_length=1)
    block_length: int | None = Field(default=None, ge=1)


class Routing(Strict):
    """The numbers of the process; `tidesim.trace.synth.process` says what each does."""

    popularity_std: Deviation
    topic_std: Deviation
    context_std: Deviation
    context_keep: Kept
    mask_std: Deviation
    masked_std: Deviation
    decoded_keep: Kept
    masked_keep: Kept
    jump_keep: Kept
    repeat_share: Kept
    repeat_keep: Kept


class Parameters(Strict):
    """A file of parameters.

    Attributes
    ----------
    model : str
        Name of the model they were fitted for.
    model_seed : int
        Draws what belongs to the model itself: the popularity of experts, the mask's routing.
    """

    format: Literal["tidesim-synth"]
    version: int = Field(ge=VERSION, le=VERSION)
    model: str = Field(min_length=1)
    note: str = ""
    model_seed: int = Field(ge=0)
    routing: Routing
    spread_by_layer: Spread
    workloads: dict[str, Workload] = Field(min_length=1)
    targets: tuple[Target, ...] = ()


def load_parameters(name_or_path: str | Path) -> Parameters:
    """Read a file of parameters, bundled by model name or by path.

    Raises
    ------
    NotFoundError, FormatError
        No such file; a key or value that breaks a rule.

    Examples
    --------
    >>> load_parameters("llada2.0-mini").model
    'llada2.0-mini'
    """
    path = find(KIND, name_or_path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid TOML ({error}); repair or replace it") from None
    try:
        return Parameters.model_validate(_tuples(data))
    except RecursionError:
        raise FormatError(f"{path}: a key has too many parts; repair it") from None
    except ValidationError as error:
        form = f"{FORMAT} {VERSION}"
        text = sentence(error, Parameters, form=form, repair=lambda *_: "repair it")
        raise FormatError(f"{path}: {text}") from None


def _tuples(value: Any) -> Any:
    """Turn the lists of parsed TOML into tuples, which strict models ask for."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def save_parameters(parameters: Parameters, path: str | Path) -> None:
    """Write parameters whole or not at all; `load_parameters` reads back the same.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    write_text(path, to_toml(parameters))


def to_toml(parameters: Parameters) -> str:
    """Return parameters as TOML, one number a line with what it was fitted to."""
    content = parameters.model_dump(exclude_none=True)
    lines = [
        f"{key} = {_value(content[key])}"
        for key in ("format", "version", "model", "note", "model_seed", "spread_by_layer")
    ]
    lines += ["", "[routing]", *(f"{key} = {_value(v)}" for key, v in content["routing"].items())]
    for name, workload in content["workloads"].items():
        lines += ["", f"[workloads.{_value(name)}]"]
        lines += [f"{key} = {_value(value)}" for key, value in workload.items()]
    for target in content["targets"]:
        lines += ["", "[[targets]]", *(f"{key} = {_value(v)}" for key, v in target.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # JSON leaves only DEL unescaped that TOML forbids
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)

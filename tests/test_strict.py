import json
from typing import Annotated, Any, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from tidesim.errors import FormatError
from tidesim.strict import Strict, hint, sentence, short


class Layer(Strict):
    budget: int = Field(ge=1)
    copy_s: float = 0.0


class Plan(Strict):
    version: int = Field(ge=1, le=1)
    layers: Annotated[tuple[Layer, ...], Field(strict=False, min_length=1)]
    named: dict[str, Layer] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.layers) == 2:
            raise ValueError("holds two layers")
        return self


def refused(text: str) -> str:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate_json(text)
    return sentence(caught.value, Plan, form="plan 1", repair=lambda _, path: f"see {path}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 1, "layers": [{"budget": 0}]}',
         "layers.0.budget is 0 but must be at least 1; see ('layers', '0', 'budget')"),
        ('{"version": 1, "layers": [{"budget": true}]}',
         "layers.0.budget is True but must be a whole number; see ('layers', '0', 'budget')"),
        ('{"version": 1, "layers": [{"budget": 1, "copy_ms": 2}]}',
         "layers.0.copy_ms = 2 is no key of plan 1; write copy_s, in seconds"),
        ('{"version": 1, "layers": [{"budget": 1}], "named": {"copy_s": {"buget": 2}}}',
         "named.copy_s.buget = 2 is no key of plan 1; did you mean budget?"),
        ('{"version": 1, "layers": []}', "layers is [] but must not be empty; see ('layers',)"),
        ('{"version": 1}', "layers is missing but needed; add it"),
        ('{"version": 2, "more": 3}', "version is 2 but must be 1; see ('version',)"),
        ('{"version": 1, "layers": [{"budget": 1}, {"budget": 1}]}', "holds two layers; see ()"),
        ("[]", "must be a table; see ()"),
        ('{"version": 1', "Invalid JSON: EOF while parsing an object at line 1 column 13; see ()"),
        ('{"version": 1 1}', "Invalid JSON: expected `,` or `}` at line 1 column 15; see ()"),
    ],
)  # fmt: skip
def test_the_first_error_is_one_sentence(text: str, expected: str) -> None:
    assert refused(text) == expected


def test_a_long_or_wrapped_value_is_shown_short() -> None:
    assert short([7] * 100) == "[" + "7, " * 18 + "7,..."
    assert short({"value": 3, "source": "x"}) == "3"
    assert short(10**5000) == "a huge integer"
    assert short(deep(10_000)) == "something deeply nested"


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_long_key_is_shown_short() -> None:
    keys = "k" * 5000

    assert len(refused(json.dumps({"version": 1, "layers": [], keys: 1}))) < 200


def test_an_error_is_one_printable_line() -> None:
    broken = FormatError("a\nb\ud800\u202e é")

    assert str(broken) == "a\\nb\\ud800\\u202e é"


def test_a_hint_lists_what_is_near_when_nothing_is_meant() -> None:
    known = [f"gpu.{letter}" for letter in "abcdefghijkl"] + ["cpu.cores"]

    assert hint("cpu.kittens", known) == "known are cpu.cores"
    assert hint("gpu.kittens", known).endswith("gpu.i, …")

"""Schedule files: what is written is read back, what is wrong is named, what does not fit refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import sample_trace

from tidesim.errors import FormatError, NotFoundError, OutputError, SettingError
from tidesim.hardware import load_profile
from tidesim.schedule import (
    Schedule,
    check_schedule,
    json_schema,
    load_schedule,
    save_schedule,
    sizes_source,
)
from tidesim.trace.passes import Trace

A100 = load_profile("a100-40gb-pcie4-xeon48")


def content(**changes):
    """Return a valid file as Python values: two layers, interval 2 of 3 steps."""
    prediction = {
        "requests": 1,
        "tokens_per_s": 10.0,
        "seconds_per_block": 0.4,
        "step_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
        "bottleneck": "cpu",
    }
    usual = {
        "format": "tidesim-schedule",
        "version": 1,
        "tool_version": "0.1.0",
        "model": {"name": "small", "moe_layers": 2, "num_experts": 8, "num_experts_per_tok": 2},
        "sizes": {"name": "small", "sha256": "", "provenance": ""},
        "trace": {"name": "sample", "sha256": "a" * 64, "provenance": "synthetic"},
        "profile": {"name": A100.name, "sha256": A100.sha256, "provenance": "datasheet"},
        "engine": "tidesim",
        "policy": "tide",
        "settings": {"interval": 2},
        "promotion": "blocking",
        "steps": 3,
        "interval": 2,
        "layers": [{"budget": 4, "refresh_steps": [0, 2]}] * 2,
        "memory_bytes": 10**9,
        "predictions": {"train": prediction, "heldout": prediction},
        "solver": {
            "formulation": "uniform",
            "backend": "cbc",
            "status": "optimal",
            "objective_s": 0.4,
            "bound_s": 0.4,
            "gap": 0.0,
            "seconds": 0.1,
        },
    }
    return usual | changes


def made(**changes):
    return Schedule.model_validate_json(json.dumps(content(**changes)))


def changed(path, value):
    """Return a valid file's values with one replaced, or dropped where the value is ..."""
    data = json.loads(json.dumps(content()))
    *parts, last = path.split(".")
    at = data
    for part in parts:
        at = at[int(part) if isinstance(at, list) else part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


@st.composite
def schedules(draw):
    steps, layers = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    some = st.sets(st.integers(0, steps - 1)).map(sorted)
    data = content(
        steps=steps,
        interval=None,
        layers=[
            {
                "budget": draw(st.integers(2, 8)),
                "refresh_steps": draw(some),
                "most_promotions": draw(st.none() | st.integers(1, 9)),
                "initial": draw(st.none() | st.sets(st.integers(0, 7), max_size=2).map(sorted)),
            }
            for _ in range(layers)
        ],
        model=content()["model"] | {"moe_layers": layers},
        predictions={"train": content()["predictions"]["train"]},
    )
    return Schedule.model_validate_json(json.dumps(data))


@settings(deadline=None, max_examples=40)
@given(schedules())
def test_what_is_saved_is_loaded_back(tmp_path_factory, schedule):
    path = tmp_path_factory.mktemp("schedules") / "s.json"

    save_schedule(schedule, path)

    assert load_schedule(path) == schedule


def test_equal_schedules_are_equal_bytes_and_budgets_are_by_layer(tmp_path):
    save_schedule(made(), tmp_path / "a.json")
    save_schedule(load_schedule(tmp_path / "a.json"), tmp_path / "b.json")

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert made().budgets == (4, 4)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", ..., "format is missing but needed"),
        ("format", "tidesim-trace", "format is 'tidesim-trace' but must be 'tidesim-schedule'"),
        ("version", 2, "version is 2 but must be 1; this tidesim reads"),
        ("memory_bytes", ..., "memory_bytes is missing but needed"),
        ("colour", "red", "colour = 'red' is no key of tidesim-schedule 1"),
        ("layers.0.buget", 4, "layers.0.buget = 4 is no key .* did you mean budget?"),
        ("layers.1.budget", 0, "layers.1.budget is 0 but must be at least 1"),
        ("layers.1.budget", 9, r"layers.1.budget must be 2 \(top-k\) to 8"),
        ("layers.1.budget", 4.5, "layers.1.budget is 4.5 but"),
        ("layers.0.refresh_steps", [2, 0], "refresh_steps must increase"),
        ("layers.0.refresh_steps", [0, 1], "refresh_steps must be those of interval 2"),
        ("layers.0.most_promotions", 0, "layers.0.most_promotions is 0 but must be at least 1"),
        ("layers.0.most_promotions", 1.5, "layers.0.most_promotions is 1.5 but"),
        ("layers.1.initial", [-1, 3], "layers.1.initial.0 is -1 but must be at least 0"),
        ("layers.1.initial", [3, 3], "layers.1.*initial must increase from expert to expert"),
        ("layers.1.initial", [0, 1, 2, 3, 4], "layers.1.*initial must be at most budget = 4"),
        ("layers.1.initial", [0, 8], "layers.1.initial must be below num_experts = 8"),
        ("layers.1.initial", 3, "layers.1.initial is 3 but"),
        ("interval", 0, "interval is 0 but must be at least 1"),
        ("steps", 2, "refresh_steps must be below steps = 2"),
        ("steps", 10**30, "steps is 10+ but must be at most 32768"),
        ("layers", [], "layers is .* but must not be empty"),
        ("layers", [{"budget": 4, "refresh_steps": [0, 2]}], "holds 1 layers, not moe_layers = 2"),
        ("promotion", "later", "promotion is 'later' but must be 'blocking' or 'background'"),
        ("trace.sha256", "xyz", "trace.sha256 is 'xyz' but must be a SHA-256 digest"),
        ("solver.objective_s", float("nan"), "objective_s is nan but must be finite"),
        ("solver.gap", -0.1, "solver.gap is -0.1 but must be at least 0"),
        ("predictions.train.tokens_per_s", "fast", "tokens_per_s is 'fast' but must be a number"),
        ("policy", " ", "policy is ' ' but must not be blank"),
    ],
)
def test_a_wrong_file_is_refused_by_name_key_value_and_rule(tmp_path, path, value, says):
    file = tmp_path / "s.json"
    file.write_text(json.dumps(changed(path, value)))

    with pytest.raises(FormatError, match=f"^{file}: .*{says}") as caught:
        load_schedule(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": NaN', "\x00"])
def test_what_is_no_schedule_at_all_is_refused_in_one_sentence(tmp_path, text):
    file = tmp_path / "s.json"
    file.write_text(text)

    with pytest.raises(FormatError, match=f"^{file}: ") as caught:
        load_schedule(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(NotFoundError, match="no such schedule file"):
        load_schedule(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot be read"):
        load_schedule(tmp_path)


def test_a_schedule_is_not_written_where_nothing_can_be(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_schedule(made(), tmp_path / "none" / "s.json")


def sample(sha256="a" * 64):
    trace = sample_trace()
    return Trace(trace.meta, list(trace), sha256=sha256)


def check(schedule, trace, profile, **more):
    check_schedule(schedule, trace.meta.model, trace=trace, profile=profile, **more)


def test_a_schedule_fits_what_it_was_made_for_and_what_has_no_digest():
    check(made(), sample(), A100)
    check(made(), sample(sha256=""), A100, sizes=sample().meta.model)
    check_schedule(made(), sample().meta.model)


def test_a_what_if_on_the_machine_a_schedule_was_made_for_is_that_machine_still():
    check(made(), sample(), A100.with_overrides({"gpu.launch_s": 1e-6}))


@pytest.mark.parametrize(
    ("schedule", "trace", "profile", "what"),
    [
        (made(), sample("b" * 64), A100, r"another trace \(aaaaaaaaaaaa, not bbbbbbbbbbbb\)"),
        (made(), sample(), load_profile("rtx4090-24gb-pcie4-desktop"), "another profile"),
        (made(model=content()["model"] | {"name": "big"}), sample(), A100, "another model"),
    ],
)
def test_another_trace_profile_or_model_is_refused_unless_forced(schedule, trace, profile, what):
    with pytest.raises(SettingError, match=what):
        check(schedule, trace, profile)
    check(schedule, trace, profile, forced=True)


@pytest.mark.parametrize("key", ["num_experts", "num_experts_per_tok"])
def test_other_experts_are_refused_even_when_forced(key):
    model = content()["model"]
    other = made(model=model | {key: model[key] + 1})

    with pytest.raises(SettingError, match=f"{key} = {model[key] + 1}"):
        check(other, sample(), A100, forced=True)


def test_old_layers_set_no_limit_and_leave_the_first_residents_to_the_engine():
    (layer, _) = made().layers

    assert (layer.most_promotions, layer.initial) == (None, None)


def test_the_published_schema_says_what_a_layer_may_hold():
    layer = json_schema()["$defs"]["LayerSchedule"]

    assert layer["required"] == ["budget", "refresh_steps"]
    assert {"most_promotions", "initial"} <= layer["properties"].keys()


def test_the_published_schema_names_every_key_and_needs_those_without_a_default():
    schema = json_schema()

    assert set(schema["properties"]) == set(content())
    assert set(schema["required"]) == set(content()) - {"interval"}
    assert schema["additionalProperties"] is False


def test_sizes_are_told_apart_by_their_digest():
    model = sample_trace().meta.model

    assert sizes_source(model) == sizes_source(model.model_copy())
    wider = sizes_source(model.model_copy(update={"hidden_size": 16}))
    assert wider.sha256 != sizes_source(model).sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float32"}, "for other sizes of small, such as another dtype"),
        ({"name": "big", "hidden_size": 16}, "for the sizes of small, not of big"),
    ],
)
def test_other_sizes_are_refused_unless_forced(change, said):
    model = sample_trace().meta.model
    plan = made(sizes=sizes_source(model.model_copy(update={"name": "small"})).model_dump())
    other = model.model_copy(update=change)

    with pytest.raises(SettingError, match=said):
        check_schedule(plan, model, sizes=other)
    check_schedule(plan, model, sizes=other, forced=True)

"""``tidesim plan``: what it answers, prints, writes and refuses."""

import json

import pytest
from planning import (
    A100,
    COMMAND,
    RTX4090,
    THOR,
    made,
    requests,
)

from tidesim.schedule import load_schedule
from tidesim.trace.io import save_trace


@pytest.fixture(scope="module")
def trace():
    return requests()


@pytest.fixture(scope="module")
def found():
    return made()


@pytest.fixture(scope="module")
def small(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.parquet"
    save_trace(trace, path)
    return path


def test_the_command_answers_with_rows_and_a_choice(ok, small, tmp_path):
    page, schedule = tmp_path / "plan.html", tmp_path / "schedule.json"

    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{RTX4090}", "--no-upgrades",
        "--target-tokens-per-s", 20, "--out", page, "--schedule", schedule,
    )  # fmt: skip

    wanted = {"hardware", "memory_gb", "tokens_per_s", "low", "high", "bottleneck"}
    assert wanted | {"usd_per_mtoken"} <= set(answer["rows"][0])
    assert answer["choice"] in answer["rows"]
    assert (answer["report"], answer["schedule"]) == (str(page), str(schedule))
    chosen = load_schedule(schedule)
    assert chosen.profile.name == answer["choice"]["hardware"]
    assert chosen.predictions.heldout.tokens_per_s == pytest.approx(
        answer["choice"]["tokens_per_s"]
    )
    assert chosen.trace.name == str(small)


def test_the_schedule_of_the_choice_simulates_as_planned(ok, small, tmp_path):
    schedule = tmp_path / "schedule.json"
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", A100, "--no-upgrades", "--schedule", schedule
    )

    again = ok(
        "simulate", small, "--hardware", A100, "--schedule", schedule, "--sizes", "llada2.0-mini"
    )

    assert again["tokens_per_s"] == pytest.approx(answer["choice"]["tokens_per_s"], rel=1e-9)


def test_a_model_alone_is_planned_for_with_a_synthetic_trace(ok):
    answer = ok(
        "plan", "--model", "tide-tiny", "--hardware", RTX4090, "--no-upgrades", "--workers", 1,
        "--formulation", "uniform",
    )  # fmt: skip

    assert answer["provenance"] == "synthetic"
    assert answer["sizes"] == "tide-tiny"
    assert len(answer["rows"]) == 1


def test_machines_without_a_number_do_not_keep_an_override_from_the_others(ok, small):
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{THOR}", "--no-upgrades",
        "--set", "link.h2d_bytes_per_s=x2",
    )  # fmt: skip

    (row,) = answer["rows"]
    assert row["hardware"] == A100
    assert row["what_if"] == f"{A100} with link.h2d_bytes_per_s = 5.026e+10"
    assert [one["hardware"] for one in answer["not_assessable"]] == [THOR]


def test_a_number_that_an_override_gives_is_no_longer_missing(ok, small):
    answer = ok(
        *COMMAND, "--trace", small, "--hardware", f"{A100}, {THOR}", "--no-upgrades",
        "--set", "link.latency_s=1us",
    )  # fmt: skip

    (thor,) = answer["not_assessable"]
    assert "link.latency_s" not in thor["missing"]
    assert "link.h2d_bytes_per_s" in thor["missing"]


def test_the_text_says_what_to_get_and_why_not_others(tidesim, small):
    status, out, err = tidesim(
        *COMMAND, "--trace", small, "--hardware", f"{A100},{THOR}", "--max-price", 20_000
    )

    words = " ".join(out.split())
    assert status == 0
    assert f"cheapest {A100}" in words
    assert "USD to buy" in words
    assert "rented, 0.252 USD an hour" in words
    assert f"not assessable {THOR}" in words
    assert "captured routing" in words
    assert str(small) not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "x"), "--memory x: not gigabytes with commas"),
        (("--memory", "4,-1"), "--memory is -1.0 but must be a positive number"),
        (("--hardware", "no-such"), "no-such"),
        (("--target-tokens-per-s", "0"), "tokens per second asked for is 0.0"),
        (("--max-price", "-5"), "price asked for is -5.0"),
        (("--years", "0"), "years is 0.0"),
        (("--use", "2"), "use is 2.0"),
        (("--run-error", "-1"), "run error is -1.0"),
        (("--workers", "0"), "workers is 0"),
        (("--engine", "fast"), "fast"),
        (("--formulation", "best"), "best"),
        (("--set", "link.no=3"), "link.no"),
        (("--out", "no/such/folder.html"), "folder"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(
    refused, small, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    usual = ("--hardware", A100) if "--hardware" not in arguments else ()

    assert words in refused(*COMMAND, "--trace", small, "--no-upgrades", *usual, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_a_choice_no_schedule_is_written_and_the_rest_is_there(tidesim, small, tmp_path):
    schedule = tmp_path / "s.json"

    status, out, err = tidesim(
        *COMMAND, "--trace", small, "--hardware", A100, "--no-upgrades", "--max-price", 1,
        "--schedule", schedule, "--json",
    )  # fmt: skip

    answer = json.loads(out)
    assert status == 0
    assert f"{schedule} is not written" in err
    assert (answer["choice"], answer["schedule"]) == (None, None)
    assert len(answer["rows"]) == 1
    assert not schedule.exists()


def test_a_model_without_a_known_process_needs_a_trace(refused):
    assert "--trace" in refused("plan", "--model", "llada-moe-7b-a1b", "--hardware", A100)


def test_json_has_no_values_that_json_does_not_know(found):
    json.dumps(found.to_json(), allow_nan=False)

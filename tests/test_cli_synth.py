"""``tidesim trace synth`` and ``fit`` as their users meet them."""

import answers
import pytest

from tidesim.resources import data_dir
from tidesim.trace.io import check_trace
from tidesim.trace.synth.parameters import load_parameters


def test_a_synthetic_trace_is_written_labelled_and_usable(ok, tmp_path):
    path = tmp_path / "m.parquet"
    answer = ok(
        "trace", "synth", "--model", "llada2.0-mini", "--requests", 2, "--gen-length", 64,
        "--seed", 3, "--workload", "humaneval", "--out", path,
    )  # fmt: skip
    trace = check_trace(path)
    info, stats = ok("trace", "info", path), ok("trace", "stats", path, "--masked-at-most", 4)

    assert (answer["trace"], answer["model"], answer["provenance"], answer["seed"]) == (
        str(path), "llada2.0-mini", "synthetic", 3,
    )  # fmt: skip
    assert answer["passes"] == info["passes"]["total"] == len(list(trace))
    assert answer["blocks"] == info["blocks"]
    assert (info["provenance"], info["settings"]["workload"]) == ("synthetic", "humaneval")
    assert stats["masked_at_most"] == 4
    assert stats["popularity_in_block"]["96"] > stats["popularity_in_block"]["8"] > 0.2
    simulated = ok(
        "simulate", path, "--hardware", "a100-40gb-pcie4-xeon48", "--policy", "tide",
        "--interval", 4, "--budget", 64, "--split", "all",
    )  # fmt: skip
    assert simulated["provenance"] == "synthetic"


def test_smaller_blocks_and_the_text_answer(tidesim, tmp_path):
    status, out, _ = tidesim(
        "trace", "synth", "--model", "llada2.0-mini", "--requests", 1, "--gen-length", 32,
        "--block-length", 8, "--out", tmp_path / "m.parquet",
    )  # fmt: skip

    assert status == 0
    assert "synthetic" in out
    assert check_trace(tmp_path / "m.parquet").meta.model.block_length == 8


def test_fitted_parameters_draw_a_trace_of_their_model(ok, tidesim, tmp_path):
    path = tmp_path / "tiny.toml"
    line = ("trace", "fit", "tide-tiny-mixed", "--requests", 2, "--rounds", 1, "--out", path)
    answer = ok(*line)
    drawn = ok("trace", "synth", "--parameters", path, "--out", tmp_path / "t.parquet")

    assert answers.unmet({line: answer}) == set()
    assert answer["parameters"] == str(path)
    assert answer["routing"] == {n: item.value for n, item in load_parameters(path).routing}
    for row in answer["targets"]:
        assert row["error"] == pytest.approx(row["synthetic"] - row["target"])
    assert drawn["model"] == "tide-tiny"
    kinds = {info.prompt_kind for info in check_trace(tmp_path / "t.parquet").meta.requests}
    assert kinds <= {"docstring", "function", "statement"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synth"], "give --model, such as llada2.0-mini, or --parameters"),
        (["synth", "--model", "llada3"], "llada3: no such model"),
        (["synth", "--model", "llada2.0-mini", "--workload", "poems"], "mbpp, humaneval"),
        (["synth", "--model", "llada2.0-mini", "--requests", 0], "requests is 0"),
        (["synth", "--model", "llada2.0-mini", "--parameters", "no.toml"], "no.toml: no such file"),
        (["fit", "tide-tiny-mixed", "--requests", 0], "requests is 0"),
        (["fit", "tide-tiny-mixed", "--rounds", 0], "rounds is 0"),
        (["fit", "no-trace"], "no-trace: no such file"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(refused, tmp_path, arguments, words):
    message = refused("trace", *arguments, "--out", tmp_path / "x")

    assert words in message
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_parameters_of_its_own_says_which_have(refused, tmp_path):
    config = data_dir("traces") / "tide-tiny" / "config.json"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(config.read_text())

    message = refused("trace", "synth", "--model", tmp_path / "other", "--out", tmp_path / "x")

    assert "no bundled name in traces/synth" in message
    assert "llada2.0-mini" in message

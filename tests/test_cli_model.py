"""The models known by name, and their memory, as users meet them."""

import json
from pathlib import Path

import pytest

from tidesim.engines import TIDE_REFERENCE
from tidesim.known_models import KNOWN_MODELS
from tidesim.memory import plan, request_extent
from tidesim.model_spec import MODELS

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"
UNVERIFIED = {known.name for known in KNOWN_MODELS if known.unverified}


def test_list_says_where_sizes_come_from_and_what_is_unverified(ok, tidesim):
    rows = {row["name"]: row for row in ok("model", "list")["models"]}
    printed = tidesim("model", "list")[1]

    assert set(rows) == set(MODELS)
    assert {name for name, row in rows.items() if row["unverified"]} == UNVERIFIED
    assert {"llada-moe-7b-a1b", "sdar-30b-a3b"} <= UNVERIFIED
    assert all(row["source"] for row in rows.values())
    assert rows["llada2.0-mini"]["expert_bytes"] == 6_291_456
    assert all(f"{name}*" in printed for name in UNVERIFIED)
    assert "llada2.0-mini*" not in printed


def test_help_names_the_unverified_models(tidesim):
    printed = " ".join(tidesim("model", "--help")[1].split())

    assert all(name in printed for name in UNVERIFIED)


def test_memory_is_the_plan_of_the_api(ok):
    mini = MODELS["llada2.0-mini"]
    answer = ok(
        "model", "memory", "llada2.0-mini", "--budget", "128,64", "--engine", "tide-reference",
        "--prompt-tokens", 100, "--gen-length", 60, "--batch", 2,
    )  # fmt: skip

    size = request_extent(mini, TIDE_REFERENCE.window, prompt_tokens=100, gen_length=60, batch=2)
    assert [row["budget"] for row in answer["rows"]] == [128, 64]
    for row in answer["rows"]:
        expected = plan(mini, size, slots=19 * row["budget"])
        assert row.items() >= expected.to_json().items()
        assert row["total_gib"] == expected.total_bytes / 2**30
    assert (answer["window"], answer["dtype"], answer["unverified"]) == ("full", "bfloat16", "")


def test_memory_size_gives_the_largest_budget_that_fits(ok):
    command = ("model", "memory", "llada2.0-flash", "--memory-gb", 80, "--engine")
    ours, theirs = (ok(*command, name)["rows"][0] for name in ("tidesim", "tide-reference"))
    more = ok("model", "memory", "llada2.0-flash", "--budget", ours["budget"] + 1)["rows"][0]

    assert ours["total_bytes"] <= 80e9 < more["total_bytes"]
    assert theirs["budget"] < ours["budget"]  # it keeps a tenth of what the other weights leave


def test_a_dtype_scales_weights_and_keys(ok):
    half, whole = (
        ok("model", "memory", "sdar-30b-a3b", "--budget", 16, "--dtype", dtype)
        for dtype in ("bfloat16", "float32")
    )

    for key in ("slots_bytes", "kv_bytes", "non_expert_bytes"):
        assert whole["rows"][0][key] == 2 * half["rows"][0][key]
    assert whole["unverified"]


def test_a_config_is_taken_like_a_name(ok, tidesim):
    answer = ok("model", "memory", GOLDEN / "config.json", "--prompt-tokens", 8)

    assert answer["model"] == "llada2-a"
    assert [row["budget"] for row in answer["rows"]] == [4, 8, 16]
    assert tidesim("model", "memory", "sdar-30b-a3b")[1].count("unverified") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--budget", "7"), "budget is 7, but llada2.0-mini needs a whole number from 8"),
        (("--budget", "8,257"), "budget is 257"),
        (("--budget", "x"), "--budget x: not integers"),
        (("--budget", "8", "--memory-gb", "9"), "contradict each other"),
        (("--memory-gb", "3"), "smallest memory that would do is"),
        (("--dtype", "int4"), "--dtype int4: not known"),
        (("--engine", "vllm"), "engine 'vllm' is not known"),
        (("--gen-length", "0"), "generation length is 0"),
        (("--gen-length", "40000"), "has 32768"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(refused, options, sentence):
    assert sentence in refused("model", "memory", "llada2.0-mini", *options)


def test_sizes_of_any_known_model_or_config_drive_a_simulation(ok, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(sdar_config()))
    run = (
        "simulate", "tide-tiny-mixed", "--hardware", "h100-80gb-sxm-pcie5-xeon48", "--policy", "tide",
        "--interval", 4, "--budget", 16, "--requests", 0, "--no-gains", "--sizes",
    )  # fmt: skip

    by_name, by_config = ok(*run, "sdar-30b-a3b"), ok(*run, config)

    assert "sdar-30b-a3b" in by_name["sizes"]
    assert by_config["seconds"] == by_name["seconds"]
    for name in set(MODELS) - {"sdar-30b-a3b"}:
        assert name in ok(*run, name)["sizes"]


def sdar_config():
    """Return a config.json in Qwen3's names with the sizes known for SDAR."""
    sizes = {
        key: getattr(MODELS["sdar-30b-a3b"], key)
        for key in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "head_dim", "intermediate_size", "moe_intermediate_size", "num_experts",
            "num_experts_per_tok", "vocab_size", "max_position_embeddings", "rope_theta",
            "rms_norm_eps",
        )
    }  # fmt: skip
    other = {"model_type": "sdar_moe", "hidden_act": "silu", "attention_bias": False}
    other |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16"}
    return sizes | other | {"norm_topk_prob": True, "rope_scaling": None, "block_size": 32}

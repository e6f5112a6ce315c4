import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tidesim.errors import FormatError, NotFoundError
from tidesim.model_spec import MODELS, ModelSpec, load_model_spec, read_config

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"


@pytest.fixture
def config() -> dict[str, Any]:
    return read_config(GOLDEN / "config.json")


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return ModelSpec.from_config(config, name="box", source="config.json")


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(FormatError) as caught:
        spec_of(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith("config.json: ")
    return sentence.removeprefix("config.json: ")


# ── sizes, against what is published about LLaDA2.0 ──────────────────────────────────────────────


def total_params(spec: ModelSpec) -> int:
    non_expert = (spec.non_expert_bytes - spec.moe_layers * spec.router_bytes) // spec.dtype_bytes
    router = spec.num_experts * (spec.hidden_size + 1)  # its expert bias is float32
    return non_expert + spec.moe_layers * (router + spec.num_experts * spec.expert_params)


@pytest.mark.parametrize(
    ("name", "moe_layers", "expert_bytes", "kv_bytes_per_token"),
    [("llada2.0-mini", 19, 6_291_456, 40_960), ("llada2.0-flash", 31, 25_165_824, 65_536)],
)
def test_sizes_that_are_exact(
    name: str, moe_layers: int, expert_bytes: int, kv_bytes_per_token: int
) -> None:
    spec = MODELS[name]

    assert spec.moe_layers == moe_layers
    assert spec.expert_bytes == expert_bytes
    assert spec.kv_bytes_per_token == kv_bytes_per_token
    assert spec.all_experts_bytes == moe_layers * 256 * expert_bytes


@pytest.mark.parametrize(
    ("name", "params", "non_expert_bytes"),
    [
        ("llada2.0-mini", 16.26e9, 1.91e9),
        ("llada2.1-mini", 16.26e9, 1.91e9),
        ("llada2.0-flash", 102.9e9, 6.06e9),
    ],
)
def test_sizes_as_published(name: str, params: float, non_expert_bytes: float) -> None:
    spec = MODELS[name]

    assert total_params(spec) == pytest.approx(params, rel=5e-4)
    assert spec.non_expert_bytes == pytest.approx(non_expert_bytes, abs=5e6)


@pytest.mark.parametrize(
    ("name", "params"), [("llada-moe-7b-a1b", 7.36e9), ("sdar-30b-a3b", 30.5e9)]
)
def test_models_of_other_families_have_their_published_parameters(name: str, params: float) -> None:
    spec = MODELS[name]
    others = spec.non_expert_bytes + spec.all_experts_bytes

    assert others / spec.dtype_bytes == pytest.approx(params, rel=2e-3)
    assert spec.router_bytes == spec.num_experts * spec.hidden_size * 2  # no expert bias


def test_bytes_are_those_of_the_file(config: dict[str, Any]) -> None:
    """The header of a real checkpoint says what every tensor takes."""
    with (GOLDEN / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = {name: 4 * prod(tensor["shape"]) for name, tensor in header.items() if "." in name}
    routed = {name: size for name, size in tensors.items() if ".mlp.experts." in name}

    spec = spec_of(config)

    assert {header[name]["dtype"] for name in tensors} == {"F32"}
    assert spec.all_experts_bytes == sum(routed.values())
    assert spec.non_expert_bytes == sum(tensors.values()) - sum(routed.values())
    assert 4 * total_params(spec) == sum(tensors.values())


def test_a_tied_head_is_stored_once(config: dict[str, Any]) -> None:
    untied, tied = spec_of(config), spec_of(config | {"tie_word_embeddings": True})

    assert untied.non_expert_bytes - tied.non_expert_bytes == 512 * 64 * 4


# ── config.json ──────────────────────────────────────────────────────────────────────────────────


def test_what_a_config_leaves_out_has_the_value_of_the_published_class(
    config: dict[str, Any],
) -> None:
    spec = spec_of({key: value for key, value in config.items() if key != "pad_token_id"})

    assert (spec.mask_token_id, spec.eos_token_id, spec.block_length) == (156895, 156892, 32)


def test_the_padding_token_ends_texts_where_no_end_token_is_given(config: dict[str, Any]) -> None:
    assert spec_of(config).eos_token_id == config["pad_token_id"]
    assert spec_of(config | {"eos_token_id": 7}).eos_token_id == 7


def test_the_dtype_has_two_names(config: dict[str, Any]) -> None:
    del config["dtype"]

    assert spec_of(config).dtype == "bfloat16"
    assert spec_of(config | {"torch_dtype": "float16"}).dtype == "float16"


REQUIRED = (
    "first_k_dense_replace", "head_dim", "hidden_size", "intermediate_size",
    "max_position_embeddings", "moe_intermediate_size", "n_group", "num_attention_heads",
    "num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads",
    "num_shared_experts", "partial_rotary_factor", "rms_norm_eps", "rope_theta",
    "routed_scaling_factor", "topk_group", "vocab_size",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_a_size_has_no_default(config: dict[str, Any], key: str) -> None:
    del config[key]

    assert key in refused(config)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("model_type", "llama", "model_type is 'llama', not one of llada2_moe, "),
        ("model_type", None, "model_type is None, not one of llada2_moe, "),
        ("model_type", ["llada2_moe"], "model_type is ['llada2_moe'], not one of"),
        ("hidden_act", "gelu", "hidden_act is 'gelu' but only 'silu' is implemented"),
        ("score_function", "softmax", "score_function is 'softmax' but only 'sigmoid'"),
        ("norm_topk_prob", False, "norm_topk_prob is False but only True"),
        ("use_qk_norm", False, "use_qk_norm is False but only True"),
        ("use_bias", True, "use_bias is True but only False"),
        ("use_qkv_bias", True, "use_qkv_bias is True but only False"),
        ("rope_scaling", {"type": "yarn"}, "rope_scaling is {'type': 'yarn'} but only None"),
        ("moe_router_enable_expert_bias", False, "expert_bias is False but only True"),
        ("hidden_size", 64.5, "hidden_size"),
        ("hidden_size", 0, "hidden_size"),
        ("eos_token_id", [1, 2], "eos_token_id"),
        ("rope_theta", float("nan"), "rope_theta"),
        ("partial_rotary_factor", 1.5, "partial_rotary_factor"),
        ("block_length", 0, "block_length"),
        ("vocab_size", list(range(1000)), "..."),
        ("dtype", "int8", "dtype 'int8' is not one of float32, bfloat16, float16"),
        ("num_experts", 30, "num_experts 30 is not a multiple of n_group 4"),
        ("topk_group", 5, "topk_group 5 exceeds n_group 4"),
        ("num_experts_per_tok", 17, "17 exceeds the experts of topk_group 2 groups"),
        ("num_key_value_heads", 3, "4 is not a multiple of num_key_value_heads 3"),
        ("first_k_dense_replace", 5, "5 exceeds num_hidden_layers 4"),
    ],
)
def test_a_config_of_another_model_is_refused(
    config: dict[str, Any], key: str, value: object, sentence: str
) -> None:
    assert sentence in refused(config | {key: value})


# ── other families ───────────────────────────────────────────────────────────────────────────────


def family_config(name: str) -> dict[str, Any]:
    """Return a config.json of a known model in the names of its family."""
    sizes = MODELS[name].model_dump(
        exclude={
            "name", "score_function", "n_group", "topk_group", "num_shared_experts", "dtype",
            "first_k_dense_replace", "partial_rotary_factor", "routed_scaling_factor",
            "mask_token_id", "eos_token_id", "block_length",
        }
    )  # fmt: skip
    if name == "sdar-30b-a3b":
        return sizes | {"model_type": "sdar_moe", "mlp_only_layers": [], "block_size": 32}
    for ours, theirs in (("moe", "expert"), ("", "dense")):
        sizes[f"{theirs}_intermediate_size"] = sizes.pop(f"{ours}_intermediate_size".lstrip("_"))
    del sizes["head_dim"], sizes["num_key_value_heads"]
    layers = [1] * sizes["num_hidden_layers"]
    return sizes | {"model_type": "lladamoe", "moe_layer_freq": layers, "qk_layernorm": True}


@pytest.mark.parametrize("name", ["llada-moe-7b-a1b", "sdar-30b-a3b"])
def test_a_config_of_another_family_gives_the_sizes_known_by_name(name: str) -> None:
    spec = ModelSpec.from_config(family_config(name), name=name)

    assert spec == MODELS[name]


@pytest.mark.parametrize(
    ("name", "key", "value", "sentence"),
    [
        ("sdar-30b-a3b", "mlp_only_layers", [0], "mlp_only_layers is [0] but only [] is"),
        ("sdar-30b-a3b", "decoder_sparse_step", 2, "decoder_sparse_step is 2 but only 1"),
        ("sdar-30b-a3b", "attention_bias", True, "attention_bias is True"),
        ("sdar-30b-a3b", "head_dim", 0, "head_dim"),
        ("llada-moe-7b-a1b", "moe_layer_freq", [0, 1], "moe_layer_freq is [0, 1], but only models"),
        ("llada-moe-7b-a1b", "moe_layer_freq", 1, "moe_layer_freq is 1, but only models"),
        ("llada-moe-7b-a1b", "shared_expert_intermediate_size", 512, "is 512 but only None"),
        ("llada-moe-7b-a1b", "moe_router_score_function", "sigmoid", "but only 'softmax'"),
        ("llada-moe-7b-a1b", "num_attention_heads", "16", "num_attention_heads"),
    ],
)
def test_a_choice_of_another_family_that_is_not_implemented_is_refused(
    name: str, key: str, value: object, sentence: str
) -> None:
    assert sentence in refused(family_config(name) | {key: value})


def test_a_missing_size_of_another_family_is_named() -> None:
    config = family_config("llada-moe-7b-a1b")
    del config["expert_intermediate_size"]

    assert "moe_intermediate_size" in refused(config)


# ── looking up ───────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_found_by_name_folder_and_file(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(config))

    assert load_model_spec("llada2.0-mini") is MODELS["llada2.0-mini"]
    assert load_model_spec(GOLDEN) == load_model_spec(GOLDEN / "config.json")
    assert load_model_spec(GOLDEN).name == "llada2-a"
    assert load_model_spec(tmp_path / "mine.json").name == "mine"


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match=r"^llada3: no such model; give llada2\.0-mini, "):
        load_model_spec("llada3")


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json: missing; a checkpoint directory needs"):
        load_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON (Expecting property name"),
        ("[" * 100_000, "not valid JSON ("),
        ("[1]", "holds list, not a JSON object"),
        ('{"vocab_size": ' + "1" * 5000 + "}", "not valid JSON ("),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(FormatError) as caught:
        load_model_spec(tmp_path)

    assert f"{tmp_path}/config.json: {sentence}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", True), ("hidden_size", "64"), ("rope_theta", float("inf"))]
)
def test_nothing_is_converted(config: dict[str, Any], key: str, value: object) -> None:
    assert key in refused(config | {key: value})


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": float("inf")},
        {"rms_norm_eps": float("nan")},
        {"num_experts_per_tok": True},
        {"num_experts": "32"},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**62},
        {"head_dim": 10**400},
        {"num_shared_experts": 10**9},
        {"block_length": 2**62},
    ],
)
def test_config_value_of_an_impossible_kind_or_size_is_refused(config, change):
    assert next(iter(change)) in refused(config | change)


def test_config_of_a_merged_dfactory_checkpoint_is_accepted(config):
    assert spec_of(config | {"model_type": "llada2_moe_veomni"}) == spec_of(config)


def test_checkpoint_in_the_current_folder_has_its_folders_name(monkeypatch):
    monkeypatch.chdir(GOLDEN)

    assert load_model_spec(".").name == "llada2-a"

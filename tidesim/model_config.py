"""What the ``config.json`` of a family of models says, in the names of LLaDA2.0's.

Only LLaDA2.0 is run by the runtime; of the others the sizes and the routing's shape are read, for
traces and simulation.
"""

from typing import Any, NamedTuple

from tidesim.errors import FormatError

MODEL_TYPE = "llada2_moe"


class Family(NamedTuple):
    """How one family writes its ``config.json``.

    Attributes
    ----------
    defaults : dict
        What a config may leave out: the published class's default, or what the family always is.
    renamed : dict
        Its names for LLaDA2.0's.
    needed : dict
        Keys that describe a choice which is made in only one way here.
    layer_list : str or None
        Key of a list that says of every layer whether it is a mixture layer: all must be.
    """

    defaults: dict[str, Any]
    renamed: dict[str, str]
    needed: dict[str, Any]
    layer_list: str | None = None


# Where eos_token_id is missing, pad_token_id stands for it: LLaDA2.0 ends and pads with one token.
_LLADA2 = Family(
    defaults={"mask_token_id": 156895, "eos_token_id": 156892, "block_length": 32},
    renamed={"torch_dtype": "dtype"},
    needed={
        "hidden_act": "silu",
        "score_function": "sigmoid",
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "rope_scaling": None,
        "moe_router_enable_expert_bias": True,
        "use_sliding_window": False,
        "norm_head": False,
    },
)
# A softmax over all experts, no groups, no shared experts, no dense layers.
_PLAIN = {
    "score_function": "softmax",
    "n_group": 1,
    "topk_group": 1,
    "num_shared_experts": 0,
    "first_k_dense_replace": 0,
    "partial_rotary_factor": 1.0,
    "routed_scaling_factor": 1.0,
    "block_length": 32,
}
# SDAR's mixture is Qwen3's (JetLM/SDAR-30B-A3B-Chat-b32).
_SDAR = Family(
    defaults=_PLAIN | {"mask_token_id": 151669, "eos_token_id": 151645},
    renamed={"torch_dtype": "dtype", "block_size": "block_length"},
    needed={
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_scaling": None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    },
)
_LLADA_MOE = Family(
    defaults=_PLAIN | {"mask_token_id": 156895, "eos_token_id": 156892},
    renamed={
        "torch_dtype": "dtype",
        "expert_intermediate_size": "moe_intermediate_size",
        "dense_intermediate_size": "intermediate_size",
        "router_num_group": "n_group",
        "router_topk_group": "topk_group",
    },
    needed={
        "hidden_act": "silu",
        "attention_bias": False,
        "qk_layernorm": True,
        "rope_scaling": None,
        "shared_expert_intermediate_size": None,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
    },
    layer_list="moe_layer_freq",
)
FAMILIES = {
    MODEL_TYPE: _LLADA2,
    "llada2_moe_veomni": _LLADA2,  # dFactory names merged checkpoints so
    "sdar_moe": _SDAR,
    "qwen3_moe": _SDAR,
    "lladamoe": _LLADA_MOE,
    "llada_moe": _LLADA_MOE,
    "llada": _LLADA_MOE,
}


def spec_values(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the values of a ``config.json`` under LLaDA2.0's names.

    Keys that nothing here uses are kept, as they are; a key that is null counts as left out.

    Raises
    ------
    FormatError
        Another family, or a choice that is made in another way.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise FormatError(
            f"{source}: model_type is {model_type!r}, not one of {', '.join(FAMILIES)}; "
            "give a model of these"
        )
    family = FAMILIES[model_type]
    stated = {key: value for key, value in config.items() if value is not None}
    for key, needed in family.needed.items():
        if stated.get(key, needed) != needed:
            raise FormatError(
                f"{source}: {key} is {stated[key]!r} but only {needed!r} is implemented"
            )
    _check_layers(stated, family, source)
    values = {family.renamed.get(key, key): value for key, value in stated.items()}
    return family.defaults | _derived(stated, family) | values


def _derived(stated: dict[str, Any], family: Family) -> dict[str, Any]:
    if family is _LLADA2:
        return {"eos_token_id": stated["pad_token_id"]} if "pad_token_id" in stated else {}
    heads, hidden = stated.get("num_attention_heads"), stated.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return {}
    return {"num_key_value_heads": heads, "head_dim": hidden // heads}


def _check_layers(stated: dict[str, Any], family: Family, source: str) -> None:
    listed = stated.get(family.layer_list) if family.layer_list else None
    if listed and not (isinstance(listed, list) and all(item == 1 for item in listed)):
        raise FormatError(
            f"{source}: {family.layer_list} is {str(listed)[:60]}, but only models whose layers "
            "are all mixture layers are implemented"
        )

"""Models known by name: their sizes as their ``config.json`` has them, and where those were read."""

from typing import Any, NamedTuple


class KnownModel(NamedTuple):
    """A model that is known by name.

    Attributes
    ----------
    name : str
    sizes : dict
        Fields of a ModelSpec.
    source : str
        Where they were read.
    unverified : str
        What of them nobody here read in the model's own files; empty where nothing.
    """

    name: str
    sizes: dict[str, Any]
    source: str
    unverified: str = ""


_LLADA2 = {
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "num_shared_experts": 1,
    "vocab_size": 157184,
    "rope_theta": 600000.0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 2.5,
    "mask_token_id": 156895,
    "eos_token_id": 156892,
}
_MINI = _LLADA2 | {
    "num_hidden_layers": 20,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "max_position_embeddings": 32768,
}
_FLASH = _LLADA2 | {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "max_position_embeddings": 16384,
}
# A softmax over all experts: no groups, no shared experts, no dense layers.
_PLAIN = {
    "first_k_dense_replace": 0,
    "hidden_size": 2048,
    "head_dim": 128,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_shared_experts": 0,
    "partial_rotary_factor": 1.0,
    "routed_scaling_factor": 1.0,
    "score_function": "softmax",
}
_LLADA_MOE = _PLAIN | {
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 8192,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "vocab_size": 157184,
    "max_position_embeddings": 8192,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-5,
    "mask_token_id": 156895,
    "eos_token_id": 156892,
}
_SDAR = _PLAIN | {
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "mask_token_id": 151669,
    "eos_token_id": 151645,
}

KNOWN_MODELS = (
    KnownModel("llada2.0-mini", _MINI, "its config.json"),
    KnownModel(
        "llada2.0-flash",
        _FLASH,
        "its config.json in dFactory; the technical report says 32768 positions",
    ),
    KnownModel(
        "llada2.1-mini",
        _MINI,
        "its model card: 16 B parameters, 20 layers, 16 heads, the architecture of LLaDA2.0-mini",
        "sizes not on the card are those of LLaDA2.0-mini",
    ),
    KnownModel(
        "llada-moe-7b-a1b",
        _LLADA_MOE,
        "second-hand copies of its config.json; they give its 7.36 B parameters",
        "all sizes; its attention is not block-causal, so a prefix cache would be approximate",
    ),
    KnownModel(
        "sdar-30b-a3b",
        _SDAR,
        "second-hand, of SDAR-30B-A3B-Chat-b32: layers, experts, hidden and expert sizes; "
        "the rest is Qwen3-30B-A3B's, which it was trained from",
        "heads, vocabulary, positions and token ids",
    ),
)

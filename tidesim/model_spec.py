"""ModelSpec: the geometry of a LLaDA2.0-style model, and the bytes and FLOPs that follow from it."""

import json
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidesim.errors import FormatError, NotFoundError
from tidesim.known_models import KNOWN_MODELS
from tidesim.model_config import spec_values
from tidesim.resources import find_checkpoint

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGEST = 1 << 18  # of a width: no model comes near, and no product of sizes leaves 64 bits


class ModelSpec(BaseModel):
    """Shape of a mixture-of-experts model; names follow the ``config.json`` of LLaDA2.0.

    ``score_function`` tells routers apart: LLaDA2.0's sigmoid with an expert bias, and a softmax
    without one, which is simulated but not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    num_hidden_layers: int = Field(ge=1, le=1_000)
    first_k_dense_replace: int = Field(ge=0)
    hidden_size: int = Field(ge=1, le=LARGEST)
    num_attention_heads: int = Field(ge=1, le=LARGEST)
    num_key_value_heads: int = Field(ge=1, le=LARGEST)
    head_dim: int = Field(ge=2, le=LARGEST)
    intermediate_size: int = Field(ge=1, le=LARGEST)
    moe_intermediate_size: int = Field(ge=1, le=LARGEST)
    num_experts: int = Field(ge=1, le=1 << 16)  # a trace holds ids of 16 bits
    num_experts_per_tok: int = Field(ge=1)
    n_group: int = Field(ge=1)
    topk_group: int = Field(ge=1)
    num_shared_experts: int = Field(ge=0, le=1_000)
    vocab_size: int = Field(ge=1, le=1 << 24)
    max_position_embeddings: int = Field(ge=1, le=1 << 40)
    rope_theta: float = Field(gt=0)
    partial_rotary_factor: float = Field(gt=0, le=1)
    rms_norm_eps: float = Field(gt=0)
    routed_scaling_factor: float = Field(gt=0)
    score_function: Literal["sigmoid", "softmax"] = "sigmoid"
    tie_word_embeddings: bool = False
    dtype: str = "bfloat16"
    mask_token_id: int = Field(ge=0)
    eos_token_id: int = Field(ge=0)
    block_length: int = Field(default=32, ge=1, le=LARGEST)

    @model_validator(mode="after")
    def _check(self) -> Self:
        rules = {
            f"num_experts {self.num_experts} is not a multiple of n_group {self.n_group}": (
                self.num_experts % self.n_group
            ),
            f"topk_group {self.topk_group} exceeds n_group {self.n_group}": (
                self.topk_group > self.n_group
            ),
            f"num_experts_per_tok {self.num_experts_per_tok} exceeds the experts of topk_group "
            f"{self.topk_group} groups": (
                self.num_experts_per_tok > self.num_experts // self.n_group * self.topk_group
            ),
            f"num_attention_heads {self.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {self.num_key_value_heads}": (
                self.num_attention_heads % self.num_key_value_heads
            ),
            f"first_k_dense_replace {self.first_k_dense_replace} exceeds num_hidden_layers "
            f"{self.num_hidden_layers}": self.first_k_dense_replace > self.num_hidden_layers,
            f"head_dim {self.head_dim} x partial_rotary_factor {self.partial_rotary_factor} gives no "
            "even number of rotated dimensions": (self.rotary_dim < 2 or self.rotary_dim % 2),
            f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}": (
                self.dtype not in DTYPE_BYTES
            ),
        }
        for sentence, broken in rules.items():
            if broken:
                raise ValueError(sentence)
        return self

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that the rotary embedding turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def moe_layers(self) -> int:
        """Number of mixture layers, L in the shapes of this project."""
        return self.num_hidden_layers - self.first_k_dense_replace

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def expert_params(self) -> int:
        """Weights of one routed expert: gate, up and down projections."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def expert_bytes(self) -> int:
        """Bytes of one routed expert."""
        return self.expert_params * self.dtype_bytes

    @property
    def attention_params(self) -> int:
        """Weights of one attention block, its two head norms included."""
        heads = self.num_attention_heads + 2 * self.num_key_value_heads
        projections = self.hidden_size * self.head_dim * (heads + self.num_attention_heads)
        return projections + 2 * self.head_dim

    @property
    def dense_mlp_params(self) -> int:
        """Weights of the MLP of one dense layer."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def shared_expert_params(self) -> int:
        """Weights of the shared experts of one mixture layer."""
        return self.num_shared_experts * self.expert_params

    @property
    def router_bytes(self) -> int:
        """Bytes of one router: its weight in the model's dtype, its expert bias in float32."""
        bias_bytes = 4 if self.score_function == "sigmoid" else 0
        return self.num_experts * (self.hidden_size * self.dtype_bytes + bias_bytes)

    @property
    def head_params(self) -> int:
        """Weights of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def non_expert_bytes(self) -> int:
        """Bytes of everything but routed experts: what must always be on the GPU."""
        layer_params = self.attention_params + 2 * self.hidden_size
        embeddings = self.head_params * (1 if self.tie_word_embeddings else 2)
        params = (
            self.num_hidden_layers * layer_params
            + self.first_k_dense_replace * self.dense_mlp_params
            + self.moe_layers * self.shared_expert_params
            + embeddings
            + self.hidden_size
        )
        return params * self.dtype_bytes + self.moe_layers * self.router_bytes

    @property
    def all_experts_bytes(self) -> int:
        """Bytes of every routed expert of the model."""
        return self.moe_layers * self.num_experts * self.expert_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token over all layers."""
        return (
            2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * self.dtype_bytes
        )

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, name: str, source: str = "config"
    ) -> "ModelSpec":
        """Build a spec from the content of a Hugging Face ``config.json``.

        Parameters
        ----------
        config : dict
            Parsed JSON. Keys this project does not use are ignored, as Hugging Face does;
            keys that would change the computation must have the value implemented here.
        name : str
            Name of the model in outputs.
        source : str
            Where `config` came from, for error messages.

        Raises
        ------
        FormatError
            A key is missing, out of range or asks for another architecture.
        """
        stated = spec_values(config, source)
        values = {key: stated[key] for key in cls.model_fields if key in stated and key != "name"}
        try:
            return cls(name=name, **values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "config"
            got = "" if first["type"] == "missing" else f" (got {_short(first.get('input'))})"
            raise FormatError(f"{source}: {key}: {first['msg']}{got}; repair config.json") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


MODELS = {known.name: ModelSpec(name=known.name, **known.sizes) for known in KNOWN_MODELS}


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Raises
    ------
    FormatError
        Not a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error}); repair or replace it") from None
    if not isinstance(config, dict):
        raise FormatError(f"{path}: holds {type(config).__name__}, not a JSON object")
    return config


def load_model_spec(name_or_path: str | Path) -> ModelSpec:
    """Return the spec of a known model, a checkpoint directory or a ``config.json``.

    Parameters
    ----------
    name_or_path : str or Path
        A name of `MODELS`, a bundled checkpoint, a directory or a file.

    Raises
    ------
    NotFoundError, FormatError
        Nothing of that name, or its ``config.json`` is wrong.

    Examples
    --------
    >>> spec = load_model_spec("llada2.0-mini")
    >>> spec.moe_layers, spec.num_experts, spec.num_experts_per_tok, spec.expert_bytes
    (19, 256, 8, 6291456)
    """
    if str(name_or_path) in MODELS:
        return MODELS[str(name_or_path)]
    path = Path(name_or_path)
    if not os.path.isfile(path):  # noqa: PTH113 (False, not an error, for an impossible name)
        try:
            path = find_checkpoint(name_or_path) / "config.json"
        except NotFoundError:
            raise NotFoundError(
                f"{name_or_path}: no such model; give {', '.join(MODELS)}, tide-tiny, "
                "a checkpoint directory or a config.json"
            ) from None
    if not path.is_file():
        raise NotFoundError(f"{path}: missing; a checkpoint directory needs its config.json")
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return ModelSpec.from_config(read_config(path), name=name, source=str(path))

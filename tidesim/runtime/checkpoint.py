"""Read and write LLaDA2.0 checkpoints in the Hugging Face layout; nothing is ever unpickled.

Files are memory-mapped. A tensor whose dtype already fits is used where it lies in the file; the
experts of a layer are copied once, into their bank.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tidesim.errors import CapacityError, FormatError, NotFoundError
from tidesim.model_config import MODEL_TYPE
from tidesim.model_spec import ModelSpec, load_model_spec, read_config
from tidesim.resources import atomic_path, find_checkpoint, sha256_file, write_text
from tidesim.runtime.model import TORCH_DTYPES, Transformer
from tidesim.strict import dotted, reason, short, short_keys

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = {"F64", "F32", "F16", "BF16"}
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, in order.

    Raises
    ------
    NotFoundError, FormatError
        No weights, a missing shard or a broken index.
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise NotFoundError(
            f"{directory}: holds neither {SINGLE} nor {INDEX}; give a checkpoint directory"
        )
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise FormatError(f"{index}: weight_map is missing or not a table of file names")
    files = [directory / Path(name).name for name in sorted(set(names.values()))]
    for file in files:
        if not os.path.isfile(file):  # noqa: PTH113 (False, not an error, for an impossible name)
            raise NotFoundError(
                f"{index}: names {short(file.name)}, which is missing; fetch the shard again"
            )
    return files


def checkpoint_digest(directory: str | Path) -> str:
    """Return one SHA-256 over the digests of the config and of every weight file."""
    root = find_checkpoint(directory)
    parts = [sha256_file(path) for path in (root / "config.json", *checkpoint_files(root))]
    return parts[-1] if len(parts) == 2 else hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Source:
    """An open file and a tensor in it."""

    file: Any
    name: str
    path: Path

    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())

    def check(self, shape: tuple[int, ...]) -> None:
        if self.shape() != shape:
            raise FormatError(
                f"{self.path}: {self.name} has shape {list(self.shape())}, "
                f"but config.json asks for {list(shape)}; the two do not belong together"
            )
        stored = self.file.get_slice(self.name).get_dtype()
        if stored not in _FLOATS:
            raise FormatError(
                f"{self.path}: {self.name} has dtype {stored}, not one of "
                f"{', '.join(sorted(_FLOATS))}; convert the checkpoint first"
            )

    def read(self) -> Tensor:
        return self.file.get_tensor(self.name)  # type: ignore[no-any-return]


def _open_all(files: list[Path], stack: ExitStack) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for path in files:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise FormatError(
                f"{path}: not a whole safetensors file ({reason(error)}); fetch it again"
            ) from None
        for name in names:
            if name in sources:
                shown = dotted(short_keys([name]))
                raise FormatError(f"{path}: {shown} is also in {sources[name].path.name}")
            sources[name] = _Source(file, name, path)
    return sources


def published_name(name: str) -> str:
    """Return the name of a parameter in published checkpoints."""
    return name if name.startswith("lm_head.") else f"model.{name}"


def _expert_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    wide = (spec.moe_intermediate_size, spec.hidden_size)
    return {"gate_proj": wide, "up_proj": wide, "down_proj": (wide[1], wide[0])}


def _bank_names(prefix: str, spec: ModelSpec, *, merged: bool) -> dict[str, tuple[int, ...]]:
    shapes = _expert_shapes(spec)
    if merged:
        return {f"{prefix}.{p}": (spec.num_experts, *shapes[p]) for p in _PROJECTIONS}
    return {
        f"{prefix}.{e}.{p}.weight": shapes[p] for e in range(spec.num_experts) for p in _PROJECTIONS
    }


def _expected(model: Transformer, *, merged: bool) -> dict[str, tuple[int, ...]]:
    expected: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters():  # tied weights appear once
        if name.endswith(".bank"):
            prefix = published_name(name.removesuffix(".bank"))
            expected |= _bank_names(prefix, model.spec, merged=merged)
        else:
            expected[published_name(name)] = tuple(parameter.shape)
    return expected


def _check(
    directory: Path, sources: dict[str, _Source], expected: dict[str, tuple[int, ...]]
) -> None:
    missing = [name for name in expected if name not in sources]
    tied = {"lm_head.weight"} if "lm_head.weight" not in expected else set()
    extra = [name for name in sources if name not in expected and name not in tied]
    for found, what in ((missing, "is missing"), (extra, "is not part of the model")):
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            shown = dotted(short_keys(found[:1]))
            raise FormatError(
                f"{directory}: tensor {shown}{more} {what} that config.json describes; "
                "use the config.json and weights of one model"
            )
    for name, shape in expected.items():
        sources[name].check(shape)


def _check_count(
    directory: Path, sources: dict[str, _Source], spec: ModelSpec, *, merged: bool
) -> None:
    """Refuse absurd sizes before anything of that size is made."""
    least = spec.num_hidden_layers + (0 if merged else 3 * spec.num_experts * spec.moe_layers)
    if len(sources) < least:
        raise FormatError(
            f"{directory}: holds {len(sources)} tensors, too few for the {spec.num_hidden_layers} "
            f"layers and {spec.num_experts} experts that config.json describes; use the "
            "config.json and weights of one model"
        )


def _read_bank(
    prefix: str, sources: dict[str, _Source], spec: ModelSpec, dtype: torch.dtype, device: str
) -> Tensor:
    bank = torch.empty(spec.num_experts, spec.expert_params, dtype=dtype, device=device)
    pieces = bank.view(spec.num_experts, 3, -1)  # gate, up and down have the same size
    for number, projection in enumerate(_PROJECTIONS):
        merged = sources.get(f"{prefix}.{projection}")
        if merged is not None:
            pieces[:, number] = merged.read().reshape(spec.num_experts, -1)
            continue
        for expert in range(spec.num_experts):
            stored = sources[f"{prefix}.{expert}.{projection}.weight"].read()
            pieces[expert, number] = stored.reshape(-1)
    return bank


def _weights(
    model: Transformer,
    sources: dict[str, _Source],
    dtype: torch.dtype,
    device: str,
    experts_on: str,
) -> Iterator[tuple[str, Tensor]]:
    for name, _ in model.named_parameters():
        if name.endswith(".bank"):
            prefix = published_name(name.removesuffix(".bank"))
            yield name, _read_bank(prefix, sources, model.spec, dtype, experts_on)
            continue
        stored = sources[published_name(name)].read()
        exact = name.endswith("expert_bias") or (
            name.endswith("mlp.gate.weight") and stored.dtype in (torch.float32, torch.float64)
        )  # what routing depends on is never rounded
        yield name, stored.to(device, torch.float32 if exact else dtype)


def load_model(
    directory: str | Path,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    experts_on: str | None = None,
) -> Transformer:
    """Load a checkpoint: one file or shards, separate or merged experts, any float dtype.

    Parameters
    ----------
    directory : str or Path
        A checkpoint directory, or the name of a bundled one.
    dtype : str, optional
        ``float32``, ``bfloat16`` or ``float16``; by default what ``config.json`` says.
    device : str
        Where the weights go.
    experts_on : str, optional
        Where the routed experts go instead: ``cpu`` for a runtime that offloads them.

    Raises
    ------
    NotFoundError, FormatError
        A file is missing or truncated; a tensor is missing, extra, mis-shaped or no float.
    CapacityError
        The weights do not fit the device's memory.
    """
    root = find_checkpoint(directory)
    spec = load_model_spec(root)
    if spec.score_function != "sigmoid":
        raise FormatError(
            f"{root}: its router is a {spec.score_function}, but only LLaDA2.0's sigmoid router is "
            "run; give a LLaDA2.0 checkpoint, or simulate this one's sizes with --sizes"
        )
    wanted = TORCH_DTYPES[dtype or spec.dtype]
    with ExitStack() as stack:
        sources = _open_all(checkpoint_files(root), stack)
        merged = any(name.endswith("mlp.experts.gate_proj") for name in sources)
        _check_count(root, sources, spec, merged=merged)
        with torch.device("meta"):
            model = Transformer(spec)
        _check(root, sources, _expected(model, merged=merged))
        try:
            state = dict(_weights(model, sources, wanted, device, experts_on or device))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise CapacityError(
                f"{root}: its weights do not fit the memory of {device} ({error}); "
                "use a smaller --dtype, or another --device"
            ) from None
        model.load_state_dict(state, strict=False, assign=True)
    if spec.tie_word_embeddings:
        model.lm_head.weight = model.word_embeddings.weight
    return model.eval().requires_grad_(requires_grad=False)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Load the ``tokenizer.json`` of a checkpoint.

    Raises
    ------
    NotFoundError, FormatError
        It is missing or not a tokenizer.
    """
    path = find_checkpoint(directory) / "tokenizer.json"
    if not path.is_file():
        raise NotFoundError(f"{path}: missing; give token ids with --prompt-ids instead of text")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (tokenizers raises bare Exception)
        raise FormatError(f"{path}: not a fast tokenizer file ({reason(error)})") from None


def save_checkpoint(model: Transformer, directory: Path, *, dtype: str) -> None:
    """Write ``config.json`` and ``model.safetensors`` with separate experts.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    spec = model.spec.model_copy(update={"dtype": dtype})
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().to("cpu")
        if not name.endswith(".bank"):
            keep = name.endswith("expert_bias")
            tensors[published_name(name)] = value if keep else value.to(TORCH_DTYPES[dtype])
            continue
        prefix = published_name(name.removesuffix(".bank"))
        pieces = value.to(TORCH_DTYPES[dtype]).view(spec.num_experts, 3, -1)
        for number, (projection, shape) in enumerate(_expert_shapes(spec).items()):
            for expert in range(spec.num_experts):
                stored = pieces[expert, number].reshape(shape).clone()
                tensors[f"{prefix}.{expert}.{projection}.weight"] = stored
    config = {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": MODEL_TYPE,
        **spec.model_dump(exclude={"name"}),
        "hidden_act": "silu",
        "score_function": "sigmoid",
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": True,
        "use_qk_norm": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "rope_scaling": None,
        "router_dtype": "fp32",
        "pad_token_id": spec.eos_token_id,
    }
    write_text(directory / "config.json", json.dumps(config, indent=1) + "\n")
    write_tensors(tensors, directory / SINGLE, metadata={"format": "pt"})


def write_tensors(tensors: dict[str, Tensor], path: Path, *, metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # it hides the OSError of a full disk
            raise OSError(errno.ENOSPC, str(error)) from error

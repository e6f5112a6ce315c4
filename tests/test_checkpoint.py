"""Loading checkpoints: every published layout, and a clear error for every damaged one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tidesim.errors import FormatError, NotFoundError, OutputError
from tidesim.runtime.checkpoint import (
    checkpoint_digest,
    load_model,
    load_tokenizer,
    save_checkpoint,
)

GOLDEN = Path(__file__).parent / "golden" / "llada2-a"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder with a config and no weights yet."""
    target = tmp_path / "a checkpoint é"
    target.mkdir()
    shutil.copy(GOLDEN / "config.json", target)
    return target


def merge_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    merged = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in (1, 2, 3):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts"
            parts = [tensors[f"{prefix}.{e}.{projection}.weight"] for e in range(32)]
            merged[f"{prefix}.{projection}"] = torch.stack(parts)
    return merged


def write_shards(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    names = sorted(tensors)
    weight_map = {
        name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def same_weights(model, other) -> bool:
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_sharded_checkpoint_loads_the_same_weights(folder, tensors):
    write_shards(tensors, folder)

    assert same_weights(load_model(folder), load_model(GOLDEN))


def test_merged_experts_load_the_same_weights(folder, tensors):
    save_file(merge_experts(tensors), folder / "model.safetensors")

    assert same_weights(load_model(folder), load_model(GOLDEN))


def test_merged_and_sharded_checkpoint_of_dfactory_loads_the_same_weights(folder, tensors):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llada2_moe_veomni"}
    (folder / "config.json").write_text(json.dumps(config))
    write_shards(merge_experts(tensors), folder)

    assert same_weights(load_model(folder), load_model(GOLDEN))


def test_tied_checkpoint_uses_one_tensor_twice_and_may_store_it_twice(folder, tensors):
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")

    model = load_model(folder)

    assert model.lm_head.weight is model.word_embeddings.weight


def test_routing_weights_stored_in_float32_stay_so():
    model = load_model(GOLDEN, dtype="bfloat16")

    assert model.mixtures()[0].gate.weight.dtype == torch.float32


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16])
def test_any_float_dtype_is_converted_to_the_one_asked_for(folder, tensors, stored):
    save_file({n: t.to(stored) for n, t in tensors.items()}, folder / "model.safetensors")

    model = load_model(folder, dtype="float32")

    expected = tensors[EXPERT].to(stored).float()
    gate_up, _ = model.mixtures()[0].experts.views(model.mixtures()[0].experts.bank)
    assert torch.equal(gate_up[3, 32:], expected)


def test_saved_checkpoint_loads_the_same_weights(tmp_path):
    model = load_model(GOLDEN)

    save_checkpoint(model, tmp_path, dtype="float32")

    assert same_weights(load_model(tmp_path), model)


def test_digest_changes_with_the_weights(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    before = checkpoint_digest(folder)

    save_file(tensors | {EXPERT: tensors[EXPERT] + 1}, folder / "model.safetensors")

    assert checkpoint_digest(folder) != before


DAMAGE = {
    "missing": (lambda t: {n: v for n, v in t.items() if n != EXPERT}, f"{EXPERT} is missing"),
    "extra": (
        lambda t: t | {"model.extra.weight": torch.zeros(2)},
        "model.extra.weight is not part",
    ),
    "mis-shaped": (lambda t: t | {EXPERT: torch.zeros(64, 32)}, r"shape \[64, 32\].*\[32, 64\]"),
    "integers": (lambda t: t | {EXPERT: torch.zeros(32, 64, dtype=torch.int64)}, "dtype I64"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_wrong_tensors_are_named(folder, tensors, name):
    damage, message = DAMAGE[name]
    save_file(damage(tensors), folder / "model.safetensors")

    with pytest.raises(FormatError, match=message):
        load_model(folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1000}, {"num_experts": 1 << 16}])
def test_absurd_sizes_are_refused_before_anything_of_that_size_is_made(folder, tensors, change):
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(FormatError, match=f"holds {len(tensors)} tensors, too few for the"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 2000, 1_000_000])
def test_truncated_file_is_refused(folder, kept):
    whole = (GOLDEN / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])

    with pytest.raises(FormatError, match="not a whole safetensors file"):
        load_model(folder)


def test_missing_shard_is_named(folder, tensors):
    write_shards(tensors, folder)
    (folder / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(NotFoundError, match="model-00002-of-00003"):
        load_model(folder)


def test_folder_without_weights_is_refused(folder):
    with pytest.raises(NotFoundError, match=r"model\.safetensors"):
        load_model(folder)


def test_broken_index_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')

    with pytest.raises(FormatError, match="weight_map"):
        load_model(folder)


def test_unknown_checkpoint_name_lists_what_to_give():
    with pytest.raises(NotFoundError, match="tide-tiny"):
        load_model("no-such-checkpoint")


def test_missing_tokenizer_asks_for_token_ids():
    with pytest.raises(NotFoundError, match="--prompt-ids"):
        load_tokenizer(GOLDEN)


def test_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")

    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(folder)


def test_saving_into_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(load_model(GOLDEN), tmp_path / "none", dtype="float32")


LOADS = """
import re, sys
from pathlib import Path
from tidesim.runtime.checkpoint import load_model

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

load_model(sys.argv[2])
before = anonymous_bytes()
model = load_model(sys.argv[1])
banks = sum(m.experts.bank.nbytes for m in model.mixtures())
print(anonymous_bytes() - before, banks, sum(p.nbytes for p in model.parameters()))
"""


def test_loading_keeps_one_copy_of_the_experts_and_maps_the_rest(folder):
    """Anonymous memory grows by the banks only; everything else stays in the mapped file."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 200_000, "moe_intermediate_size": 512}
    (folder / "config.json").write_text(json.dumps(config))
    from tidesim.model_spec import load_model_spec  # noqa: PLC0415
    from tidesim.runtime.model import Transformer  # noqa: PLC0415

    model = Transformer(load_model_spec(folder))
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    save_checkpoint(model, folder, dtype="float32")

    printed = subprocess.run(
        [sys.executable, "-c", LOADS, str(folder), str(GOLDEN)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    grown, banks, everything = map(int, printed.split())

    assert everything > banks + 50e6
    assert grown < 1.1 * banks + 10e6


def test_checkpoint_with_a_softmax_router_is_refused_before_its_weights_are_read(folder):
    config = {
        "model_type": "llada_moe", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512,
        "num_attention_heads": 4, "expert_intermediate_size": 8, "dense_intermediate_size": 32,
        "num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 512,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(FormatError, match=r"router is a softmax, .*simulate this one's sizes"):
        load_model(folder)

"""How much recording adds to decoding: a ratio of two measurements taken in turns in one run."""

from statistics import median

from tidesim.runtime.capture import capture
from tidesim.runtime.checkpoint import load_model, load_tokenizer
from tidesim.runtime.decode import DecodeSettings, decode
from tidesim.runtime.prompts import load_prompts

ROUNDS = 5


def test_capture_overhead(tmp_path, measured):
    """Prediction before it was written: below 3 %, since a pass records a few kilobytes."""
    model, tokenizer = load_model("tide-tiny"), load_tokenizer("tide-tiny")
    prompt = load_prompts()[0]
    ids = prompt.tokens(tokenizer)
    settings = DecodeSettings(gen_length=64, temperature=0.7)
    decode(model, ids, settings)  # warm-up
    ratios = []
    for number in range(ROUNDS):
        plain = decode(model, ids, settings).seconds
        out = tmp_path / f"{number}.parquet"
        captured = capture(model, [(prompt, ids)], settings, out, checkpoint_sha256="")
        ratios.append((captured.decode_s + captured.record_s) / plain - 1)

    measured["capture_overhead"] = median(ratios)
    measured["capture_overhead_rounds"] = ratios
    assert median(ratios) < 0.5  # a broken recorder, not a noisy machine

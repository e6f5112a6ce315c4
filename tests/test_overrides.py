"""Overrides: ``KEY=VALUE`` as a number, with a unit, or as a factor of what the machine has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidesim.errors import SettingError
from tidesim.hardware import load_profile, what_if_label
from tidesim.overrides import overridden

A100 = load_profile("a100-40gb-pcie4-xeon48")
HELD = [key for key in A100.known_keys() if not A100.missing((key,))]
LINK = "link.h2d_bytes_per_s"


def value(key: str, *texts: str) -> float:
    return overridden(A100, [f"{key}={text}" for text in texts]).value(key)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (LINK, "5e10", 5e10),
        (LINK, "50GB/s", 50e9),
        (LINK, " 50 GB/s ", 50e9),
        (LINK, "46.5GiB/s", 46.5 * 2**30),
        (LINK, "800e2MB/s", 80e9),
        ("gpu.memory_bytes", "24GB", 24e9),
        ("cpu.memory_bytes", "1TiB", 2.0**40),
        ("link.latency_s", "5us", 5e-6),
        ("link.latency_s", "5µs", 5e-6),
        ("gpu.fused_call_s", ".02ms", 2e-5),
        ("gpu.flops_bf16", "300TFLOP/s", 3e14),
        ("link.h2d_duplex_factor", "80%", 0.8),
        ("machine.power_w", "0.3kW", 300.0),
        ("machine.price_usd", "1500USD", 1500.0),
        ("machine.cloud_usd_per_h", "2.5USD/h", 2.5),
        ("cpu.cores", "64", 64.0),
    ],
)
def test_a_value_is_a_number_alone_or_with_a_unit_of_its_kind(key, text, expected):
    assert value(key, text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sign", ["x", "X", "×", "*"])
def test_a_factor_multiplies_what_the_machine_has(sign):
    assert value(LINK, f"{sign}1.5") == 1.5 * A100.value(LINK)


@given(key=st.sampled_from(HELD))
def test_a_factor_of_one_leaves_every_number_as_it_is(key):
    assert value(key, "x1") == A100.value(key)


@given(
    key=st.sampled_from([key for key in HELD if key.endswith(("_per_s", "flops_bf16", "_s"))]),
    first=st.floats(0.01, 100),
    second=st.floats(0.01, 100),
)
def test_factors_of_one_number_multiply_in_any_order(key, first, second):
    forth, back = (
        value(key, f"x{first!r}", f"x{second!r}"),
        value(key, f"x{second!r}", f"x{first!r}"),
    )

    assert forth == pytest.approx(A100.value(key) * first * second, rel=1e-12)
    assert forth == pytest.approx(back, rel=1e-12)


def test_texts_apply_one_after_the_other():
    assert value(LINK, "10GB/s", "x3") == pytest.approx(30e9)
    assert value(LINK, "x3", "10GB/s") == 10e9


def test_the_label_names_every_number_as_it_became():
    changed = overridden(A100, [f"{LINK}=x2", "cpu.cores=64"])

    assert what_if_label(changed) == f"{A100.name} with cpu.cores = 64, {LINK} = 5.026e+10"
    assert changed.baseline is A100
    assert overridden(A100, []) is A100


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{LINK}=50GB", r"GB does not fit link.h2d_bytes_per_s; give bytes per second as a plain"),
        (f"{LINK}=50Gbit/s", r"or with one of B/s, kB/s, MB/s, GB/s"),
        (f"{LINK}=5us", "us does not fit"),
        ("gpu.memory_bytes=24GB/s", "GB/s does not fit gpu.memory_bytes; give bytes"),
        ("link.latency_s=5GB/s", "give seconds as a plain number, or with one of s, ms, us"),
        ("cpu.cores=64cores", "give whole cores as a plain number, without a unit"),
        (f"{LINK}=1_000", "_000 does not fit"),
        (f"{LINK}=1,5", ",5 does not fit"),
        (f"{LINK}=fast", "fast is no number; write for example link.h2d_bytes_per_s=5e10"),
        (f"{LINK}=x", "x is no number"),
        (f"{LINK}=x2GB/s", "a factor has no unit; leave GB/s out"),
        (f"{LINK}=x0", "must be above 0"),
        (f"{LINK}=x-1", "must be above 0"),
        (f"{LINK}=nan", "must be finite"),
        (f"{LINK}=x1e308", "must be finite"),
        (f"{LINK}=", "not KEY=VALUE"),
        ("=5", "not KEY=VALUE"),
        (LINK, "not KEY=VALUE"),
        ("link.h2d_gb_per_s=x2", "link.h2d_gb_per_s = 2.0 is no number of a profile; write"),
        ("contention.cpu_factor=120%", "must be at most 1"),
        ("engine.tidesim.cpu_workers=x2", "holds no engine.tidesim.cpu_workers to multiply"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_repair(text, told):
    with pytest.raises(SettingError) as caught:
        overridden(A100, [text])

    assert told in str(caught.value)

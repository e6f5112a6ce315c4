import hashlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies_hardware import profiles

from tidesim.errors import FormatError, NotFoundError, SettingError
from tidesim.hardware import (
    HardwareProfile,
    describe,
    load_profile,
    profile_names,
    what_if_label,
)

RATE = 'h2d_bytes_per_s = { value = 2.5e10, source = "bench", kind = "measured" }'
CURVE = 'bytes = [1, 2]\nseconds = [1e-6, 2e-6]\nsource = "bench"\nkind = "measured"\n'
SMALL = f"""format = "tidesim-hardware"
version = 1

[machine]
name = "box"

[cpu]
cores = {{ value = 8, source = "sheet", kind = "datasheet" }}

[link]
{RATE}

[engine.tidesim]
sync_s = {{ value = 1e-5, source = "guess", kind = "estimated" }}

[curves.copy.h2d]
{CURVE}"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "my box é.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def refused(path: Path, content: str | bytes) -> str:
    """Return the sentence with which a file is refused; it names the file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(FormatError) as caught:
        load_profile(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


def test_a_number_is_read_with_its_kind_and_source(box: Path) -> None:
    profile = load_profile(box)

    found = profile.quantity("link.h2d_bytes_per_s")

    assert (found.value, found.source, found.kind) == (2.5e10, "bench", "measured")
    assert profile.value("cpu.cores") == 8
    assert profile.kind_of("cpu.cores") == "datasheet"
    assert profile.name == "box"
    assert profile.file == str(box)


def test_the_digest_is_that_of_the_file(box: Path) -> None:
    assert load_profile(box).sha256 == hashlib.sha256(box.read_bytes()).hexdigest()


def test_an_absent_number_is_an_error_that_says_what_to_add(box: Path) -> None:
    with pytest.raises(FormatError) as caught:
        load_profile(box).value("gpu.launch_s")

    assert f"{box}: gpu.launch_s is missing but needed; add launch_s = {{ value" in str(
        caught.value
    )
    assert str(caught.value).endswith("under [gpu], in seconds")


def test_missing_keeps_the_order_of_the_question(box: Path) -> None:
    asked = ("gpu.launch_s", "link.h2d_bytes_per_s", "engine.tidesim.decide_s")

    assert load_profile(box).missing(asked) == ["gpu.launch_s", "engine.tidesim.decide_s"]


def test_an_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(NotFoundError) as caught:
        load_profile("a1000")

    for name in profile_names():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("h2d_bytes", "h2d_gb", "link.h2d_gb_per_s = 25000000000.0 is no key of tidesim-hardware 1"),
        ("h2d_bytes", "h2d_gb", "; write h2d_bytes_per_s, in bytes per second"),
        ("h2d_bytes_per_s", "h2d_gbps", "write h2d_bytes_per_s, in bytes per second"),
        ("sync_s", "sync_us", "engine.tidesim.sync_us = 1e-05 is no key"),
        ("sync_s", "sync_us", "; write sync_s, in seconds"),
        ("sync_s", "sync", "write sync_s, in seconds"),
        ("h2d_bytes", "h2d_byte", "did you mean h2d_bytes_per_s?"),
        ("[link]", "[lnik]", "did you mean link?"),
        ("cores", "kittens", "cpu.kittens = 8 is no key of tidesim-hardware 1; known are cores"),
        (RATE, '"a\\nb" = 1', "link.'a\\nb' = 1 is no key"),
        ("value = 2.5e10", "valeu = 2.5e10", "did you mean value?"),
        ("value = 2.5e10, ", "", "link.h2d_bytes_per_s.value is missing but needed; add it"),
        ('source = "bench", ', "", "link.h2d_bytes_per_s.source is missing but needed; add it"),
        ('source = "bench"', 'source = " "', "source is ' ' but must not be blank; say where"),
        ("2.5e10", "nan", "link.h2d_bytes_per_s.value is nan but must be finite; give bytes per s"),
        ("2.5e10", "inf", "is inf but must be finite"),
        ("2.5e10", "-1", "link.h2d_bytes_per_s.value is -1 but must be above 0; give bytes per s"),
        ("2.5e10", "0", "is 0 but must be above 0"),
        ("1e-5", "-1e-5", "engine.tidesim.sync_s.value is -1e-05 but must be at least 0; give sec"),
        ("2.5e10", "true", "is True but must be a number"),
        ("2.5e10", '"fast"', "is 'fast' but must be a number"),
        ("2.5e10", "[1]", "is [1] but must be a number"),
        ("2.5e10", "0x" + "f" * 5000, "is a huge integer but must be a number"),
        ("2.5e10", "1" * 5000, "not valid TOML"),
        ("value = 8", "value = 8.5", "cpu.cores.value is 8.5 but must be a whole number"),
        ("value = 8", "value = 0", "cpu.cores.value is 0 but must be at least 1"),
        (RATE, "h2d_bytes_per_s = 2.5e10", "is 25000000000.0 but must be a table; write h2d_"),
        (RATE, 'h2d_duplex_factor = { value = 1.5, source = "s", kind = "measured" }',
         "link.h2d_duplex_factor.value is 1.5 but must be at most 1; give a share above 0"),
        ('kind = "estimated"', 'kind = "guess"', "engine.tidesim.sync_s.kind is 'guess' but must"),
        ('kind = "estimated"', 'kind = "guess"', "be 'measured', 'datasheet' or 'estimated'; say how"),
        ('format = "tidesim-hardware"', 'format = "x"', "format is 'x' but must be"),
        ('format = "tidesim-hardware"\n', "", "format is missing but needed"),
        ("version = 1", "version = 2", "version is 2 but must be 1; this tidesim reads format"),
        ("version = 1", "version = 2\nnews = 1", "version is 2 but must be 1"),
        ("version = 1", "version = true", "version is True but must be 1"),
        ("version = 1", "version = 1.0", "version is 1.0 but must be 1"),
        ("version = 1\n", "", "version is missing but needed; add it"),
        ('name = "box"', "", "machine.name is missing but needed; add it"),
        ('name = "box"', "name = 3", "machine.name is 3 but must be text"),
        ("[link]", "[[link]]", "link is [{'h2d_bytes_per_s'"),
        ("[link]", "[link", "not valid TOML: Expected ']' at the end of a table"),
        ("[link]", "[link", "(at line 10, column 6); repair that place"),
        ("[engine.tidesim]", "[engine.TIDE]", "engine.TIDE is 'TIDE' but must be lower-case"),
        ("[1, 2]", "[2, 1]", "but bytes must increase from point to point"),
        ("[1, 2]", "[1]", "but seconds must hold 1 values, one per point of the grid"),
        ("[1, 2]", "[]", "curves.copy.h2d.bytes is [] but must not be empty"),
        ("[1, 2]", "[1, true]", "curves.copy.h2d.bytes.1 is True but must be a number"),
        ("[1, 2]", "3", "curves.copy.h2d.bytes is 3 but must be a list of numbers"),
        ("[1e-6, 2e-6]", "[1e-6, 0]", "curves.copy.h2d.seconds.1 is 0 but must be above 0"),
        ("copy.h2d]", "copy.h2h]", "curves.copy.h2h = "),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_sentence(
    box: Path, old: str, new: str, sentence: str
) -> None:
    assert sentence in refused(box, changed(old, new))


def test_a_file_that_is_not_text_is_refused(box: Path) -> None:
    assert refused(box, b"\xff\xfe\x00").startswith("not valid TOML: ")


def test_deep_nesting_is_refused(box: Path) -> None:
    assert refused(box, "x = " + "[" * 100_000).startswith("not valid TOML: ")


@given(st.data())
def test_a_damaged_file_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(SMALL)))
    length = data.draw(st.integers(0, 20))
    text = SMALL[:start] + data.draw(st.text(max_size=5)) + SMALL[start + length :]
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")

    try:
        outcome = "".join(row.source for row in describe(load_profile(path)))
    except FormatError as error:
        outcome = str(error)

    assert outcome


def test_an_override_is_an_estimate_beside_the_untouched_baseline(box: Path) -> None:
    profile = load_profile(box)

    faster = profile.with_overrides({"link.h2d_bytes_per_s": 5e10, "gpu.launch_s": 0})

    found = faster.quantity("link.h2d_bytes_per_s")
    assert (found.value, found.source, found.kind) == (5e10, "override", "estimated")
    assert faster.value("gpu.launch_s") == 0
    assert profile.value("link.h2d_bytes_per_s") == 2.5e10
    assert faster.baseline is profile
    assert faster.with_overrides({"cpu.cores": 4}).baseline is profile
    assert len({profile.sha256, faster.sha256, faster.with_overrides({"cpu.cores": 4}).sha256}) == 3


def test_a_calibrated_number_says_so_and_is_its_own_baseline(box: Path) -> None:
    profile = load_profile(box)

    fitted = profile.calibrated({"gpu.launch_s": 3e-6}, source="calibrated on a run")

    found = fitted.quantity("gpu.launch_s")
    assert (found.value, found.source, found.kind) == (3e-6, "calibrated on a run", "measured")
    assert fitted.baseline is fitted
    assert what_if_label(fitted) == profile.name
    assert fitted.with_overrides({"cpu.cores": 4}).baseline is fitted
    with pytest.raises(SettingError, match="is no number of a profile"):
        profile.calibrated({"gpu.lunch_s": 1.0}, source="a run")


def test_a_profile_survives_pickling(box: Path) -> None:
    faster = load_profile(box).with_overrides({"cpu.cores": 4})

    copy = pickle.loads(pickle.dumps(faster))

    assert copy == faster
    assert (copy.sha256, copy.baseline.value("cpu.cores")) == (faster.sha256, 8)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("link.h2d_gb_per_s", 25, "no number of a profile; write link.h2d_bytes_per_s, in bytes"),
        ("link.h2d_byte_per_s", 25, "did you mean link.h2d_bytes_per_s?"),
        ("engine.tidsim.sync_s", 0, "did you mean engine.tidesim.sync_s?"),
        ("cpu.kittens", 1, "known are cpu.cores, cpu.memory_bytes"),
        ("kittens", 1, ", …"),
        ("link.h2d_bytes_per_s", -1, "link.h2d_bytes_per_s.value is -1 but must be above 0"),
        ("link.h2d_bytes_per_s", float("nan"), "is nan but must be finite"),
        ("link.h2d_bytes_per_s", True, "is True but must be a number"),
        ("contention.cpu_factor", 2, "must be at most 1"),
    ],
)
def test_a_bad_override_is_refused(box: Path, key: str, value: float, sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_profile(box).with_overrides({key: value})

    assert sentence in str(caught.value)


def test_describe_lists_numbers_and_curves_in_file_order(box: Path) -> None:
    rows = [(row.key, row.value, row.kind, row.source) for row in describe(load_profile(box))]

    assert rows == [
        ("cpu.cores", 8.0, "datasheet", "sheet"),
        ("link.h2d_bytes_per_s", 2.5e10, "measured", "bench"),
        ("engine.tidesim.sync_s", 1e-5, "estimated", "guess"),
        ("curves.copy.h2d", "2 bytes", "measured", "bench"),
    ]


@given(profiles())
def test_a_drawn_profile_holds_every_known_key(profile: HardwareProfile) -> None:
    optional = {
        f"engine.{name}.{key}"
        for name in profile.engine
        for key in ("cpu_rate_factor", "cpu_workers", "expert_copy_call_s")
    }
    prices = {"machine.price_usd", "machine.cloud_usd_per_h", "machine.power_w"}

    assert set(profile.missing(tuple(profile.known_keys()))) <= optional | prices

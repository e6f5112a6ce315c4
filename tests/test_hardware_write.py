from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies_hardware import curves, profile_dicts

from tidesim.errors import OutputError
from tidesim.hardware import HardwareProfile, load_profile, profile_names
from tidesim.hardware_write import save_profile, to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NOT_BLANK = TEXT.map(lambda text: f"x{text}")


def reread(profile: HardwareProfile, folder: Path) -> HardwareProfile:
    path = folder / "written.toml"
    save_profile(profile, path)
    return load_profile(path)


@given(
    profile_dicts(), curves(), st.fixed_dictionaries({"name": NOT_BLANK, "note": TEXT}), NOT_BLANK
)
def test_a_written_profile_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: dict[str, Any],
    tables: dict[str, Any],
    machine: dict[str, Any],
    source: str,
) -> None:
    numbers["link"]["latency_s"]["source"] = source
    profile = HardwareProfile.from_dict(numbers | {"curves": tables, "machine": machine})

    again = reread(profile, tmp_path_factory.getbasetemp())

    assert again.model_dump() == profile.model_dump()


@pytest.mark.parametrize("name", profile_names())
def test_bundled_profiles_survive(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)

    assert reread(profile, tmp_path).model_dump() == profile.model_dump()


def test_a_file_is_readable() -> None:
    number = {"value": 2.5e10, "source": 'bench "x"\n\x7f', "kind": "measured"}
    sizes = {"hidden_size": 1, "moe_intermediate_size": 2, "dtype": "float32"}
    grid = {"tokens_per_expert": [1, 2], "experts": [1, 8, 64], "seconds": [1, 2, 3, 4, 5, 6e-7]}
    curve = {**sizes, **grid, "source": "bench", "kind": "measured"}
    profile = HardwareProfile.from_dict(
        {
            "format": "tidesim-hardware",
            "version": 1,
            "machine": {"name": "box é"},
            "link": {"h2d_bytes_per_s": number},
            "curves": {"cpu_experts": curve},
        }
    )

    assert (
        to_toml(profile)
        == """\
format = "tidesim-hardware"
version = 1

[machine]
name = "box é"

[link]
h2d_bytes_per_s = { value = 2.5e+10, source = "bench \\"x\\"\\n\\u007f", kind = "measured" }

[curves.cpu_experts]
hidden_size = 1
moe_intermediate_size = 2
dtype = "float32"
tokens_per_expert = [1, 2]
experts = [1, 8, 64]
seconds = [
  1, 2, 3,
  4, 5, 6e-07,
]
source = "bench"
kind = "measured"
"""
    )


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose a folder that exists"):
        save_profile(load_profile(profile_names()[0]), tmp_path / "none" / "x.toml")

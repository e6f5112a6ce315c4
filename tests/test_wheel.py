"""The wheel, built here and installed where the checkout cannot be seen, does the main job."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import answers
import pytest

import tidesim

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, timeout: int = 60) -> str:
    """Run a command that sees neither this checkout nor this environment; return its output."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        command, cwd=cwd, env=environment, timeout=timeout, check=False, text=True,
        stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive and, built from that, the wheel."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=ROOT, timeout=120)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the dependencies of this one, and tidesim from the wheel alone."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    installed = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--no-build-isolation", wheel, cwd=home,
    )  # fmt: skip
    assert "Successfully installed tidesim" in installed
    # A plain path line: the .pth files inside that folder, this checkout's among them, stay unread.
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def bundled() -> set[str]:
    """List the data files of the checkout by their place in the wheel."""
    return {
        f"tidesim/_data/{path.relative_to(ROOT).as_posix()}"
        for kind in ("traces", "hwprofiles")
        for path in (ROOT / kind).rglob("*")
        if path.is_file() and path.name != ".gitkeep"
    }


def sources() -> set[str]:
    """List the modules of the checkout."""
    packages = (ROOT / "tidesim", ROOT / "solver")
    return {
        path.relative_to(ROOT).as_posix() for folder in packages for path in folder.rglob("*.py")
    }


def test_the_wheel_holds_both_packages_and_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    assert sources() <= names
    assert {"tidesim/py.typed", "solver/py.typed"} <= names
    assert bundled() <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {
        "tidesim",
        "solver",
        f"tidesim-{tidesim.__version__}.dist-info",
    }


def test_the_source_archive_holds_no_training_state(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        folders = {name.split("/")[1] for name in archive.getnames()}

    assert {"tidesim", "solver", "tests", "Makefile"} <= folders
    assert not folders & {"training", ".venv", "build", "dist"}


def test_tidesim_comes_from_the_wheel(python: Path, tmp_path: Path) -> None:
    code = "import tidesim, solver; print(tidesim.__file__, solver.__file__, sep='\\n')"

    for file in run(python, "-c", code, cwd=tmp_path).splitlines():
        assert Path(file).is_relative_to(python.parents[1])


def test_the_installed_command_says_its_version(python: Path, tmp_path: Path) -> None:
    printed = run(python.with_name("tidesim"), "--version", cwd=tmp_path)

    assert printed == f"tidesim {tidesim.__version__}\n"


def test_the_installed_data_are_found(python: Path, tmp_path: Path) -> None:
    code = "from tidesim.hardware import profile_names; print(*profile_names())"

    printed = run(python, "-c", code, cwd=tmp_path)

    assert printed.split() == sorted(path.stem for path in (ROOT / "hwprofiles").glob("*.toml"))


def test_the_installed_demo_does_the_main_job(python: Path, tmp_path: Path) -> None:
    printed = run(python.with_name("tidesim"), "demo", "--json", cwd=tmp_path, timeout=300)

    answer = json.loads(printed)
    answers.check(("demo",), answer)
    assert answers.unmet({("demo",): answer}) == set()
    for file in (answer["trace"], answer["schedule"], answer["report"]):
        assert (tmp_path / file).is_file()

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from tidesim import resources
from tidesim.errors import NotFoundError, OutputError
from tidesim.resources import (
    atomic_path,
    bundled_names,
    data_dir,
    find,
    find_checkpoint,
    sha256_file,
    write_text,
)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two profiles and one checkpoint, and a package folder beside them."""
    for name in ("hwprofiles/small.toml", "hwprofiles/big.toml", "traces/tiny/config.json"):
        path = tmp_path / "repo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (tmp_path / "repo/hwprofiles/README.md").write_text("")
    (tmp_path / "repo/traces/not-a-checkpoint").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "repo/tidesim")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "repo"


# ── finding ──────────────────────────────────────────────────────────────────────────────────────


def test_the_bundled_names_are_sorted_and_without_suffix(bundle: Path) -> None:
    assert bundled_names("hwprofiles") == ["big", "small"]


def test_a_bundled_name_and_a_path_mean_files(bundle: Path) -> None:
    assert find("hwprofiles", "small") == bundle / "hwprofiles/small.toml"
    assert find("hwprofiles", bundle / "traces/tiny/config.json").name == "config.json"
    assert find_checkpoint("tiny") == bundle / "traces/tiny"
    assert find_checkpoint(bundle / "traces") == bundle / "traces"


def test_a_file_in_the_current_folder_goes_before_a_bundled_name(bundle: Path) -> None:
    Path("small").write_text("mine")

    assert find("hwprofiles", "small") == Path("small")


def test_an_installed_package_goes_before_a_checkout(bundle: Path) -> None:
    installed = bundle / "tidesim/_data/hwprofiles"
    installed.mkdir(parents=True)

    assert data_dir("hwprofiles") == installed
    assert data_dir("traces") == bundle / "traces"


def test_an_unknown_name_is_answered_with_the_known_ones(bundle: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^medium: no such file .* one of: big, small$"):
        find("hwprofiles", "medium")


@pytest.mark.parametrize("name", ["", ".", "..", "../hwprofiles/small", "small.toml", "traces"])
def test_a_bundled_name_is_no_path(bundle: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        find("hwprofiles", name)


@pytest.mark.parametrize("name", ["not-a-checkpoint", "../traces/tiny", "tinier"])
def test_a_checkpoint_name_needs_a_folder_with_a_config(bundle: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json and model\.safetensors, or tide-tiny$"):
        find_checkpoint(name)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def listed(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_is_replaced_whole_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out é.json"
    target.write_text("old")

    with atomic_path(target) as temporary:
        temporary.write_text("new")
        before = target.read_text()

    assert (before, listed(tmp_path)) == ("old", {"out é.json": "new"})


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), NotFoundError("x")])
def test_after_an_error_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "out.json"

    with pytest.raises(type(error)) as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error

    assert caught.value is error
    assert listed(tmp_path) == {}


def test_after_an_error_the_older_file_stands(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")

    with pytest.raises(OutputError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert listed(tmp_path) == {"out.json": "old"}


@pytest.mark.parametrize("private", [False, True])
def test_the_mode_is_that_of_any_new_file(tmp_path: Path, private: bool) -> None:
    """Some writers make private files; the result is as readable as the user's umask says."""
    (tmp_path / "any").touch()

    with atomic_path(tmp_path / "out") as temporary:
        temporary.write_text("text")
        if private:
            temporary.chmod(0o600)

    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_the_content_is_on_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    monkeypatch.setattr(os, "fsync", lambda _: events.append(listed(tmp_path)))

    write_text(tmp_path / "out", "text")

    ((name, text),) = events[0].items()
    assert (name.endswith(".tmp"), text) == (True, "text")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out") as first, atomic_path(tmp_path / "out") as second:
        first.write_text("first")
        second.write_text("second")

    assert listed(tmp_path) == {"out": "first"}


def refused(target: Path) -> str:
    """Return the sentence with which a target is refused before any work is done."""
    reached = False
    with pytest.raises(OutputError) as caught, atomic_path(target):
        reached = True
    assert not reached
    return str(caught.value)


def test_a_missing_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing/out") == (
        f"{tmp_path}/missing/out: cannot be written (No such file or directory); "
        "choose a folder that exists and that you may write to"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    assert "cannot be written (Permission denied); choose a folder" in refused(tmp_path / "out")


def test_a_read_only_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, mode: str = "r") -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", read_only)

    assert "cannot be written (Read-only file system); choose" in refused(tmp_path / "out")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "cannot be written (Not a directory)" in refused(tmp_path / "file/out")


@pytest.mark.parametrize("target", ["", ".", "..", "folder", "x" * 300])
def test_what_can_be_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()

    assert "cannot be written" in refused(Path(target))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_device_or_pipe_is_refused(tmp_path: Path) -> None:
    """A rename would put a file in its place: as root, for the whole machine, at /dev/null."""
    os.mkfifo(tmp_path / "pipe")

    assert "cannot be written" in refused(tmp_path / "pipe")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x00\xff" * 100_000)

    assert (
        sha256_file(tmp_path / "file")
        == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    )

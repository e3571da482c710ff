"""Which directories a mount may take, and what the kernel's table says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.daemon import mountpoints
from modelfs.errors import BadInput, Conflict, NotFound


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """Of a name that the kernel's table escapes."""
    place = tmp_path / "a b\n\\040"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def test_an_empty_directory_is_free(tmp_path: Path) -> None:
    mountpoints.check_free(tmp_path)


def test_a_missing_directory_is_not_found_and_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="missing"):
        mountpoints.check_free(tmp_path / "missing")


def test_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="file"):
        mountpoints.check_free(tmp_path / "file")
    with pytest.raises(NotFound):
        mountpoints.check_free(tmp_path / "file" / "below")


def test_a_directory_that_is_not_empty_is_taken(tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(Conflict, match="something"):
        mountpoints.check_free(tmp_path)


def test_a_directory_with_a_mount_is_taken_and_the_mount_is_named(tmpfs: Path) -> None:
    with pytest.raises(Conflict, match="tmpfs"):
        mountpoints.check_free(tmpfs)


def test_a_mount_is_found_by_a_name_that_the_table_escapes_and_detached(tmpfs: Path) -> None:
    found = mountpoints.mount_at(tmpfs)
    assert found is not None
    assert (found.fstype, found.ours) == ("tmpfs", False)
    with (tmpfs / "open").open("w"):
        with pytest.raises(Conflict, match="busy"):
            mountpoints.detach(tmpfs, lazy=False)
        assert mountpoints.mount_at(tmpfs) is not None
        mountpoints.detach(tmpfs, lazy=True)
    assert mountpoints.mount_at(tmpfs) is None


def test_detaching_what_is_not_mounted_is_not_found(tmp_path: Path) -> None:
    for lazy in (False, True):
        with pytest.raises(NotFound, match="no modelfs mount"):
            mountpoints.detach(tmp_path, lazy=lazy)

"""A version that is withdrawn while it is mounted: whoever opens it is warned in the log, or refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mount.mounting import BOTH_ENGINES, Mounter, until


def yank(mount: Mounter, repository: Path, *options: str) -> None:
    done = mount.run("yank", repository, "acme/base:v1", *options)
    assert done.returncode == 0, done.stderr


def refused(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError as error:
        assert error.errno == errno.EACCES
        return True
    return False


@BOTH_ENGINES
def test_a_mount_warns_once_a_version_is_withdrawn_and_reads_on(mount: Mounter, repository: Path, source: Path) -> None:
    whole = mount(repository, "--poll", "100ms", name="whole")
    pinned = mount(repository, "--poll", "100ms", "--model", "acme/base", name="pinned")
    files = [whole / "acme/base/v1/run.sh", pinned / "run.sh"]
    assert [file.read_bytes() for file in files] == [(source / "run.sh").read_bytes()] * 2
    assert "version.yanked" not in whole.log.read_text() + pinned.log.read_text()
    yank(mount, repository, "--reason", "bad eval")
    for mounted, file in zip((whole, pinned), files, strict=True):
        def told(mounted=mounted, file=file) -> bool:  # type: ignore[no-untyped-def]
            assert file.read_bytes() == (source / "run.sh").read_bytes()
            return "version.yanked" in mounted.log.read_text()
        until(told)
        assert "bad eval" in mounted.log.read_text()


@BOTH_ENGINES
def test_a_mount_refuses_it_where_the_policy_says_so_and_takes_it_back(mount: Mounter, repository: Path,
                                                                      source: Path) -> None:
    mount.environ["MODELFS_POLICY_YANKED"] = "deny"
    whole = mount(repository, "--poll", "100ms", name="whole")
    pinned = mount(repository, "--poll", "100ms", "--model", "acme/base", name="pinned")
    files = [whole / "acme/base/v1/run.sh", pinned / "run.sh"]
    content = (source / "run.sh").read_bytes()
    with files[0].open("rb", buffering=0) as before:
        yank(mount, repository, "--reason", "bad eval")
        for file in files:
            until(lambda file=file: refused(file))  # type: ignore[misc]
            assert file.stat().st_size == len(content)
        assert os.pread(before.fileno(), len(content), 0) == content  # who had it open goes on
        yank(mount, repository, "--undo")
        until(lambda: not refused(files[0]) and not refused(files[1]))


def test_a_followed_tag_is_not_followed_to_a_version_that_is_denied(mount: Mounter, repository: Path,
                                                                    source: Path) -> None:
    mount.environ["MODELFS_POLICY_YANKED"] = "deny"
    before = (source / "run.sh").read_bytes()
    (source / "run.sh").write_bytes(b"other")
    assert mount.run("push", source, repository, "acme/base").returncode == 0
    assert mount.run("tag", repository, "acme/base:v1", "latest").returncode == 0
    yanked = mount.run("yank", repository, "acme/base:v2", "--reason", "bad eval")
    assert yanked.returncode == 0
    followed = mount(repository, "--poll", "100ms", "--model", "acme/base", "--follow")
    watching = mount(repository, "--poll", "100ms", name="watching")
    assert mount.run("tag", repository, "acme/base:v2", "latest").returncode == 0
    until(lambda: os.readlink(watching / "acme/base/latest") == "v2")
    assert (followed / "run.sh").read_bytes() == before
    assert mount.run("yank", repository, "acme/base:v2", "--undo").returncode == 0
    until(lambda: (followed / "run.sh").read_bytes() == b"other")


@pytest.mark.parametrize("policy", ["warn", "deny"])
def test_a_mount_of_a_withdrawn_version_says_so_at_once(mount: Mounter, repository: Path, policy: str) -> None:
    yank(mount, repository, "--reason", "bad eval")
    mount.environ["MODELFS_POLICY_YANKED"] = policy
    mounted = mount.start(repository, "--model", "acme/base:v1")
    said = "warning: acme/base:v1 was withdrawn: bad eval" if policy == "warn" else "acme/base:v1 was withdrawn"
    until(lambda: said in mounted.log.read_text())
    if policy == "deny":
        assert mounted.ended() == 6
    else:
        until(lambda: mounted.here)

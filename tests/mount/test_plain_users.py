"""Mounts of a plain user by the setuid helper, with either engine, and what a host does not permit: no device, no
rights to it, the mount of another user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounting import Mounter, gone

DROP = """
import os, sys
os.posix_fadvise(os.open(sys.argv[1], os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
"""
"""The kernel forgets its pages: what is read next is asked for, or was stored ahead of the reader."""

AHEAD = """
import ctypes, mmap, os, sys, time
from pathlib import Path
file = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(file).st_size
minor = os.stat(file).st_dev & 0xff
assert int(Path(f"/sys/class/bdi/0:{minor}/read_ahead_kb").read_text()) <= 256
mapped = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
address, pages = ctypes.addressof(ctypes.c_char.from_buffer(mapped)), size // mmap.PAGESIZE
here = (ctypes.c_ubyte * pages)()

def resident():
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(pages * mmap.PAGESIZE), here) == 0
    return bytes(page & 1 for page in here)

assert not any(resident())
touched = pages * 3 // 8
for page in range(touched):
    mapped[page * mmap.PAGESIZE]
end = time.monotonic() + 30
while not all(resident()[pages * 6 // 8:pages * 7 // 8]):
    assert time.monotonic() < end, f"{sum(resident())} of {pages} pages are there, {touched} were touched"
    time.sleep(0.01)
assert mapped[:] == Path(sys.argv[2]).read_bytes()
"""
"""Reads three eighths of a map, one page after the other, and waits for pages of the seventh eighth."""


@pytest.fixture
def plain_home(mount: Mounter) -> Iterator[Path]:
    """A home for a plain user, with what a mount needs; the mounter's environment leads there."""
    home = Path(tempfile.mkdtemp())
    for name in ("run", "mnt", "cache", "state", "config"):
        (home / name).mkdir(mode=0o700)
        os.chown(home / name, PLAIN, PLAIN)
    os.chown(home, PLAIN, PLAIN)
    mount.environ |= {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "XDG_CACHE_HOME": str(home / "cache"),
                      "XDG_STATE_HOME": str(home / "state"), "XDG_CONFIG_HOME": str(home / "config"),
                      "MODELFS_CACHE_DIRECTORY": str(home / "cache" / "modelfs")}
    yield home
    mount.end()
    subprocess.run(["umount", "-l", str(home / "mnt")], check=False, capture_output=True)
    shutil.rmtree(home)


PLAIN = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants one that has a name
# It may read everything (the interpreter may lie in another's home), and write only what is its own.
AS_PLAIN = ("setpriv", f"--reuid={PLAIN}", f"--regid={PLAIN}", "--clear-groups", "--inh-caps=-all,+dac_read_search",
            "--ambient-caps=-all,+dac_read_search")


def as_plain(mount: Mounter, device_mode: int, *command: object) -> subprocess.CompletedProcess[str]:
    """Run it in a namespace of its own, where /dev/fuse has this mode."""
    device = mount.tmp_path / f"fuse-{device_mode:o}"
    if not device.exists():
        os.mknod(device, 0o020000 | 0o600, os.stat("/dev/fuse").st_rdev)
        device.chmod(device_mode)
    return subprocess.run(["unshare", "-m", "sh", "-c", 'mount --bind "$0" /dev/fuse && exec "$@"', str(device),
                           *AS_PLAIN, *map(str, command)], env=mount.environ, capture_output=True, text=True,
                          timeout=120, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("engine", ["auto", "native", "fusepy"], indirect=True)
def test_a_missing_device_is_exit_2_and_says_what_to_load_and_what_docker_needs(mount: Mounter, repository: Path,
                                                                              engine: str) -> None:
    """In a namespace whose /dev has little in it."""
    (mount.tmp_path / "mnt").mkdir()
    bare = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"'
    for more in ((), ("--daemon",)):
        done = subprocess.run(["unshare", "-m", "sh", "-c", bare, "sh", sys.executable, "-m", "modelfs", "mount",
                               str(repository), str(mount.tmp_path / "mnt"), *more], env=mount.environ,
                              capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        for word in ("/dev/fuse: the device is missing", "modprobe fuse", "--device /dev/fuse", "--cap-add SYS_ADMIN"):
            assert word in done.stderr


@pytest.mark.parametrize("engine", ["auto", "native"], indirect=True)
def test_a_device_that_a_plain_user_may_not_open_is_exit_6_and_says_what_to_do(mount: Mounter, repository: Path,
                                                                             plain_home: Path) -> None:
    for more in ((), ("--daemon",)):
        done = as_plain(mount, 0o600, sys.executable, "-m", "modelfs", "mount", repository, plain_home / "mnt", *more)
        assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
        assert "/dev/fuse" in done.stderr and "0666" in done.stderr


def test_a_plain_user_mounts_by_the_helper_reads_upgrades_and_unmounts(mount: Mounter, repository: Path,
                                                                      source: Path, plain_home: Path) -> None:
    session = """
    set -e
    "$0" -m modelfs mount "$1" "$2" --model acme/base --daemon
    cmp "$3/big.bin" "$2/big.bin"
    for time in 1 2 3 4 5; do
        "$0" -c "$4" "$2/big.bin"
        cmp "$3/big.bin" "$2/big.bin"
    done
    "$0" -m modelfs status "$2" --json
    "$0" -m modelfs upgrade "$2" > /dev/null
    cmp "$3/big.bin" "$2/big.bin"
    "$0" -m modelfs umount "$2"
    """
    done = as_plain(mount, 0o666, "sh", "-c", session, sys.executable, repository, plain_home / "mnt", source,
                    DROP)
    assert done.returncode == 0, done.stderr
    assert '"engine": "native"' in done.stdout and '"passthrough": false' in done.stdout
    assert not [pid for pid in mount._daemons() if not gone(pid)]


def test_pages_are_in_the_kernel_ahead_of_a_plain_users_map(mount: Mounter, repository: Path, source: Path,
                                                           plain_home: Path) -> None:
    """The kernel by itself reads 128 KiB ahead in such a mount."""
    session = """
    set -e
    "$0" -m modelfs mount "$1" "$2" --model acme/base --daemon
    cmp "$3/big.bin" "$2/big.bin"
    "$0" -c "$4" "$2/big.bin"
    "$0" -c "$5" "$2/big.bin" "$3/big.bin" || failed=1
    "$0" -m modelfs umount "$2"
    exit ${failed:-0}
    """
    done = as_plain(mount, 0o666, "sh", "-c", session, sys.executable, repository, plain_home / "mnt", source, DROP,
                    AHEAD)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ["fusepy"], indirect=True)
def test_a_plain_user_mounts_with_fusepy_reads_and_unmounts(mount: Mounter, repository: Path, source: Path,
                                                            plain_home: Path) -> None:
    session = """
    set -e
    "$0" -m modelfs mount "$1" "$2" --daemon
    cmp "$3/big.bin" "$2/acme/base/latest/big.bin"
    "$0" -c "$4" "$2/acme/base/v1/big.bin"
    cmp "$3/big.bin" "$2/acme/base/v1/big.bin"
    "$0" -m modelfs status "$2" --json
    "$0" -m modelfs config reload "$2" --json > /dev/null
    exec 9< "$2/acme/base/v1/run.sh"
    "$0" -m modelfs umount "$2" && exit 99 || test $? = 7
    exec 9<&-
    "$0" -m modelfs umount "$2"
    """
    done = as_plain(mount, 0o666, "sh", "-c", session, sys.executable, repository, plain_home / "mnt", source, DROP)
    assert done.returncode == 0, done.stderr
    assert '"engine": "fusepy"' in done.stdout
    assert not (plain_home / "mnt").is_mount() and not [pid for pid in mount._daemons() if not gone(pid)]


def test_a_mount_of_another_user_is_not_unmounted_and_it_is_said_who_can(mount: Mounter, repository: Path,
                                                                        plain_home: Path) -> None:
    mounted = mount(repository)
    done = as_plain(mount, 0o666, sys.executable, "-m", "modelfs", "umount", mounted.place)
    assert done.returncode == 6 and "Who mounted it can, or root." in done.stderr, done.stderr
    assert mounted.here

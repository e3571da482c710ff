"""A FUSE descriptor that somebody mounted for writing: the kernel passes writes on, and each is refused by us."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounting import until
from repository.builder import Builder

from modelfs.engines.native.engine import NativeEngine
from modelfs.engines.options import MountOptions
from modelfs.view.view import View

DATA = os.urandom(300_001)
_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS
_EXCHANGE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def writable(built: Builder, show: Callable[..., View], tmp_path: Path) -> Iterator[Path]:
    """acme/base:v1 in a mount that has no `ro`."""
    built.push("acme/base", {"a.bin": DATA, "d/b.bin": b"b"})
    place = tmp_path / "mnt"
    place.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions"
    assert _LIBC.mount(b"somewhere", os.fsencode(place), b"fuse", ctypes.c_ulong(0), options.encode()) == 0
    engine = NativeEngine(tmp_path, passthrough=False)
    engine.take(MountOptions(Path(f"/dev/fd/{device}"), "somewhere"))
    serving = threading.Thread(target=engine.serve, args=(show(),), daemon=True)
    try:
        serving.start()
        until(lambda: engine.serving)
        yield place / "acme/base/v1"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        serving.join(30)
        os.close(device)
    assert not serving.is_alive()


def _rename(root: Path, flags: int) -> None:
    if _LIBC.renameat2(-100, os.fsencode(root / "a.bin"), -100, os.fsencode(root / "d/b.bin"), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


WRITES: dict[str, Callable[[Path], object]] = {
    "OPEN to write": lambda root: os.open(root / "a.bin", os.O_WRONLY),
    "OPEN to read and write": lambda root: os.open(root / "a.bin", os.O_RDWR),
    "SETATTR size": lambda root: os.truncate(root / "a.bin", 0),
    "SETATTR mode": lambda root: os.chmod(root / "d", 0o777),
    "SETATTR owner": lambda root: os.chown(root / "a.bin", 1, 1),
    "SETATTR times": lambda root: os.utime(root / "a.bin", (1, 1)),
    "CREATE": lambda root: os.open(root / "d/new", os.O_CREAT | os.O_WRONLY),
    "TMPFILE": lambda root: os.open(root / "d", os.O_TMPFILE | os.O_WRONLY),
    "MKNOD": lambda root: os.mknod(root / "new", stat.S_IFIFO | 0o600),
    "MKDIR": lambda root: os.mkdir(root / "new"),
    "SYMLINK": lambda root: os.symlink("x", root / "new"),
    "LINK": lambda root: os.link(root / "a.bin", root / "new"),
    "UNLINK": lambda root: os.unlink(root / "a.bin"),
    "RMDIR": lambda root: os.rmdir(root / "d"),
    "RENAME": lambda root: _rename(root, 0),
    "RENAME2": lambda root: _rename(root, _EXCHANGE),
    "SETXATTR": lambda root: os.setxattr(root / "a.bin", "user.x", b"1"),
    "REMOVEXATTR": lambda root: os.removexattr(root / "a.bin", "user.modelfs.digest"),
}


def test_every_call_that_would_write_is_erofs_and_nothing_has_changed(writable: Path) -> None:
    before = os.stat(writable / "a.bin")
    for name, write in WRITES.items():
        with pytest.raises(OSError) as caught:
            write(writable)
        assert caught.value.errno == errno.EROFS, name
    assert os.stat(writable / "a.bin") == before
    assert (sorted(os.listdir(writable)), os.listdir(writable / "d")) == (["a.bin", "d"], ["b.bin"])
    assert (writable / "a.bin").read_bytes() == DATA


def test_calls_that_are_unknown_here_do_what_the_kernel_does_without_them(writable: Path) -> None:
    """LSEEK, FSYNC, FSYNCDIR, POLL, IOCTL, ACCESS: each is answered ENOSYS; twice, since the kernel remembers."""
    for _ in range(2):
        file, directory = os.open(writable / "a.bin", os.O_RDONLY), os.open(writable, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert os.lseek(file, 1000, os.SEEK_DATA) == 1000
            assert os.lseek(file, 1000, os.SEEK_HOLE) == len(DATA)
            os.fsync(file)
            os.fsync(directory)
            poll = select.poll()
            poll.register(file, select.POLLIN)
            assert poll.poll(10_000) == [(file, select.POLLIN)]
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(file, _GETFLAGS, bytearray(8))
            assert caught.value.errno == errno.ENOTTY
            fcntl.lockf(file, fcntl.LOCK_SH)
            assert os.access(writable / "a.bin", os.R_OK)
            assert os.pread(file, len(DATA), 0) == DATA
        finally:
            os.close(file)
            os.close(directory)

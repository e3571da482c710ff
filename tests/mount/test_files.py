"""What programs see of a mount, through the kernel."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mount.mounting import BOTH_ENGINES, Mounter, until

from modelfs.units import MiB

pytestmark = BOTH_ENGINES


def tree(root: Path) -> dict[str, bytes | None]:
    """Every path below root, files with their bytes."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_the_tree_equals_what_was_pushed(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository)
    assert os.listdir(mounted.place) == ["acme"]
    assert sorted(os.listdir(mounted / "acme/base")) == ["latest", "v1"]
    assert os.readlink(mounted / "acme/base/latest") == "v1"
    assert tree(mounted / "acme/base/v1") == tree(source) == tree(mounted / "acme/base/latest")
    for path in source.rglob("*"):
        shown, pushed = (mounted / "acme/base/v1" / path.relative_to(source)).lstat(), path.lstat()
        assert stat.S_IFMT(shown.st_mode) == stat.S_IFMT(pushed.st_mode)
        if path.is_file():
            assert (shown.st_size, shown.st_mtime_ns) == (pushed.st_size, pushed.st_mtime_ns)
            assert shown.st_mode & 0o777 == 0o444 | pushed.st_mode & 0o111
            assert shown.st_blocks == -(-pushed.st_size // 512)
        assert (shown.st_uid, shown.st_gid) == (os.getuid(), os.getgid())


def test_inode_numbers_are_the_same_at_the_next_mount_and_in_listings(mount: Mounter, repository: Path) -> None:
    seen = []
    for _ in range(2):
        mounted = mount(repository, "--model", "acme/base")
        with os.scandir(mounted / "deep") as entries:
            listed = {entry.name: entry.inode() for entry in entries}
        assert listed == {name: (mounted / "deep" / name).lstat().st_ino for name in os.listdir(mounted / "deep")}
        seen.append(listed)
        mounted.umount()
    assert seen[0] == seen[1]


def test_a_mapped_file_has_its_bytes_shared_and_private(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    want = (source / "big.bin").read_bytes()
    with (mounted / "big.bin").open("rb") as file:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == want


def test_sendfile_sends_the_whole_file(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    want, got = (source / "big.bin").read_bytes(), bytearray()
    ours, theirs = socket.socketpair()
    with ours, theirs, (mounted / "big.bin").open("rb") as file:
        receiver = threading.Thread(target=lambda: [got.extend(piece) for piece in iter(lambda: theirs.recv(MiB), b"")])
        receiver.start()
        ours.sendfile(file)
        ours.shutdown(socket.SHUT_WR)
        receiver.join(30)
    assert got == want


def test_sixty_four_readers_at_once_get_their_bytes(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    want = (source / "big.bin").read_bytes()

    def read(number: int) -> bool:
        offset = number * 120_011 % len(want)
        with (mounted / "big.bin").open("rb", buffering=0) as file:
            got = os.pread(file.fileno(), 300_000, offset)
        return got == want[offset:offset + 300_000]

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(read, range(256)))


def test_a_read_is_short_only_at_the_end(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    want = (source / "big.bin").read_bytes()
    descriptor = os.open(mounted / "big.bin", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 100, len(want) - 7) == want[-7:]
        assert os.pread(descriptor, 10, len(want)) == os.pread(descriptor, 10, 1 << 50) == b""
        assert os.pread(descriptor, len(want) + 1, 0) == want
    finally:
        os.close(descriptor)


def test_a_second_open_finds_the_pages_of_the_first(mount: Mounter, repository: Path) -> None:
    """Nearly all of them: a machine short of memory may take some back."""
    mounted = mount(repository, "--model", "acme/base")

    def asked() -> int:
        before = mounted.status()["counters"]["reads"]
        (mounted / "big.bin").read_bytes()
        return mounted.status()["counters"]["reads"] - before

    first = asked()
    assert first
    for _ in range(3):
        assert asked() < first / 2


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda root: os.open(root / "big.bin", os.O_WRONLY),
    "create": lambda root: os.open(root / "deep/new", os.O_CREAT | os.O_WRONLY),
    "unlink": lambda root: os.unlink(root / "big.bin"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rename": lambda root: os.rename(root / "big.bin", root / "other"),
    "truncate": lambda root: os.truncate(root / "big.bin", 0),
    "chmod": lambda root: os.chmod(root / "big.bin", 0o777),
    "chown": lambda root: os.chown(root / "big.bin", 1, 1),
    "utime": lambda root: os.utime(root / "big.bin", (1, 1)),
    "symlink": lambda root: os.symlink("x", root / "new"),
    "link": lambda root: os.link(root / "big.bin", root / "new"),
    "mknod": lambda root: os.mknod(root / "new", stat.S_IFREG | 0o600),
    "setxattr": lambda root: os.setxattr(root / "big.bin", "user.x", b"1"),
    "removexattr": lambda root: os.removexattr(root / "big.bin", "user.modelfs.digest"),
}


def test_every_write_is_erofs(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    for name, write in WRITES.items():
        with pytest.raises(OSError) as caught:
            write(mounted.place)
        assert caught.value.errno == errno.EROFS, name


def test_extended_attributes_tell_what_is_cached(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository)
    path = mounted / "acme/base/v1/deep/er/small.bin"
    assert set(os.listxattr(path)) == {f"user.modelfs.{name}" for name in
                                       ("digest", "sha256", "version", "manifest", "cached", "stored")}
    assert os.getxattr(path, "user.modelfs.version") == b"v1"
    assert os.getxattr(path, "user.modelfs.cached") == b"0"
    path.read_bytes()
    until(lambda: os.getxattr(path, "user.modelfs.cached") == b"70001")  # the reader is served first
    assert os.listxattr(mounted / "acme/base/v1/deep") == []
    for name in ("user.modelfs.nope", "security.capability"):
        with pytest.raises(OSError) as caught:
            os.getxattr(path, name)
        assert caught.value.errno == errno.ENODATA


def test_names_that_cannot_be_there_are_not_found(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    for name in (b"nope", b"\xff\xfe", b"deep/\xff", b"deep/nope", b"x" * 255):
        with pytest.raises(FileNotFoundError):
            os.stat(os.fsencode(mounted.place) + b"/" + name)


def test_the_filesystem_tells_its_size(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    found = os.statvfs(mounted.place)
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    assert found.f_blocks * found.f_frsize >= size
    assert (found.f_bavail, found.f_namemax) == (0, 255)


def test_a_damaged_chunk_is_eio_and_the_daemon_goes_on(mount: Mounter, repository: Path, source: Path) -> None:
    largest = max((repository / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    largest.chmod(0o600)
    with largest.open("r+b") as pack:
        pack.seek(1 * MiB)
        pack.write(b"damaged")
    mounted = mount(repository, "--model", "acme/base", "--deadline", "2s")
    with pytest.raises(OSError) as caught:
        (mounted / "big.bin").read_bytes()
    assert caught.value.errno == errno.EIO
    assert (mounted / "deep/er/small.bin").read_bytes() == (source / "deep/er/small.bin").read_bytes()
    assert mounted.status()["counters"]["errors"] > 0

"""Mount points: what the kernel says is mounted where, whether one is free, and how a mount is taken away.

Rule: a mount whose daemon hangs or is dead hangs or fails whoever asks it, so it is looked up in the kernel's
table, and only its parent directories are ever asked.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelfs import paths
from modelfs.errors import BadInput, Conflict, Forbidden, ModelfsError, NotFound

FSTYPE = "fuse.modelfs"
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the kernel's table. device: minor number, which is also the FUSE connection's name."""

    mountpoint: Path
    fstype: str
    device: int

    @property
    def ours(self) -> bool:
        return self.fstype == FSTYPE


def all_mounts() -> list[MountEntry]:
    """Those that we can see, lowest first where they are stacked."""
    entries = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields, _, more = line.partition(b" - ")
        columns = fields.split(b" ")
        path = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), columns[4])
        entries.append(MountEntry(Path(os.fsdecode(path)), more.split(b" ")[0].decode(errors="replace"),
                                  int(columns[2].split(b":")[1])))
    return entries


def mount_at(mountpoint: Path) -> MountEntry | None:
    """What is mounted exactly here, the topmost. mountpoint: canonical (paths.canonical)."""
    return next((entry for entry in reversed(all_mounts()) if entry.mountpoint == mountpoint), None)


def check_free(mountpoint: Path) -> None:
    """That something can be mounted here. mountpoint: canonical.

    Raises NotFound, BadInput for what is no directory, Conflict where something is mounted or it is not empty,
    Forbidden.
    """
    taken = mount_at(mountpoint)
    if taken is not None:
        dead = taken.ours and is_dead(mountpoint)
        raise Conflict("the mount point is taken", where=str(mountpoint),
                       why="a modelfs whose daemon is dead is mounted there" if dead else
                       f"a {taken.fstype.removeprefix('fuse.')} is mounted there",
                       advice=f"`{'modelfs ' * taken.ours}umount {mountpoint}` first, or choose another directory.")
    try:
        if not stat.S_ISDIR(os.stat(mountpoint).st_mode):
            raise BadInput("the mount point is no directory", where=str(mountpoint))
        with os.scandir(mountpoint) as entries:
            first = next(entries, None)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound("no such mount point", where=str(mountpoint), advice="Make the directory first.") from error
    except OSError as error:
        raise Forbidden("cannot use the mount point", where=str(mountpoint),
                        why=error.strerror or str(error)) from error
    if first is not None:
        raise Conflict("the mount point is taken", where=str(mountpoint),
                       why=f"the directory is not empty ({first.name[:60]!r})", advice="Choose an empty directory.")


@contextmanager
def claimed(mountpoint: Path, lock: Path) -> Iterator[None]:
    """While a mount begins: that no other begins here. Until the kernel's table has the first of two that begin at
    once, each would find the directory free, and they would be stacked.

    lock: a file of this mount point's own, in a directory of ours. Raises Conflict, Forbidden.
    """
    fd = _locked(mountpoint, lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def is_dead(mountpoint: Path) -> bool:
    """Whether what is mounted here has lost its daemon. Asks it: only for who can wait for a daemon that hangs."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(mountpoint: Path, *, lazy: bool) -> None:
    """Unmount. lazy: take it out of sight now, and let what is open live on.

    Raises Conflict where it is busy (and nothing changed), NotFound where nothing is mounted, Forbidden.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        _fusermount(mountpoint, lazy)
    elif code == errno.EBUSY:
        raise _busy(mountpoint)
    elif code in (errno.EINVAL, errno.ENOENT):
        raise not_mounted(mountpoint)
    else:
        raise ModelfsError("cannot unmount", where=str(mountpoint), why=os.strerror(code))


def abort(device: int) -> bool:
    """Cut the connection of a mount: every request ends with an error. Returns whether that could be done."""
    try:
        Path(f"/sys/fs/fuse/connections/{device}/abort").write_text("1")
    except OSError:
        return False
    return True


def not_mounted(mountpoint: Path) -> NotFound:
    return NotFound("no modelfs mount", where=str(mountpoint), advice="`modelfs status` lists what is mounted.")


def _locked(mountpoint: Path, lock: Path) -> int:
    paths.make_private(lock.parent)
    while True:
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Forbidden("cannot lock the mount point", where=str(lock), why=error.strerror or str(error)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(lock)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise Conflict("the mount point is taken", where=str(mountpoint), why="another mount is starting there",
                           advice="`modelfs status` shows it once it answers.") from None
        except FileNotFoundError:
            pass  # who had it has just removed it
        os.close(fd)


def _fusermount(mountpoint: Path, lazy: bool) -> None:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise BadInput("cannot unmount", where=str(mountpoint), why="fusermount3 is missing", advice="Install fuse3.")
    done = subprocess.run([program, "-uz" if lazy else "-u", "--", str(mountpoint)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"})
    if done.returncode == 0:
        return
    if mount_at(mountpoint) is None:
        raise not_mounted(mountpoint)
    if "busy" in done.stderr:
        raise _busy(mountpoint)
    raise Forbidden("cannot unmount", where=str(mountpoint), why=done.stderr.strip(),
                    advice="Who mounted it can, or root.")


def _busy(mountpoint: Path) -> Conflict:
    return Conflict("the mount is busy", where=str(mountpoint), why="a file in it is open, or a process stands in it",
                    advice="Close them, or use --lazy or --force.")

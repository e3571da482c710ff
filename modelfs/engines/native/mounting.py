"""A FUSE descriptor, mounted: by mount(2) where we may, by fusermount3 otherwise.

Rule: imports little, since the keeper, which stays small, mounts by it, too.
Sources: mount(2); the options are those of fs/fuse/inode.c; the hand-over is libfuse's (_FUSE_COMMFD).
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess

from modelfs.engines.options import MountFailed, MountOptions
from modelfs.errors import BadInput

SUBTYPE = "modelfs"
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8

def mount(options: MountOptions) -> int:
    """The descriptor of a new mount, close-on-exec. Raises MountFailed, BadInput."""
    given = options.descriptor
    if given is not None:
        return _taken(given, options)
    if os.geteuid() == 0:
        return _mount_as_root(options)
    return _mount_by_helper(options)


def _taken(descriptor: int, options: MountOptions) -> int:
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise BadInput("no such descriptor", where=str(options.mountpoint), why=error.strerror or str(error)) from error
    if not stat.S_ISCHR(status.st_mode) or not os.path.samestat(status, os.stat("/dev/fuse")):
        raise BadInput("not a FUSE descriptor", where=str(options.mountpoint))
    os.set_inheritable(descriptor, False)
    return descriptor


def _mount_as_root(options: MountOptions) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id={os.getegid()},default_permissions"
    if options.allow_other:
        data += ",allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(options.source.encode(), os.fsencode(options.mountpoint), b"fuse." + SUBTYPE.encode(),
                  ctypes.c_ulong(_RDONLY | _NOSUID | _NODEV | _NOEXEC), data.encode()):
        code = ctypes.get_errno()
        os.close(fd)
        advice = "In a container it takes --cap-add SYS_ADMIN." if code == errno.EPERM else ""
        raise MountFailed("cannot mount", where=str(options.mountpoint), why=os.strerror(code), advice=advice)
    return fd


def _mount_by_helper(options: MountOptions) -> int:
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise BadInput("cannot mount", where="fusermount3", why="the program is missing",
                       advice="Install fuse3 (Debian, Ubuntu: apt-get install fuse3), or mount as root.")
    # commas separate options, and the two helpers do not agree on how to escape one
    source = options.source.replace("\\", "%5C").replace(",", "%2C")
    wanted = f"ro,nosuid,nodev,noexec,default_permissions,fsname={source},subtype={SUBTYPE}"
    if options.allow_other:
        wanted += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        helper = subprocess.Popen([program, "-o", wanted, "--", str(options.mountpoint)], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(theirs.fileno(),),
                                  env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"})
        theirs.close()
        fd = _received(ours)  # before waiting for the helper, which waits for us
        said = helper.communicate()[1].decode(errors="replace").strip()
    if fd is None:
        if "user_allow_other" in said:
            raise BadInput("cannot mount for other users", where=str(options.mountpoint),
                           why="/etc/fuse.conf does not allow it",
                           advice="Write user_allow_other into it, or leave --allow-other away.")
        raise MountFailed("cannot mount", where=str(options.mountpoint),
                          why=" ".join(said.split()) or f"{program} ended with {helper.returncode}")
    return fd


def _received(channel: socket.socket) -> int | None:
    """The one descriptor that comes; None where the helper ends without sending one."""
    size = array.array("i").itemsize
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fd = array.array("i", data[:size])[0]
            os.set_inheritable(fd, False)
            return fd
    return None

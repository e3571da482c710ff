"""The portable engine: libfuse 2 through fusepy. Paths become nodes here, and errors become errno.

Rule: whatever goes wrong in a read is EIO, and no exception leaves a callback: ctypes would answer 0 in its
place, which to a reader is the end of the file.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

from fuse import c_stat

from modelfs.engines.device import check_fuse
from modelfs.engines.libfuse import Session
from modelfs.engines.options import MountFailed, MountOptions
from modelfs.errors import BadInput, ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.view.tree import Node
from modelfs.view.view import BLOCK_BYTES, NAME_MAX, Attr, OpenFile, View

_LOG = logger_for(__name__)
_REQUEST_BYTES = 128 << 10  # the largest that libfuse 2 can take
_BACKGROUND = 1000
"""Requests that the kernel has open at once. Parked ones cost a thread each, nothing else; with libfuse's 12, cold
reads that hang hold up cached ones."""
_REMEMBERED_PATHS = 4096
_CHANGING_TIMEOUT_S, _FIXED_TIMEOUT_S = 1, 3600
_ATTR_TIMEOUT_S = 0.1
"""Attributes never change, but a mount whose daemon was killed should say ENOTCONN to a stat, soon if not at once."""


class FusepyEngine:
    name = "fusepy"
    passthrough = serving = False
    """serving: nobody asks: the mount's own answer to a lookup tells."""

    def check(self, options: MountOptions) -> None:
        if options.descriptor is not None:
            raise BadInput("cannot serve a FUSE descriptor", where=str(options.mountpoint),
                           why="the fusepy engine mounts by itself", advice="Use --engine native.")
        check_fuse()
        try:
            str(options.mountpoint).encode()
        except UnicodeEncodeError as error:
            raise BadInput("cannot mount", where=repr(str(options.mountpoint)), why="the path is not UTF-8") from error

    def take(self, options: MountOptions) -> None:
        """libfuse mounts as it begins to serve."""
        self._options = options

    def leave(self, seconds: float) -> None:
        """libfuse owns the descriptor: nobody can succeed us."""

    def serve(self, view: View) -> None:
        options = self._options
        timeout_s = _FIXED_TIMEOUT_S if view.fixed else _CHANGING_TIMEOUT_S
        settings: dict[str, object] = {
            "ro": True, "nosuid": True, "nodev": True, "noexec": True, "default_permissions": True,
            "fsname": _option(options.source), "subtype": "modelfs", "use_ino": True,
            # pages outlive the close: what a path below a version means never changes
            "kernel_cache": True, "max_read": _REQUEST_BYTES, "max_background": _BACKGROUND,
            "congestion_threshold": _BACKGROUND, "entry_timeout": timeout_s,
            "attr_timeout": _ATTR_TIMEOUT_S, "negative_timeout": 0, "allow_other": options.allow_other}
        filesystem = _Filesystem(view)
        written = [name if value is True else f"{name}={value}" for name, value in settings.items()
                   if value is not False]
        if not Session(_Offered(), filesystem, filesystem.answer).serve(str(options.mountpoint), written):
            raise MountFailed("cannot mount", where=str(options.mountpoint), why="libfuse refused")


def _option(text: str) -> str:
    """libfuse and fusermount split options at commas, and do not agree on how to escape one."""
    return text.replace("\\", "%5C").replace(",", "%2C")


class _Offered:
    """Which callbacks libfuse gets; fusepy looks for attributes by these names. What is missing is ENOSYS there,
    and for writes never asked for: the mount is read-only."""

    use_ns = True
    getattr = readlink = open = read = release = opendir = readdir = releasedir = statfs = getxattr = listxattr = True
    # handles are enough for these: libfuse need not build a path for every read
    flag_nullpath_ok = flag_nopath = 1


class _Filesystem:
    """The callbacks, in libfuse's terms; they come from several threads."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._uid, self._gid = os.getuid(), os.getgid()
        self._handle = itertools.count(1)
        self._open: dict[int, OpenFile] = {}
        self._listed: dict[int, Node] = {}
        self._nodes = _Nodes(view)

    @staticmethod
    def answer(function: Callable[..., int | None], *arguments: Any) -> int:
        try:
            return function(*arguments) or 0
        except ModelfsError as error:
            return -error.errno
        except BaseException as error:
            log_event(_LOG, "error", "request.failed", key=function.__name__, request=function.__name__, error=error)
            return -errno.EIO

    def getattr(self, path: bytes, buffer: Any) -> None:
        self._fill(buffer.contents, self._view.getattr(self._nodes.at(path)))

    def fgetattr(self, path: bytes | None, buffer: Any, info: Any) -> None:
        self._fill(buffer.contents, self._view.getattr(self._open[info.contents.fh].node))

    def readlink(self, path: bytes, buffer: Any, size: int) -> None:
        target = self._view.readlink(self._nodes.at(path)).encode()[:size - 1] + b"\0"
        ctypes.memmove(buffer, target, len(target))

    def open(self, path: bytes, info: Any) -> None:
        opened = self._view.open(self._nodes.at(path))
        handle = next(self._handle)
        self._open[handle] = opened
        info.contents.fh = handle

    def read(self, path: bytes | None, buffer: Any, size: int, offset: int, info: Any) -> int:
        opened = self._open[info.contents.fh]
        # libfuse's own buffer, without a copy: the reader promises not to touch it after it returned
        out = memoryview((ctypes.c_ubyte * size).from_address(ctypes.addressof(buffer.contents))).cast("B")
        try:
            return self._view.read(opened, offset, out)
        except ModelfsError:
            return -errno.EIO

    def release(self, path: bytes | None, info: Any) -> None:
        self._open.pop(info.contents.fh, None)

    def opendir(self, path: bytes, info: Any) -> None:
        node = self._nodes.at(path)
        handle = next(self._handle)
        self._listed[handle] = node
        info.contents.fh = handle

    def readdir(self, path: bytes | None, buffer: Any, fill: Any, offset: int, info: Any) -> None:
        status = c_stat()
        fill(buffer, b".", None, 0)
        fill(buffer, b"..", None, 0)
        for entry in self._view.readdir(self._listed[info.contents.fh]):
            status.st_ino, status.st_mode = entry.ino, entry.mode
            if fill(buffer, entry.name.encode(), status, 0):
                raise MemoryError("libfuse cannot hold the directory")

    def releasedir(self, path: bytes | None, info: Any) -> None:
        self._listed.pop(info.contents.fh, None)

    def statfs(self, path: bytes, buffer: Any) -> None:
        found, status = self._view.statfs(), buffer.contents
        status.f_bsize = status.f_frsize = BLOCK_BYTES
        status.f_blocks = max(1, -(-found.total_bytes // BLOCK_BYTES))
        status.f_files = found.files
        status.f_namemax = NAME_MAX

    def getxattr(self, path: bytes, name: bytes, buffer: Any, size: int, *more: int) -> int:
        value = self._view.getxattr(self._nodes.at(path), name.decode(errors="replace"))
        return _give(value, buffer, size)

    def listxattr(self, path: bytes, buffer: Any, size: int) -> int:
        names = self._view.listxattr(self._nodes.at(path))
        return _give("".join(f"{name}\0" for name in names).encode(), buffer, size)

    def _fill(self, status: Any, attr: Attr) -> None:
        status.st_ino, status.st_mode, status.st_nlink = attr.ino, attr.mode, 1
        status.st_size, status.st_blocks, status.st_blksize = attr.size, attr.blocks, _REQUEST_BYTES
        status.st_uid, status.st_gid = self._uid, self._gid
        seconds, nanoseconds = divmod(attr.mtime_ns, 10**9)
        for stamp in (status.st_mtimespec, status.st_ctimespec, status.st_atimespec):
            stamp.tv_sec, stamp.tv_nsec = seconds, nanoseconds


def _give(value: bytes, buffer: Any, size: int) -> int:
    """As getxattr(2): the length alone where size is 0, ERANGE where it is too small."""
    if not size:
        return len(value)
    if len(value) > size:
        return -errno.ERANGE
    ctypes.memmove(buffer, value, len(value))
    return len(value)


class _Nodes:
    """Remembers the nodes of paths until the view's generation steps: a path is asked for several times a call."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._known: dict[bytes, Node] = {}  # guarded by _lock, but for single look-ups
        self._generation = view.generation

    def at(self, path: bytes) -> Node:
        """Raises NotFound, and what loading a version raises."""
        generation = self._view.generation
        found = self._known.get(path)
        if found is not None and generation == self._generation:
            return found
        # names that are not UTF-8 are found nowhere; surrogates keep them apart from all that are
        node = self._view.resolve(path.decode(errors="surrogateescape"))
        with self._lock:
            if generation != self._generation or len(self._known) >= _REMEMBERED_PATHS:
                self._known, self._generation = {}, generation
            self._known[path] = node
        return node

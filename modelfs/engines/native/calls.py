"""What each call of the kernel means, in terms of a view: a request's body in, an answer's body out.

Rule: nothing here waits: a view that would have to load raises NotLoaded, and the same call is made again later with
one that may. Reads are elsewhere (reads.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from modelfs.engines.native import answers, protocol
from modelfs.engines.native.answers import Known, Listed, Listing, Packer
from modelfs.engines.native.nodes import NodeIds, file_of, is_passthrough
from modelfs.engines.native.passthrough import LEAST_BYTES, OpenNodes
from modelfs.engines.native.protocol import Op
from modelfs.errors import ModelfsError, NotFound
from modelfs.reading.versions import ModelFile
from modelfs.view.tree import Directory, File, Node, VersionRoot
from modelfs.view.view import View

Call = Callable[["Calls", View, int, memoryview], bytes]


class Refused(Exception):
    """An errno that is an answer of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class OpenFiles:
    """By node id: the file, and how many handles this worker gave out for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, ModelFile] = {}  # guarded by _lock for changes
        self._opens: dict[int, int] = {}  # guarded by _lock

    def get(self, id: int) -> ModelFile | None:
        return self._files.get(id)

    def add(self, id: int, file: ModelFile) -> None:
        with self._lock:
            self._files[id] = file
            self._opens[id] = self._opens.get(id, 0) + 1

    def adopt(self, id: int, file: ModelFile) -> None:
        """Read under a handle that a worker before us gave out; how many there are nobody knows."""
        with self._lock:
            self._files.setdefault(id, file)

    def remove(self, id: int, *, ours: bool) -> None:
        """ours: a handle of this worker was released."""
        with self._lock:
            if ours:
                self._opens[id] -= 1
                if self._opens[id]:
                    return
                del self._opens[id]
            if id not in self._opens:
                self._files.pop(id, None)


class Calls:
    """epoch: tells this worker's handles from those that a worker before it gave out."""

    def __init__(self, ids: NodeIds, nodes: OpenNodes | None, epoch: int) -> None:
        self.ids, self._nodes, self._epoch = ids, nodes, epoch
        self.files = OpenFiles()
        self._packer = Packer()
        self._listings: dict[int, Listing] = {}
        self._handles = itertools.count(1)
        self._generations: dict[int, int] = {}  # of files whose first id for passthrough was in use the other way

    def lookup(self, view: View, id: int, body: memoryview) -> bytes:
        parent = self.ids.node_of(id, view)
        valid_s = answers.name_valid_s(parent)
        try:
            return self._packer.entry_out(self._known(view, view.lookup(parent, _name(body)), valid_s))
        except NotFound as error:
            if valid_s != answers.FIXED_S or error.errno != errno.ENOENT:
                raise
            return self._packer.absent(valid_s)

    def getattr(self, view: View, id: int, body: memoryview) -> bytes:
        node = self.ids.node_of(id, view)
        return self._packer.attr_out(view.getattr(node), answers.attr_valid_s(node, id))

    def readlink(self, view: View, id: int, body: memoryview) -> bytes:
        return view.readlink(self.ids.node_of(id, view)).encode()

    def open(self, view: View, id: int, body: memoryview) -> bytes:
        flags = int.from_bytes(body[:4], "little")
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise Refused(errno.EROFS)
        node = self.ids.node_of(id, view)
        if self._nodes is not None and self._nodes.read_by_kernel(id) and _is_damaged(view, node):
            # The kernel looks the name up again (fs/namei.c, LOOKUP_REVAL): it means the other id until it is mended.
            raise Refused(errno.ESTALE)
        file = view.open(node).file
        answer = protocol.FOPEN_KEEP_CACHE | protocol.FOPEN_NOFLUSH
        backing_id = None
        if self._nodes is not None and is_passthrough(id):
            backing_id = self._nodes.open(id, file.cache.backing)
        if backing_id is not None:
            view.note_passthrough()
            answer = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_NOFLUSH
        self.files.add(id, file)
        return protocol.OPEN_OUT.pack(self._epoch, answer, backing_id or 0)

    def release(self, id: int, body: memoryview) -> None:
        self._closed(id, ours=protocol.RELEASE_IN.unpack_from(body)[0] == self._epoch)

    def not_opened(self, id: int) -> None:
        """An open whose answer nobody took: the kernel will not release it."""
        self._closed(id, ours=True)

    def _closed(self, id: int, *, ours: bool) -> None:
        self.files.remove(id, ours=ours)
        if self._nodes is not None and is_passthrough(id):
            self._nodes.release(id)

    def opendir(self, view: View, id: int, body: memoryview) -> bytes:
        node = self.ids.node_of(id, view)
        kept = isinstance(node, Directory | VersionRoot)
        flags = protocol.FOPEN_CACHE_DIR | protocol.FOPEN_KEEP_CACHE if kept else 0
        return protocol.OPEN_OUT.pack(self._epoch << 40 | next(self._handles), flags, 0)

    def readdir(self, view: View, id: int, body: memoryview) -> bytes:
        return self._list(view, id, body, plus=False)

    def readdirplus(self, view: View, id: int, body: memoryview) -> bytes:
        return self._list(view, id, body, plus=True)

    def releasedir(self, view: View, id: int, body: memoryview) -> bytes:
        self._listings.pop(protocol.RELEASE_IN.unpack_from(body)[0], None)
        return b""

    def statfs(self, view: View, id: int, body: memoryview) -> bytes:
        return answers.statfs_out(view.statfs())

    def getxattr(self, view: View, id: int, body: memoryview) -> bytes:
        size = protocol.GETXATTR_IN.unpack_from(body)[0]
        name = _name(body[protocol.GETXATTR_IN.size:])
        return _sized(view.getxattr(self.ids.node_of(id, view), name), size)

    def listxattr(self, view: View, id: int, body: memoryview) -> bytes:
        names = view.listxattr(self.ids.node_of(id, view))
        return _sized("".join(f"{name}\0" for name in names).encode(), protocol.GETXATTR_IN.unpack_from(body)[0])

    def file(self, view: View, id: int) -> ModelFile:
        """Of a read: also under a handle that a worker before us gave out."""
        found = self.files.get(id)
        if found is None:
            node = self.ids.node_of(id, view)
            if not isinstance(node, File):
                raise Refused(errno.EISDIR)
            found = view.model_file(node)
            self.files.adopt(id, found)
        return found

    def _known(self, view: View, node: Node, valid_s: int) -> Known:
        attr = view.getattr(node)
        id = self.ids.id_of(node)
        if self._nodes is not None and isinstance(node, File) and attr.size >= LEAST_BYTES:
            # As long as a file is not whole its name is asked for at each open: one day it means the other id.
            valid_s = 0
            if view.whole(node):
                id, valid_s = self._passthrough_id(self._nodes, id), answers.FIXED_S
        return Known(id, attr, valid_s, answers.attr_valid_s(node, id))

    def _passthrough_id(self, nodes: OpenNodes, id: int) -> int:
        file = file_of(id)
        generation = self._generations.get(file.base, 0)
        while nodes.read_by_daemon(found := file.passthrough(generation)):
            generation = self._generations[file.base] = generation + 1
        return found

    def _list(self, view: View, id: int, body: memoryview, *, plus: bool) -> bytes:
        handle, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        listing = self._listings.get(handle)
        if listing is None or not listing.reaches(offset):
            listing = self._listings[handle] = Listing(self._entries(view, id, plus))
        try:
            return listing.piece(offset, size, self._packer, plus=plus)
        except BaseException:
            self._listings.pop(handle, None)  # a generator that raised has ended
            raise

    def _entries(self, view: View, id: int, plus: bool) -> Iterator[Listed]:
        node = self.ids.node_of(id, view)
        valid_s = answers.name_valid_s(node)
        ino = view.getattr(node).ino
        yield Listed(b".", ino, stat.S_IFDIR)
        yield Listed(b"..", ino, stat.S_IFDIR)
        for entry in view.readdir(node):
            known = self._known(view, view.lookup(node, entry.name), valid_s) if plus else None
            yield Listed(entry.name.encode(), entry.ino, entry.mode, known)


CALLS: Final[Mapping[int, Call]] = {
    Op.LOOKUP: Calls.lookup, Op.GETATTR: Calls.getattr, Op.READLINK: Calls.readlink, Op.OPEN: Calls.open,
    Op.OPENDIR: Calls.opendir, Op.READDIR: Calls.readdir,
    Op.READDIRPLUS: Calls.readdirplus, Op.RELEASEDIR: Calls.releasedir, Op.STATFS: Calls.statfs,
    Op.GETXATTR: Calls.getxattr, Op.LISTXATTR: Calls.listxattr}


def _is_damaged(view: View, node: Node) -> bool:
    """Of a file that the kernel holds, and so nobody evicts: whether a chunk was found bad since it was handed over."""
    if not isinstance(node, File):
        return False
    cache = view.model_file(node).cache
    return not cache.whole() and cache.cached_bytes() < node.entry.size


def errno_of(error: ModelfsError | Refused) -> int:
    return error.code if isinstance(error, Refused) else error.errno


def _name(body: memoryview) -> str:
    """Names that are not UTF-8 are found nowhere; surrogates keep them apart from all that are."""
    return bytes(body).partition(b"\0")[0].decode(errors="surrogateescape")


def _sized(value: bytes, size: int) -> bytes:
    """As getxattr(2): the length alone where size is 0, ERANGE where it is too small."""
    if not size:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise Refused(errno.ERANGE)
    return value

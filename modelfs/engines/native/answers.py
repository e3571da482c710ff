"""The bodies of answers: attributes, entries, directory listings, in the kernel's layout.

Rule: what never changes below a version is told to the kernel for an hour; what may move, for a second or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.engines.native import protocol
from modelfs.view.tree import Directory, File, Node, VersionRoot
from modelfs.view.view import BLOCK_BYTES, NAME_MAX, Attr, StatFs

FIXED_S, MOVABLE_S = 3600, 1
_PREFERRED_BYTES = 64 << 10
"""st_blksize. Python's open() reads that much at first: with 1 MiB a look at a header fetched the tensors behind it,
and two such reads looked like a sequential stream."""
_TYPE_SHIFT = 12  # of st_mode, to a directory entry's type


@dataclass(frozen=True, slots=True)
class Known:
    """A name's node, as the kernel is told of it. valid_s: for how long the name means this id."""

    id: int
    attr: Attr
    valid_s: int
    attr_valid_s: int


def attr_valid_s(node: Node, id: int) -> int:
    """The root is always asked for: so a stat of a mount whose daemon is dead says so."""
    return 0 if id == protocol.ROOT_ID else FIXED_S if isinstance(node, File | Directory) else MOVABLE_S


def name_valid_s(parent: Node) -> int:
    """How long a name in this directory, or its absence, is told for."""
    return FIXED_S if isinstance(parent, Directory | VersionRoot) else MOVABLE_S


class Packer:
    """Everything belongs to whoever mounted."""

    def __init__(self) -> None:
        self._uid, self._gid = os.getuid(), os.getgid()

    def attr(self, attr: Attr) -> bytes:
        seconds, nanoseconds = divmod(attr.mtime_ns, 10**9)
        seconds &= (1 << 64) - 1  # before 1970 it is negative
        return protocol.ATTR.pack(attr.ino, attr.size, attr.blocks, seconds, seconds, seconds, nanoseconds, nanoseconds,
                                  nanoseconds, attr.mode, 1, self._uid, self._gid, 0, _PREFERRED_BYTES, 0)

    def attr_out(self, attr: Attr, valid_s: int) -> bytes:
        return protocol.ATTR_OUT.pack(valid_s, 0, 0) + self.attr(attr)

    def entry_out(self, known: Known) -> bytes:
        return (protocol.ENTRY_OUT.pack(known.id, 0, known.valid_s, known.attr_valid_s, 0, 0) + self.attr(known.attr))

    def absent(self, valid_s: int) -> bytes:
        """A name that is not there, for so long."""
        return protocol.ENTRY_OUT.pack(0, 0, valid_s, 0, 0, 0) + bytes(protocol.ATTR.size)


def statfs_out(found: StatFs) -> bytes:
    blocks = max(1, -(-found.total_bytes // BLOCK_BYTES))
    return protocol.STATFS_OUT.pack(blocks, 0, 0, found.files, 0, BLOCK_BYTES, NAME_MAX, BLOCK_BYTES, 0)


@dataclass(frozen=True, slots=True)
class Listed:
    """One name of a directory. known: None for . and .., and where only names are asked for."""

    name: bytes
    ino: int
    mode: int
    known: Known | None = None


class Listing:
    """A directory that is being listed, piece by piece; the kernel names where to go on by the offset it was given.

    A listing may begin anywhere: after a seek, or in a worker that took over, the names before are passed by.
    """

    def __init__(self, entries: Iterator[Listed]) -> None:
        self._entries = entries
        self._next = 0
        self._held: Listed | None = None  # did not fit into the last piece

    def reaches(self, offset: int) -> bool:
        """Whether this listing can go on at offset; it only goes forward."""
        return offset >= self._next

    def piece(self, offset: int, size: int, packer: Packer, *, plus: bool) -> bytes:
        """Entries from offset on, as many as fit into size bytes. Raises what the entries raise; then it is over."""
        out = bytearray()
        while (entry := self._held or next(self._entries, None)) is not None:
            self._held = None
            if self._next < offset:
                self._next += 1
                continue
            packed = _packed(entry, self._next + 1, packer, plus)
            if len(out) + len(packed) > size:
                self._held = entry
                break
            out += packed
            self._next += 1
        return bytes(out)


def _packed(entry: Listed, following: int, packer: Packer, plus: bool) -> bytes:
    name = entry.name
    dirent = protocol.DIRENT.pack(entry.ino, following, len(name), entry.mode >> _TYPE_SHIFT) + name
    dirent += bytes(-len(dirent) % 8)
    if not plus:
        return dirent
    return (packer.entry_out(entry.known) if entry.known else packer.absent(0)) + dirent

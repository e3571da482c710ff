"""The nodes of the filesystem, and where they lie in a manifest's sorted paths.

Rule: a node is a small frozen value that stays true whatever the catalog does later; a directory of a version
is a contiguous range of the manifest's files, found by bisection, never a dict of all paths.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from modelfs.ids import ModelName, ObjectId
from modelfs.repository.manifest import FileEntry, Manifest, path_key


@dataclass(frozen=True, slots=True)
class Root:
    """Of a mount of the whole repository."""


@dataclass(frozen=True, slots=True)
class Organisation:
    name: str


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    model: ModelName


@dataclass(frozen=True, slots=True)
class VersionId:
    """One version of one model. created_ns: since the epoch."""

    model: ModelName
    number: int
    manifest: ObjectId
    created_ns: int

    @property
    def name(self) -> str:
        return f"v{self.number}"


@dataclass(frozen=True, slots=True)
class FollowedRoot:
    """The root of a mount that follows a tag, at the version that the tag names now.

    Its entries are links into a hidden directory of the version: so the files of each version are inodes of
    their own, and no page of one version can be handed out for another.
    """

    version: VersionId


@dataclass(frozen=True, slots=True)
class VersionRoot:
    """A version's own directory: a node that needs no manifest, so that listing a model loads no version."""

    version: VersionId


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of a version: its files first..stop of the manifest. path: "" for the version's root."""

    version: VersionId
    path: str
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class File:
    """number: in the manifest."""

    version: VersionId
    number: int
    entry: FileEntry


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link. place: what its inode number is made of."""

    target: str
    place: str
    mtime_ns: int


Node = Root | Organisation | ModelDirectory | FollowedRoot | VersionRoot | Directory | File | Link


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a directory. mode: only its type bits are meant."""

    name: str
    ino: int
    mode: int


def whole(version: VersionId, manifest: Manifest) -> Directory:
    return Directory(version, "", 0, len(manifest))


def find(within: Directory, manifest: Manifest, path: str) -> Directory | File | None:
    """What stands at path below a directory. path: relative, its parts joined by single slashes."""
    full = f"{within.path}/{path}" if within.path else path
    key = path_key(full)
    first = manifest.position(key, within.first, within.stop)
    if first >= within.stop:
        return None
    found = path_key(manifest.path_bytes(first))
    if found == key:
        return File(within.version, first, manifest.file(first))
    stop = manifest.position(key + b"\1", first, within.stop)
    return Directory(within.version, full, first, stop) if stop > first else None


def children(directory: Directory, manifest: Manifest) -> Iterator[Entry]:
    """The entries of a directory, in the order of their names' bytes. One bisection for each subdirectory."""
    prefix = f"{directory.path}/" if directory.path else ""
    skip = len(prefix.encode())
    number = directory.first
    while number < directory.stop:
        name, slash, _ = manifest.path_bytes(number)[skip:].partition(b"/")
        text = name.decode()
        mode = stat.S_IFDIR if slash else stat.S_IFREG
        yield Entry(text, inode(directory.version.manifest, prefix + text), mode)
        if slash:
            number = manifest.position(path_key(prefix + text) + b"\1", number, directory.stop)
        else:
            number += 1


def inode(manifest: ObjectId, path: str) -> int:
    """Of what stands at path of a version: the same at every mount, on every host."""
    return _hash(manifest + path.encode())


def upper_inode(place: str) -> int:
    """Of a directory or link above the versions. place: what tells it from all others, such as its path."""
    return _hash(place.encode())


def _hash(data: bytes) -> int:
    # 0 and 1 are special to some programs (no inode; the root), and libfuse takes all ones for "unknown"
    return int.from_bytes(blake3(data).digest(8), "little") % ((1 << 64) - 3) + 2

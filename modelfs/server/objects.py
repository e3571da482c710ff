"""Which files of a repository the server shows, and how it opens them.

Rule: only names that the repository format knows, only regular files, and no symbolic link on the way below the root:
a request cannot reach a file outside it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

from modelfs.errors import ObjectMissing
from modelfs.units import MiB

FOR_EVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"

_NAMED_BY_DIGEST = re.compile(
    r"(?:histories|manifests|indexes|packs)/([0-9a-f]{2})/(\1[0-9a-f]{62})|keys/[0-9a-f]{64}")
_HASHED = re.compile(r"modelfs\.json|catalog\.json|layouts/([0-9a-f]{2})/(\1[0-9a-f]{62})")

_NOT_AN_OBJECT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


def is_served(key: str) -> bool:
    return bool(_NAMED_BY_DIGEST.fullmatch(key) or _HASHED.fullmatch(key))


def is_named_by_digest(key: str) -> bool:
    return _NAMED_BY_DIGEST.fullmatch(key) is not None


def digest_etag(key: str) -> str:
    """Of what is_named_by_digest."""
    return f'"{key.rpartition("/")[2]}"'


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class OpenObject:
    """body: a file's descriptor, or the bytes themselves; of no meaning where only the head was asked for. size: bytes.
    etag: with its quotes; changes whenever the content does. close: to be called by who has this. owner: of the body,
    to live as long as this.
    """

    body: int | memoryview
    size: int
    etag: str
    cache_control: str
    close: Callable[[], None] = _nothing
    owner: object = None


def open_object(root: Path, key: str) -> OpenObject:
    """Open what is_served. Raises ObjectMissing, also for what is no regular file; OSError where a disk fails."""
    fd = _open_below(root, key)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing("an object is missing", where=key)
        if _NAMED_BY_DIGEST.fullmatch(key):
            return OpenObject(fd, found.st_size, digest_etag(key), FOR_EVER, partial(os.close, fd))
        caching = FOR_EVER if key == "modelfs.json" else ASK_AGAIN
        return OpenObject(fd, found.st_size, f'"{_digest(fd)}"', caching, partial(os.close, fd))
    except BaseException:
        os.close(fd)
        raise


def _open_below(root: Path, key: str) -> int:
    """O_NONBLOCK: a FIFO in an object's place must not hang the server."""
    *directories, name = key.split("/")
    try:
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in directories:
            fd = _open_in(fd, part, os.O_PATH | os.O_DIRECTORY)
        return _open_in(fd, name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NOT_AN_OBJECT:
            raise ObjectMissing("an object is missing", where=key) from error
        raise


def _open_in(directory_fd: int, name: str, flags: int) -> int:
    """Open name there and close directory_fd, in any case."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    finally:
        os.close(directory_fd)


def _digest(fd: int) -> str:
    """Of small files only: a layout of 1 TB has 27 MB, 5 ms."""
    hasher = blake3()
    offset = 0
    while piece := os.pread(fd, MiB, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()

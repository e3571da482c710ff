"""modelfs.json, which says what a repository is and never changes, and the making of an empty repository.

Rule: a format, or a required feature, that this modelfs does not know is refused by its name.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from modelfs.errors import BadInput, Conflict, Malformed, SwapLost, Unsupported
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.records import Record, canonical
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, KiB, MiB, rfc3339, show_size

FORMAT = 1
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 64 * KiB, 16 * MiB
KNOWN_FEATURES: frozenset[str] = frozenset()
_ID = re.compile(r"[0-9a-f]{32}")
MAX_INFO_BYTES = 1 * MiB


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """modelfs.json: what never changes."""

    id: str
    chunk_size: int
    encrypted: bool = False
    features: tuple[str, ...] = ()

    def serialise(self) -> bytes:
        return canonical({"format": FORMAT, "repository": self.id, "digest": "blake3-256",
                          "chunk_size": self.chunk_size, "encrypted": self.encrypted,
                          "features": list(self.features)})


def parse_info(data: bytes, where: str) -> RepositoryInfo:
    """Raises Malformed, Unsupported (the format or the feature by name)."""
    record = Record.parse(data, f"modelfs.json of {where}")
    if record.integer("format") != FORMAT:
        raise Unsupported(record.what, why=f"it is of format {record.integer('format')}, this modelfs reads {FORMAT}",
                          advice="Use a newer modelfs.")
    for feature in record.items("features"):
        if not isinstance(feature, str):
            raise Malformed(record.what, why="a feature is no string")
        if feature not in KNOWN_FEATURES:
            raise Unsupported(record.what, why=f"it needs the feature {feature[:80]!r}",
                              advice="Use a newer modelfs.")
    if record.text("digest") != "blake3-256" or record.flag("encrypted"):
        raise Unsupported(record.what, why=f"digest {record.text('digest')[:40]!r}, "
                                           f"encrypted {record.flag('encrypted')}")
    size = record.integer("chunk_size")
    if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise Malformed(record.what, why=f"chunk size {size}")
    id = record.text("repository")
    if not _ID.fullmatch(id):
        raise Malformed(record.what, why=f"repository {id[:40]!r} is not 32 hex digits")
    return RepositoryInfo(id, size, record.flag("encrypted"), tuple(record.items("features")))


def check_chunk_size(size: int) -> int:
    """Raises BadInput."""
    if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise BadInput(f"not a chunk size {size}", why="it is a power of two from 64 KiB to 16 MiB")
    return size


def initialise(store: ObjectStore, chunk_size: int, now: float, deadline: Deadline) -> RepositoryInfo:
    """Make an empty repository, or give a catalog to one that was left without: by who was cut off in between, or by
    this very call where the answer to its first object was lost.

    Raises Conflict where there is one already, or another chunk size; BadInput; what is wrong with a modelfs.json.
    """
    info = RepositoryInfo(secrets.token_hex(16), check_chunk_size(chunk_size))
    if not store.put(keys.INFO, info.serialise(), deadline, only_if_absent=True):
        fetched = store.get(keys.INFO, deadline, limit=MAX_INFO_BYTES, fresh=True)
        assert fetched is not None
        info = parse_info(fetched.data, store.url)
        if info.chunk_size != chunk_size:
            raise Conflict("there is a repository already", where=store.url,
                           why=f"its chunk size is {show_size(info.chunk_size)}")
    try:
        store.swap(keys.CATALOG, None, Catalog(info.id, 1, rfc3339(now), {}).serialise(), deadline)
    except SwapLost as error:
        raise Conflict("there is a repository already", where=store.url) from error
    return info

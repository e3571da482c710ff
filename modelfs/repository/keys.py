"""The keys of a repository's objects, as docs/format.md lays them out; nobody else spells one."""

from __future__ import annotations

from modelfs.errors import BadInput
from modelfs.ids import ObjectId
from modelfs.stores.store import Fetched

INFO = "modelfs.json"
CATALOG = "catalog.json"
ETCD = "etcd.json"  # only where etcd keeps the catalog


def _sharded(kind: str, name: str) -> str:
    return f"{kind}/{name[:2]}/{name}"


def history(digest: ObjectId) -> str:
    return _sharded("histories", digest.hex())


def manifest(digest: ObjectId) -> str:
    return _sharded("manifests", digest.hex())


def layout(manifest_id: ObjectId) -> str:
    return _sharded("layouts", manifest_id.hex())


def index(digest: ObjectId) -> str:
    return _sharded("indexes", digest.hex())


def pack(digest: ObjectId) -> str:
    return _sharded("packs", digest.hex())


def pack_id(key: str) -> ObjectId | None:
    """Of the pack that has this key; None where no pack has."""
    try:
        return ObjectId.from_hex(key.rpartition("/")[2])
    except BadInput:
        return None


def agrees(key: str, found: Fetched) -> bool:
    """Whether a small object is what its key says: for those that are named by their own digest. A layout has its
    manifest's name, and is no more than a hint."""
    named = key.startswith((HISTORIES, MANIFESTS, INDEXES))
    return not named or ObjectId.of(found.content).hex() == key.rpartition("/")[2]


PACKS, LAYOUTS, INDEXES, MANIFESTS, HISTORIES = "packs/", "layouts/", "indexes/", "manifests/", "histories/"

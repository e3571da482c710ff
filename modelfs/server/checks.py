"""What an upload must be before readers may see it, beyond a digest: catalogs, layouts, modelfs.json.

Rule: nothing that readers would stumble over takes the place of what they can read. These run in a thread, and leave
the last word to FileStore's compare-and-swap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from modelfs.errors import Malformed, ObjectMissing, SwapLost
from modelfs.ids import ModelName, ObjectId
from modelfs.repository import catalog, columns, keys
from modelfs.repository.catalog import MAX_CATALOG_BYTES, Catalog
from modelfs.repository.info import parse_info
from modelfs.repository.pack import MAX_OBJECT_BYTES
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, GiB, MiB

MAX_INFO_BYTES = 1 * MiB
MAX_COLUMNS_BYTES = 1 * GiB  # a layout or manifest of 1 TB in chunks of 2 MiB has 27 MB
_ETAG = re.compile(r'"([0-9a-f]{64})"')


def largest(key: str) -> int:
    """How many bytes an object under this key may have."""
    kind = key.partition("/")[0]
    if kind in ("packs", "catalog.json", "modelfs.json"):
        return {"packs": MAX_OBJECT_BYTES, "catalog.json": MAX_CATALOG_BYTES, "modelfs.json": MAX_INFO_BYTES}[kind]
    return MAX_CATALOG_BYTES if kind == "histories" else MAX_COLUMNS_BYTES


def etag_in(header: str) -> str | None:
    """The one strong etag of an If-Match header, without quotes; None where it is none that we ever gave."""
    found = _ETAG.fullmatch(header.strip())
    return found[1] if found else None


def check_info(data: bytes) -> None:
    """Raises Malformed, Unsupported."""
    parse_info(data, keys.INFO)


def check_layout(key: str, data: memoryview) -> None:
    """Only its form and whose it is: whatever else is false in it costs a reader a retry. Raises Malformed."""
    table = columns.parse(data, "layout")
    if table.scalars.get("manifest") != key.rpartition("/")[2]:
        raise Malformed("layout", why="it belongs to another manifest")
    table.get("row_place", "U32")
    table.get("heads", "U32")


def check_catalog(store: FileStore, data: bytes, expected: str | None, deadline: Deadline) -> None:
    """A catalog of this repository, newer than the one with the etag expected, that names only what is here.

    Raises Malformed, ObjectMissing (what it names), SwapLost where another one stands here already.
    """
    new = catalog.parse(data)
    try:
        info = store.get(keys.INFO, deadline, limit=MAX_INFO_BYTES)
    except ObjectMissing as error:
        raise Malformed("catalog.json", why="there is no modelfs.json yet") from error
    assert info is not None
    if new.repository != parse_info(info.data, keys.INFO).id:
        raise Malformed("catalog.json", why="it belongs to another repository")
    old = _standing(store, expected, deadline)
    if old is not None and new.payload != old.payload and new.serial <= old.serial:
        raise Malformed("catalog.json", why=f"its serial goes from {old.serial} to {new.serial}")
    known = {*_histories(old.models, old.removed), *old.indexes} if old else set()
    for digest in {*_histories(new.models, new.removed)} - known:
        _check_there(store, keys.history(digest), deadline)
    for digest in {*new.indexes} - known:
        _check_there(store, keys.index(digest), deadline)


def _standing(store: FileStore, expected: str | None, deadline: Deadline) -> Catalog | None:
    """The catalog that is to be replaced; None where there is none to be, or it cannot be read by anybody."""
    if expected is None:
        return None
    try:
        found = store.get(keys.CATALOG, deadline, limit=MAX_CATALOG_BYTES)
    except ObjectMissing:
        found = None
    if found is None or found.etag != expected:
        raise SwapLost("an object was changed meanwhile", where=keys.CATALOG)
    try:
        return catalog.parse(found.data)
    except Malformed:
        return None


def _histories(*models: Mapping[ModelName, ObjectId]) -> set[ObjectId]:
    return {digest for part in models for digest in part.values()}


def _check_there(store: FileStore, key: str, deadline: Deadline) -> None:
    try:
        store.stat(key, deadline)
    except ObjectMissing as error:
        raise Malformed("catalog.json", why=f"it names {key}, which is not here") from error

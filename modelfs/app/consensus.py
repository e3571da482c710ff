"""A repository's store whose catalog moves in etcd.

Rule: what a catalog is, and what its objects are called, is said to the store here, and the store knows no more of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfs.repository import catalog, keys
from modelfs.repository.info import MAX_INFO_BYTES, parse_info
from modelfs.stores.etcd_catalog import CatalogKeys, ConsensusStore
from modelfs.stores.etcd_client import EtcdClient
from modelfs.stores.opening import TlsFiles
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline


def kept_in_etcd(store: ObjectStore, members: Sequence[str], tls: TlsFiles | None) -> ConsensusStore:
    """Raises BadInput and Forbidden of tls."""
    return ConsensusStore(store, EtcdClient(members, tls), CatalogKeys(keys.CATALOG, keys.ETCD),
                          limit=catalog.MAX_CATALOG_BYTES, repository=_id, serial=_serial)


def _id(store: ObjectStore, deadline: Deadline) -> str:
    found = store.get(keys.INFO, deadline, limit=MAX_INFO_BYTES)
    assert found is not None
    return parse_info(found.data, store.url).id


def _serial(data: bytes) -> int:
    return catalog.parse(data).serial

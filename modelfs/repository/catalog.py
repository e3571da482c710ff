"""The catalog: which models there are. The one object of a repository that moves, by compare-and-swap.

Rule: `payload` is kept to the byte, because signatures cover exactly its bytes; everything else in the
catalog is about where bytes lie, and no signature covers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modelfs.errors import BadInput, Conflict, Malformed
from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository.records import Record, canonical

MAX_CATALOG_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Catalog:
    """serial: rises by one with every change. models: to the digest of each model's history. removed: the same
    of models without a version left, so that their numbers are not given again.

    dropped: keys of objects that gc may delete, with the time (RFC 3339) they were dropped.
    replica_of: the URL that a replica is kept like, or None of a repository that takes changes itself. holds: the
    models (names) that a replica has, or None for all; `models` and `removed` of one that was read are only these.
    """

    repository: str
    serial: int
    created: str
    models: Mapping[ModelName, ObjectId]
    removed: Mapping[ModelName, ObjectId] = field(default_factory=dict)
    indexes: tuple[ObjectId, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    expires: str | None = None
    signatures: tuple[Any, ...] = ()
    keys: tuple[Any, ...] = ()
    holds: Any = None
    replica_of: str | None = None
    payload: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)
    payload_others: Mapping[str, Any] = field(default_factory=dict)

    def next(self, created: str, *, models: Mapping[ModelName, ObjectId] | None = None,
             removed: Mapping[ModelName, ObjectId] | None = None,
             indexes: tuple[ObjectId, ...] | None = None, dropped: Mapping[str, str] | None = None) -> Catalog:
        """The catalog after this one, with what is given in place of what it has: signatures fall away, parent
        names this payload. Raises Conflict of a replica."""
        self.check_writable()
        parent = Digest.of(self.payload.encode()).hex() if self.payload else None
        return replace(self, serial=self.serial + 1, created=created, parent=parent, signatures=(), payload="",
                       models=self.models if models is None else models,
                       removed=self.removed if removed is None else removed,
                       indexes=self.indexes if indexes is None else indexes,
                       dropped=self.dropped if dropped is None else dropped)

    @property
    def held(self) -> frozenset[ModelName] | None:
        """None: all."""
        return None if self.holds is None else frozenset(ModelName.parse(name) for name in self.holds)

    def check_writable(self) -> None:
        """Raises Conflict."""
        if self.replica_of is not None:
            raise Conflict("a replica takes no changes", why=f"it is kept like {self.replica_of}",
                           advice="Make them there, or run `modelfs promote` here.")

    def serialise(self) -> bytes:
        payload = self.payload or canonical(
            {**self.payload_others, "repository": self.repository, "serial": self.serial, "created": self.created,
             "expires": self.expires, "parent": self.parent,
             "models": {str(name): digest.hex() for name, digest in self.models.items()},
             "removed": {str(name): digest.hex() for name, digest in self.removed.items()}}).decode()
        return canonical({**self.others, "payload": payload, "signatures": list(self.signatures),
                          "indexes": [index.hex() for index in self.indexes], "dropped": dict(self.dropped),
                          "keys": list(self.keys), "holds": self.holds, "replica_of": self.replica_of})


def parse(data: bytes) -> Catalog:
    """Raises Malformed."""
    outer = Record.parse(data, "catalog.json")
    payload = outer.text("payload")
    inner = Record.parse(payload, "catalog.json payload")
    found = Catalog(
        inner.text("repository"), inner.integer("serial"), inner.text("created"), _models(inner, "models"),
        _models(inner, "removed") if "removed" in inner.fields else {},
        tuple(outer.as_object_id(item, "indexes") for item in outer.items("indexes")), outer.texts("dropped"),
        inner.optional_text("parent"), inner.optional_text("expires"), tuple(outer.items("signatures")),
        tuple(outer.items("keys")), outer.fields.get("holds"), outer.optional_text("replica_of"), payload,
        outer.others("payload", "signatures", "indexes", "dropped", "keys", "holds", "replica_of"),
        inner.others("repository", "serial", "created", "expires", "parent", "models", "removed"))
    if found.holds is None:
        return found
    if not isinstance(found.holds, list) or not all(isinstance(name, str) for name in found.holds):
        raise Malformed(outer.what, why="holds is no list of models")
    try:
        held = found.held or frozenset()
    except BadInput as error:
        raise Malformed(outer.what, why=str(error)) from error
    return replace(found, models={name: id for name, id in found.models.items() if name in held},
                   removed={name: id for name, id in found.removed.items() if name in held})


def _models(payload: Record, key: str) -> dict[ModelName, ObjectId]:
    out = {}
    for name, digest in payload.mapping(key).items():
        try:
            out[ModelName.parse(name)] = payload.as_object_id(digest, f"{key} {name}")
        except BadInput as error:
            raise Malformed("catalog.json", why=str(error)) from error
    return out

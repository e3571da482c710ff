"""Repositories made with modelfs.repository alone: what push writes, without push.

Rule: everything is as docs/format.md says unless a test spoils it, so a test shows only what it spoils.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from modelfs.codecs import encode_chunk
from modelfs.ids import ChunkId, Digest, ModelName, ObjectId
from modelfs.repository import index, keys, layout, manifest
from modelfs.repository.history import History, Version
from modelfs.repository.index import Located
from modelfs.repository.info import initialise
from modelfs.repository.manifest import FileEntry, content_digest, path_key
from modelfs.repository.pack import PackWriter
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, KiB

CHUNK = 64 * KiB
WHEN = "2026-01-02T03:04:05Z"


def deadline() -> Deadline:
    return Deadline(60)


def rows_of(files: Mapping[str, bytes]) -> tuple[list[FileEntry], list[ChunkId], list[int]]:
    """What a manifest of the files takes: cut at every CHUNK bytes."""
    entries: list[FileEntry] = []
    ids: list[ChunkId] = []
    lengths: list[int] = []
    for path in sorted(files, key=path_key):
        data, first = files[path], len(ids)
        for start in range(0, len(data), CHUNK):
            ids.append(ChunkId.of(data[start:start + CHUNK]))
            lengths.append(len(data[start:start + CHUNK]))
        entries.append(FileEntry(path, len(data), 1_500_000_000_000_000_000, 0o444, Digest.of(data),
                                 hashlib.sha256(data).digest(), None, first, len(ids) - first))
    return entries, ids, lengths


class Builder:
    """One repository below root, which is made empty at first."""

    def __init__(self, root: Path) -> None:
        self.store = FileStore(root)
        initialise(self.store, CHUNK, 0, deadline())
        self.repository = Repository.open(self.store, deadline())

    def push(self, model: str, files: Mapping[str, bytes], tag: str = "latest") -> Version:
        """A new version; every chunk is stored again, in one pack."""
        entries, ids, lengths = rows_of(files)
        pack = PackWriter()
        for path in sorted(files, key=path_key):
            for start in range(0, len(files[path]), CHUNK):
                piece = files[path][start:start + CHUNK]
                codec, stored = encode_chunk(memoryview(piece), 0)
                pack.add(ChunkId.of(piece), len(piece), codec, stored)
        sealed = pack.seal()
        places = {chunk.id: chunk for chunk in sealed.chunks}
        body = manifest.serialise(entries, ids, lengths, [])
        id = ObjectId.of(body)
        found_at = index.serialise(sealed.chunks)
        self.put(keys.pack(sealed.id), bytes(sealed.data))
        self.put(keys.index(ObjectId.of(found_at)), found_at)
        self.put(keys.layout(id), layout.serialise(id, [places[chunk].place for chunk in ids], set()))
        self.put(keys.manifest(id), body)
        state = self.repository.catalog(deadline())
        name = ModelName.parse(model)
        before = state.catalog.models.get(name)
        rows = self.repository.history_at(before, name, deadline()) if before else History(name)
        version = version_of(rows.next, id, entries, lengths, sum(row.place.length for row in places.values()))
        text = rows.with_version(version).with_tag(tag, version.number, WHEN).serialise()
        self.put(keys.history(ObjectId.of(text)), text)
        new = state.catalog.next(WHEN, models={**state.catalog.models, name: ObjectId.of(text)},
                                 indexes=(*state.catalog.indexes, ObjectId.of(found_at)))
        self.store.swap(keys.CATALOG, state.etag, new.serialise(), deadline())
        return version

    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data, deadline())

    def path(self, key: str) -> Path:
        return self.store.root / key


def version_of(number: int, id: ObjectId, entries: list[FileEntry], lengths: list[int], stored: int) -> Version:
    return Version(number, id, content_digest(entries), WHEN, "made by hand", None, {}, len(entries), len(lengths),
                   sum(lengths), stored)


def located(*chunks: bytes) -> list[Located]:
    """Chunks stored raw, in one pack."""
    pack = PackWriter()
    for data in chunks:
        pack.add(ChunkId.of(data), len(data), "raw", data)
    return pack.seal().chunks
